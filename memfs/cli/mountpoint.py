"""Looks at a mount point before anything is done to it, and says in one sentence what is wrong."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

from memfs.errors import CannotMount
from memfs.fuse.names import FS_TYPE
from memfs.linux.mountinfo import Mount, mount_on
from memfs.linux.syscalls import UmountFlag, umount

_DEVICE = Path("/dev/fuse")


def check_machine() -> None:
    """Whether this user can mount at all.

    Raises:
        CannotMount: /dev/fuse or fusermount3 is missing.
    """
    if not _DEVICE.exists():
        raise CannotMount(
            "there is no /dev/fuse here", "load the module with 'modprobe fuse', or give it to the container"
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise CannotMount(
            "fusermount3 is missing, by which users mount", "install the package fuse3, or mount as root"
        )
    if os.geteuid() == 0 and not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise CannotMount("/dev/fuse may not be opened", "let the container use the device")


def check_mountpoint(mountpoint: Path) -> None:
    """Whether memfs can be mounted on *mountpoint*; the mount of a daemon that died is cleared away.

    Raises:
        CannotMount: it does not exist, is no directory, is not empty, or has a memfs already.
    """
    mount = mount_on(mountpoint)
    if mount is not None and mount.fs_type == FS_TYPE:
        if is_answered(mountpoint):
            raise CannotMount(
                f"memfs is mounted on {mountpoint} already", f"use it, or 'memfs umount {mountpoint}'"
            )
        detach(mountpoint)
    try:
        if not mountpoint.is_dir():
            if mountpoint.exists():
                raise CannotMount(f"{mountpoint} is not a directory", "mount on an empty directory")
            raise CannotMount(f"there is no {mountpoint}", f"make it with 'mkdir -p {mountpoint}'")
        empty = not any(mountpoint.iterdir())
    except PermissionError:
        raise CannotMount(f"{mountpoint} may not be looked into", "choose a directory of your own") from None
    except OSError as error:
        raise CannotMount(
            f"{mountpoint} cannot be used ({error.strerror})", "choose another directory"
        ) from None
    if not empty:
        raise CannotMount(f"{mountpoint} is not empty", "mount on an empty directory")


def is_answered(mountpoint: Path) -> bool:
    """Whether a daemon serves the mount."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno not in (errno.ENOTCONN, errno.ECONNABORTED)
    return True


def detach(mountpoint: Path) -> None:
    """Take the mount out of the tree, in use or not.

    Raises:
        CannotMount: it is not ours to unmount.
    """
    if os.geteuid() == 0:
        umount(os.fsencode(mountpoint), UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        return
    done = subprocess.run(
        ["fusermount3", "-u", "-z", "--", os.fspath(mountpoint)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotMount(f"fusermount3 could not unmount {mountpoint}", done.stderr.strip())


def our_mount(mountpoint: Path) -> Mount:
    """The memfs on *mountpoint*.

    Raises:
        CannotMount: nothing, or something else, is mounted there.
    """
    mount = mount_on(mountpoint)
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
