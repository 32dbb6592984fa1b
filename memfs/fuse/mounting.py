"""How memfs gets onto a directory and off it again: by the kernel where it lets us, else by fusermount3.

A directory and a mount are held by descriptor, since a path may lead elsewhere by the time it is used.
Nothing here asks the mount: its daemon may be dead or stuck. pyfuse3 is not known here; libfuse gets a
device that is mounted already.
"""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from pathlib import Path

from memfs.errors import CannotMount
from memfs.linux.fsmount import MountAttribute, attach_mount, create_mount
from memfs.linux.fusefd import abort_connection, connection_of, is_connected
from memfs.linux.mountinfo import Mount, mount_by_id, mount_id_of, mount_on, read_mounts
from memfs.linux.syscalls import UmountFlag, umount
from memfs.tree.names import FS_TYPE

FUSERMOUNT = "fusermount3"
_DEVICE = "/dev/fuse"
_NAME = b"memfs"
_FUSERMOUNT_S = 5
_TRIES = 200
"""A mount point whose path is swapped all the time is reached by every second try, or so."""


def attach(directory: int, mountpoint: Path) -> tuple[int, Mount]:
    """Mount memfs on *directory*, an O_PATH descriptor; returns the device to serve it by, and the mount.

    *mountpoint* is the path, without symbolic links, by which the directory was opened.

    Raises:
        CannotMount: the kernel or fusermount3 refuses; or the directory is no longer there.
    """
    place = os.fspath(mountpoint)
    try:
        device, number = _attach_by_kernel(directory) if os.geteuid() == 0 else (-1, None)
    except OSError as error:
        if not isinstance(error, PermissionError) or shutil.which(FUSERMOUNT) is None:
            raise _refused(place, error.strerror or str(error)) from error
        device, number = -1, None
    if device < 0:
        device = _attach_by_fusermount(place)
    try:
        mount = mount_by_id(number) if number is not None else _find_mount(device, place)
        if mount is None:
            raise CannotMount(f"{place} was unmounted at once", "mount again")
        where = {os.fsdecode(mount.mountpoint), _path_of(directory)}
        if mount.parent != mount_id_of(directory) or where != {place}:
            with contextlib.suppress(CannotMount, OSError):
                detach(mount)
            raise CannotMount(
                f"{place} was changed while memfs was being mounted",
                "mount in a directory that nobody else may write to",
            )
    except BaseException:
        os.close(device)
        raise
    return device, mount


def _refused(place: str, reason: str) -> CannotMount:
    return CannotMount(f"cannot mount on {place} ({reason})", "'memfs doctor' says what is missing")


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _attach_by_kernel(directory: int) -> tuple[int, int]:
    """Mount as libfuse does (``fuse_mount_sys`` of lib/mount.c); returns the device and the mount's id."""
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        parameters = {
            b"source": _NAME,
            b"subtype": _NAME,
            b"fd": b"%d" % device,
            b"rootmode": b"40000",  # S_IFDIR
            b"user_id": b"%d" % os.getuid(),
            b"group_id": b"%d" % os.getgid(),
        }
        mounted = create_mount(b"fuse", parameters, MountAttribute.NOSUID | MountAttribute.NODEV)
        try:
            attach_mount(mounted, directory)
            return device, mount_id_of(mounted)
        finally:
            os.close(mounted)  # held, it would be in use for who unmounts
    except BaseException:
        os.close(device)
        raise


def _attach_by_fusermount(place: str) -> int:
    """Let fusermount3 mount, which checks that this user may write there; returns the device.

    It sends that over the socket of _FUSE_COMMFD (``fuse_mount_fusermount`` of libfuse's lib/mount.c).
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [FUSERMOUNT, "-o", "fsname=memfs,subtype=memfs", "--", place],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise _refused(place, lines[0] if lines else f"{FUSERMOUNT} ended with status {done.returncode}")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _find_mount(device: int, place: str) -> Mount | None:
    """The mount that *device* serves: by its number, or by its place where the kernel tells no number."""
    number = connection_of(device)
    if number is not None:
        candidates = [mount for mount in read_mounts() if mount.device == (0, number)]
        return candidates[-1] if candidates else None
    found = mount_on(place)
    return found if found is not None and found.fs_type == FS_TYPE and found.owner == os.getuid() else None


def hold(mount: Mount) -> int:
    """An O_PATH descriptor of *mount*, wherever it has been moved to. Its file system lives while it is open.

    Raises:
        FileNotFoundError: it is no longer mounted.
        CannotMount: no path leads to it, since something else is mounted over it, say.
    """
    for _ in range(_TRIES):
        now = _where_now(mount)
        try:
            held = os.open(now.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        # The number may be another mount's meanwhile. The device is this one's as long as it is held.
        if (
            mount_id_of(held) == mount.id
            and (found := mount_by_id(mount.id))
            and found.device == mount.device
        ):
            return held
        os.close(held)
    where = os.fsdecode(_where_now(mount).mountpoint)
    raise CannotMount(
        f"the memfs on {where} cannot be reached", "unmount what is mounted over it, and then this one"
    )


def _where_now(mount: Mount) -> Mount:
    now = mount_by_id(mount.id)
    if now is None or now.device != mount.device:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(mount.mountpoint))
    return now


def detach(mount: Mount, device: int | None = None, *, abort: bool = False) -> None:
    """Take *mount* out of the tree, in use or not.

    Args:
        abort: end its connection too, wherever else it is mounted: whoever waits in it gets an error.
        device: the descriptor that serves it, for its daemon: nothing is done where that has lost its
            connection, since *mount* may be another by now.

    Raises:
        FileNotFoundError: it is no longer mounted.
        CannotMount: it is not ours to unmount.
    """
    held = hold(mount)
    try:
        if device is not None and not is_connected(device):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(mount.mountpoint))
        if os.geteuid() != 0 or not _detach_by_kernel(held, abort=abort):
            if abort:
                abort_connection(mount.device)
            _detach_by_fusermount(_path_of(held))
    finally:
        os.close(held)


def _detach_by_kernel(held: int, *, abort: bool) -> bool:
    """umount2(2) of exactly the mount that is held; False where we may not."""
    for flags in (UmountFlag.DETACH | (UmountFlag.FORCE if abort else 0), UmountFlag.DETACH):
        # MNT_FORCE aborts the connection (fuse_umount_begin). Root of a container may not use it.
        try:
            umount(b"/proc/self/fd/%d" % held, flags)
        except PermissionError:
            continue
        return True
    return False


def _detach_by_fusermount(place: str) -> None:
    try:
        done = subprocess.run(
            [FUSERMOUNT, "-u", "-z", "--", place],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_FUSERMOUNT_S,
        )
    except FileNotFoundError:
        raise CannotMount(
            f"{FUSERMOUNT} is missing, by which users unmount",
            "install the package fuse3, or unmount as root",
        ) from None
    except subprocess.TimeoutExpired:
        raise CannotMount(f"{FUSERMOUNT} could not unmount {place}", "it does not end") from None
    if done.returncode:
        raise CannotMount(f"{FUSERMOUNT} could not unmount {place}", done.stderr.strip())
