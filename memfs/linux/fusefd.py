"""The device of FUSE file systems: who serves a mount by it, and objects that the kernel reads by itself."""

import errno
import fcntl
import os
import re
import select
import struct

from memfs.linux import procfs
from memfs.linux.syscalls import borrow_descriptor

_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)$", re.MULTILINE)


def find_server(device: tuple[int, int]) -> int | None:
    """The pid that serves the FUSE file system on *device*; None where none can be seen.

    fdinfo tells a connection's number, which is the minor number of the device; older kernels do not
    print it. The number is free for the next mount as soon as a file system is unmounted, though its
    server may still be ending: one that has lost its connection does not count. The mount itself is not
    asked.
    """
    for pid in procfs.process_ids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        if any(_is_connection(pid, name, device[1]) for name in names):
            return pid
    return None


def _is_connection(pid: int, name: str, number: int) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/fd/{name}") != "/dev/fuse":
            return False
        found = _CONNECTION.search(procfs.read_file(f"/proc/{pid}/fdinfo/{name}"))
    except OSError:
        return False
    return found is not None and int(found[1]) == number and _is_connected(pid, int(name))


def _is_connected(pid: int, fd: int) -> bool:
    """Whether requests still come; true where we may not look."""
    try:
        borrowed = borrow_descriptor(pid, fd)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(borrowed, 0)
        return not any(events & select.POLLERR for _, events in poll.poll(0))
    finally:
        os.close(borrowed)


_BACKING_OPEN = 0x4010_E501  # _IOW(229, 1, struct fuse_backing_map); Linux 6.9
_BACKING_CLOSE = 0x4004_E502  # _IOW(229, 2, uint32_t)
_BACKING_MAP = struct.Struct("=iIQ")  # struct fuse_backing_map: fd flags padding
_BACKING_ID = struct.Struct("=I")


def open_backing(device: int, fd: int) -> int:
    """Register the file *fd* with the mount of *device*; returns its number.

    Raises:
        PermissionError: needs CAP_SYS_ADMIN, and a mount that has agreed to it.
        OSError: ELOOP where its file system lies over too many others.
    """
    # As bytes the argument would come back in place of the number.
    number: int = fcntl.ioctl(device, _BACKING_OPEN, bytearray(_BACKING_MAP.pack(fd, 0, 0)), True)
    return number


def close_backing(device: int, number: int) -> None:
    """Undo :func:`open_backing`; who has it open keeps it.

    Raises:
        OSError: there is no such number, or no mount any more.
    """
    fcntl.ioctl(device, _BACKING_CLOSE, _BACKING_ID.pack(number))


def knows_backing(device: int) -> bool:
    """Whether the kernel has the request: without a mount it refuses it, else it does not know it."""
    try:
        open_backing(device, -1)
    except OSError as error:
        return error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP)
    return True
