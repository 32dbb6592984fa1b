"""Holes in a file of hugetlbfs, which that file system does not tell: its SEEK_HOLE is the end of the file.

A page that is not there would be made by whoever touches it, and huge pages are few. So the file is mapped in
this process under a userfaultfd of its own, by which a fault of a missing page becomes an error and makes
nothing (UFFD_FEATURE_SIGBUS, Linux 4.14), while one of a page that is there maps it. MADV_POPULATE_READ
(Linux 5.14) makes the faults, and says which it was. It takes 10 us for a page that is missing.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator

from memfs.linux.syscalls import map_private, unmap

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]
_libc.fstatfs.restype = ctypes.c_int
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long

_HUGETLBFS_MAGIC = 0x958458F6  # <linux/magic.h>
_STATFS_BYTES = 120  # struct statfs of <asm/statfs.h>; f_type is the first word
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}  # <asm/unistd.h>
_USER_MODE_ONLY = 1  # UFFD_USER_MODE_ONLY, <linux/userfaultfd.h>; without it one needs CAP_SYS_PTRACE
_API = struct.Struct("=3Q")  # struct uffdio_api: api features ioctls
_UFFD_API = 0xAA
_FEATURE_SIGBUS = 1 << 7
_UFFDIO_API = 0xC018_AA3F
_REGISTER = struct.Struct("=4Q")  # struct uffdio_register: start len mode ioctls
_MODE_MISSING = 1
_UFFDIO_REGISTER = 0xC020_AA00
_MADV_POPULATE_READ = 22  # <asm-generic/mman-common.h>

MOST_PAGES = 2048
"""Of a larger file nothing is told: a process may stand still while it is looked at."""


def is_on_hugetlbfs(fd: int) -> bool:
    """Whether *fd* is of a file of huge pages."""
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    return not _libc.fstatfs(fd, answer) and struct.unpack_from("=Q", answer)[0] == _HUGETLBFS_MAGIC


def seek(fd: int, offset: int, end: int, *, data: bool) -> int:
    """The first offset from *offset* on, before *end*, that is data or in a hole; *end* where there is none.

    *fd* is of a file of hugetlbfs. What is asked here never makes a page of it.

    Raises:
        OSError: it is too large; or this kernel cannot tell, or does not let us ask.
    """
    found = os.fstat(fd)
    page_bytes = found.st_blksize
    if found.st_size > MOST_PAGES * page_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    last = min(end, found.st_size)
    at = offset
    with _presence(fd, found.st_size) as is_there:
        while at < last:
            page = at - at % page_bytes
            if is_there(page, page_bytes) is data:
                return at
            at = page + page_bytes
    return end if data else min(max(offset, last), end)


@contextlib.contextmanager
def _presence(fd: int, size_bytes: int) -> Iterator[Callable[[int, int], bool]]:
    """A function that tells whether what lies at an offset, so many bytes, is there: one page."""
    faults = _open_userfaultfd()
    try:
        address = map_private(fd, size_bytes)
        try:
            wanted = bytearray(_REGISTER.pack(address, size_bytes, _MODE_MISSING, 0))
            fcntl.ioctl(faults, _UFFDIO_REGISTER, wanted)
            yield lambda offset, length: _is_there(address + offset, length)
        finally:
            unmap(address, size_bytes)
    finally:
        os.close(faults)  # not before the mapping has gone: then who touches a page makes it


def _is_there(address: int, length: int) -> bool:
    if not _libc.madvise(address, length, _MADV_POPULATE_READ):
        return True
    number = ctypes.get_errno()
    if number == errno.EINVAL:
        raise OSError(number, "the kernel has no MADV_POPULATE_READ")
    return number != errno.EFAULT  # a page that is broken (EHWPOISON) is there


def _open_userfaultfd() -> int:
    number = _USERFAULTFD.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "userfaultfd")
    fd: int = _libc.syscall(number, os.O_CLOEXEC | _USER_MODE_ONLY)
    if fd < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"userfaultfd: {os.strerror(failed)}")
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, _FEATURE_SIGBUS, 0)))
    except BaseException:
        os.close(fd)
        raise
    return fd
