"""Looks at a mount point before anything is done to it, and says in one sentence what is wrong.

A mount of memfs is asked only by a child process with a time limit: its daemon may be stopped or stuck.
"""

import enum
import errno
import os
import shutil
from pathlib import Path

from memfs.cli import timelimit
from memfs.errors import CannotMount
from memfs.fuse.mounting import FUSERMOUNT, detach
from memfs.linux.directories import open_without_links
from memfs.linux.mountinfo import Mount, mount_on, resolve
from memfs.tree.names import FS_TYPE

_DEVICE = Path("/dev/fuse")
ANSWER_S = 3.0
"""How long a mount may take to answer; then it is said not to."""


def check_machine() -> None:
    """Whether this user can mount at all.

    Raises:
        CannotMount: /dev/fuse or fusermount3 is missing.
    """
    if not _DEVICE.exists():
        raise CannotMount(
            "there is no /dev/fuse here", "load the module with 'modprobe fuse', or give it to the container"
        )
    if os.geteuid() != 0 and shutil.which(FUSERMOUNT) is None:
        raise CannotMount(
            "fusermount3 is missing, by which users mount", "install the package fuse3, or mount as root"
        )
    if os.geteuid() == 0 and not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise CannotMount("/dev/fuse may not be opened", "let the container use the device")


def place_of(mountpoint: str) -> Path:
    """The path *mountpoint* without symbolic links. No mount of memfs is asked."""
    return Path(resolve(mountpoint, FS_TYPE))


def open_mountpoint(mountpoint: Path) -> int:
    """An O_PATH descriptor of the empty directory *mountpoint*, a path of :func:`place_of`, to mount on.

    The mount of a daemon that died is cleared away.

    Raises:
        CannotMount: it does not exist, is no directory, is not empty, or has a memfs already.
    """
    _clear(mountpoint)
    directory = -1
    try:
        directory = open_without_links(os.fspath(mountpoint))
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            empty = not os.listdir(listing)
        finally:
            os.close(listing)
        if not empty:
            raise CannotMount(f"{mountpoint} is not empty", "mount on an empty directory")
    except BaseException as error:
        if directory >= 0:
            os.close(directory)
        if isinstance(error, OSError):
            raise _unusable(mountpoint, error) from None
        raise
    return directory


def _clear(mountpoint: Path) -> None:
    mount = mount_on(os.fspath(mountpoint))
    while mount is not None and mount.fs_type == FS_TYPE:
        answer = ask(mountpoint)
        if answer is not Answer.NOT_CONNECTED:
            silent = ", and does not answer" if answer is Answer.NONE else ""
            raise CannotMount(
                f"memfs is mounted on {mountpoint} already{silent}", f"use it, or 'memfs umount {mountpoint}'"
            )
        detach(mount)
        mount = mount_on(os.fspath(mountpoint))


def _unusable(mountpoint: Path, error: OSError) -> CannotMount:
    match error.errno:
        case errno.ENOENT:
            return CannotMount(f"there is no {mountpoint}", f"make it with 'mkdir -p {mountpoint}'")
        case errno.ENOTDIR:
            if _is_below_something(mountpoint):
                return CannotMount(f"there is no {mountpoint}", f"make it with 'mkdir -p {mountpoint}'")
            return CannotMount(f"{mountpoint} is not a directory", "mount on an empty directory")
        case errno.EACCES | errno.EPERM:
            return CannotMount(f"{mountpoint} may not be looked into", "choose a directory of your own")
        case _:
            return CannotMount(f"{mountpoint} cannot be used ({error.strerror})", "choose another directory")


def _is_below_something(mountpoint: Path) -> bool:
    """Whether it is a directory above *mountpoint* that is none."""
    try:
        os.close(open_without_links(os.fspath(mountpoint.parent)))
    except OSError:
        return True
    return False


class Answer(enum.Enum):
    """What comes of asking a mount."""

    SERVED = enum.auto()
    NOT_CONNECTED = enum.auto()
    NONE = enum.auto()


def ask(mountpoint: Path) -> Answer:
    """Whether a daemon serves the mount on *mountpoint*; asked for :data:`ANSWER_S` seconds at most."""
    try:
        timelimit.call(lambda: os.stat(mountpoint).st_mode, ANSWER_S)
    except TimeoutError:
        return Answer.NONE
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return Answer.NOT_CONNECTED
    return Answer.SERVED


def our_mount(mountpoint: Path) -> Mount:
    """The memfs on *mountpoint*, a path of :func:`place_of`, if it is ours or we are root.

    Raises:
        CannotMount: nothing, or something else, is mounted there, or by someone else.
    """
    mount = mount_on(os.fspath(mountpoint))
    if mount is None:
        raise CannotMount(
            f"nothing is mounted on {mountpoint}", "'findmnt -t fuse.memfs' lists the mounts of memfs"
        )
    if mount.fs_type != FS_TYPE:
        kind = mount.fs_type.decode(errors="backslashreplace")
        raise CannotMount(
            f"{mountpoint} is a mount of {kind}, not of memfs", "'findmnt -t fuse.memfs' lists ours"
        )
    return mount
