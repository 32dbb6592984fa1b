"""The device of FUSE file systems: who serves a mount by it, and objects that the kernel reads by itself."""

import contextlib
import errno
import fcntl
import os
import re
import select
import struct
from pathlib import Path

import attrs

from memfs.linux import procfs
from memfs.linux.syscalls import borrow_descriptor

_DEVICE = "/dev/fuse"
_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)$", re.MULTILINE)
_UIDS = re.compile(rb"^Uid:\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", re.MULTILINE)


@attrs.define
class DeviceHolder:
    """A process that has the device of a FUSE file system open. The owner closes it.

    Attributes:
        process: a pidfd of it.
        verified: whether the kernel has said that the device is of the file system that was asked for.
        device: a copy of its descriptor, where the kernel does not say that; None where it may not be had.
    """

    pid: int
    process: int
    verified: bool
    device: int | None = None

    @property
    def is_of_aborted(self) -> bool:
        """Whether it serves the file system that was asked for, once the connection of that was aborted."""
        return self.verified or (self.device is not None and not is_connected(self.device))

    def close(self) -> None:
        """Close the descriptors of ours."""
        os.close(self.process)
        if self.device is not None:
            os.close(self.device)


def find_servers(device: tuple[int, int], uid: int) -> list[DeviceHolder]:
    """The processes of user *uid* that serve the FUSE file system on *device*, as far as they can be seen.

    Only what the kernel says of a descriptor counts. fdinfo tells a connection's number, which is the
    minor number of the device (``fuse_dev_show_fdinfo`` of fs/fuse/dev.c, Linux 6.16). The number is free
    for the next mount as soon as a file system is unmounted, though its server may still be ending: one
    that has lost its connection does not count. Older kernels do not print it: there every process is
    returned that may serve any FUSE file system, not verified, with a copy of its descriptor if we may have
    one. Which of them it was :attr:`Server.is_of_aborted` tells afterwards.

    Neither the file system nor the processes are asked.
    """
    found = []
    for pid in procfs.process_ids():
        if pid == os.getpid():  # which has copies of what others have
            continue
        try:
            process = os.pidfd_open(pid)
        except OSError:
            continue
        server = _find_device(pid, process, device[1]) if _credentials(pid) == {uid} else None
        # What was read in /proc is of that process only if it has not ended since.
        if server is not None and not _has_ended(process):
            found.append(server)
        elif server is not None:
            server.close()
        else:
            os.close(process)
    return found


def _credentials(pid: int) -> set[int]:
    """The real, effective, saved and file system uid of a process."""
    try:
        uids = _UIDS.search(procfs.read_file(f"/proc/{pid}/status"))
    except OSError:
        return set()
    return set(map(int, uids.groups())) if uids else set()


def _find_device(pid: int, process: int, number: int) -> DeviceHolder | None:
    """What *process* has open of the FUSE file system that has the minor number *number*."""
    unverified = None
    for name in _names_of_descriptors(pid):
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") != _DEVICE:
                continue
            said = _CONNECTION.search(procfs.read_file(f"/proc/{pid}/fdinfo/{name}"))
        except OSError:
            continue
        if said is not None and int(said[1]) != number:
            continue
        device = None
        try:
            device = borrow_descriptor(pid, int(name))
        except OSError:
            connected = True  # we may not look
        else:
            connected = is_connected(device)
        if said is None and connected and unverified is None:
            unverified = DeviceHolder(pid, process, verified=False, device=device)
            continue
        if device is not None:
            os.close(device)
        if said is not None and connected:
            return DeviceHolder(pid, process, verified=True)
    return unverified


def _names_of_descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


def is_connected(device: int) -> bool:
    """Whether requests still come from *device*; not before it is mounted, nor once it is unmounted."""
    poll = select.poll()
    poll.register(device, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def connection_of(device: int) -> int | None:
    """The minor number of the file system that is served by *device*, a descriptor of ours.

    None before Linux 6.16, which does not tell.
    """
    said = _CONNECTION.search(procfs.read_file(f"/proc/self/fdinfo/{device}"))
    return int(said[1]) if said else None


def abort_connection(device: tuple[int, int]) -> None:
    """End the connection of a FUSE file system, so that all who wait for its server get an error.

    Whoever calls this must hold the file system, lest its number be another's already. Does nothing where
    fusectl is not mounted, or the file system is not ours: its file belongs to who mounted.
    """
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{device[1]}/abort").write_text("1")


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
