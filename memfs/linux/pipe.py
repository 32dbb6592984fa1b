"""A pipe that costs one descriptor.

``/proc/self/fd/N`` of either end, opened for reading and writing, is the whole pipe. End of file
and EPIPE vanish with the second descriptor: whoever uses it must count bytes.
"""

import fcntl
import os

from memfs.linux.span import PAGE_BYTES


class Pipe:
    """A non-blocking pipe of at least one page, owned by this object.

    Attributes:
        fd: the one descriptor, for reading and writing.
        slots: how many pages, or parts of pages, it holds.
    """

    def __init__(self, wanted_bytes: int) -> None:
        self._wanted_bytes = wanted_bytes
        self.fd = -1
        self.slots = 0
        self.reset()

    def reset(self) -> None:
        """Throw away what is in the pipe, by making another one."""
        self.close()
        reader, writer = os.pipe()
        try:
            self.fd = os.open(f"/proc/self/fd/{reader}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(reader)
            os.close(writer)
        self.slots = grow(self.fd, self._wanted_bytes) // PAGE_BYTES

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def can_splice(fd: int) -> bool:
    """Whether the file system of the regular file *fd* knows splice(2): hugetlbfs does not.

    Asked for what lies behind the end, so that nothing has to be read.
    """
    reader, writer = os.pipe()
    try:
        return os.splice(fd, writer, 1, offset_src=os.fstat(fd).st_size) == 0
    except OSError:
        return False
    finally:
        os.close(reader)
        os.close(writer)


def grow(fd: int, wanted_bytes: int) -> int:
    """Make the pipe as large as it may be, up to *wanted_bytes*; returns its size in bytes.

    Above ``/proc/sys/fs/pipe-max-size`` (1 MiB unless set) F_SETPIPE_SZ needs CAP_SYS_RESOURCE,
    and a user has a quota of pages for all pipes together (pipe-user-pages-soft).
    """
    while wanted_bytes > PAGE_BYTES:
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, wanted_bytes)
        except PermissionError:
            wanted_bytes //= 2
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
