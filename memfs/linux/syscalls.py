"""System calls that the standard library lacks, typed; each raises OSError.

No policy here, and no state but the loaded C library.
"""

import ctypes
import enum
import errno
import fcntl
import mmap
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)


class IoVec(ctypes.Structure):
    """``struct iovec`` (``<bits/types/struct_iovec.h>``)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc.vmsplice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_uint]
_libc.vmsplice.restype = ctypes.c_ssize_t
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.umount2.restype = ctypes.c_int


class UmountFlag(enum.IntFlag):
    """``<sys/mount.h>``."""

    FORCE = 1
    DETACH = 2
    NOFOLLOW = 8


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def address_of(memory: mmap.mmap) -> int:
    """The address in this process at which *memory* begins. It must stay open from now on."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Vmsplice:
    """vmsplice(2): ranges of our own memory go into a pipe without a copy.

    The pages stay ours: what is written into them before the pipe is emptied shows in the pipe.
    The array of ranges is made once, since building one costs more than the call.
    """

    def __init__(self, capacity: int) -> None:
        self._ranges = (IoVec * capacity)()
        self._address = ctypes.addressof(self._ranges)
        self._capacity = capacity
        self._count = 0

    def add(self, address: int, length: int) -> bool:
        """Queue *length* bytes at *address*; False where there is no room for another range."""
        if self._count == self._capacity:
            return False
        entry = self._ranges[self._count]
        entry.base, entry.length = address, length
        self._count += 1
        return True

    def clear(self) -> None:
        """Forget what is queued."""
        self._count = 0

    def flush(self, pipe: int) -> int:
        """Hand what is queued to *pipe*; returns the bytes taken, short where the pipe is full.

        Raises:
            BlockingIOError: the pipe is full.
        """
        count, self._count = self._count, 0
        if not count:
            return 0
        taken: int = _libc.vmsplice(pipe, self._address, count, os.SPLICE_F_NONBLOCK)
        if taken < 0:
            raise _os_error("vmsplice")
        return taken


def vmsplice_shares_pages() -> bool:
    """Whether a page given to vmsplice is shared, not copied: changes one while it lies in a pipe."""
    reader, writer = os.pipe()
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[0] = 1
    try:
        call = Vmsplice(1)
        call.add(address_of(page), 1)
        call.flush(writer)
        page[0] = 2
        return os.read(reader, 1) == b"\2"
    except OSError:
        return False
    finally:
        os.close(reader)
        os.close(writer)


_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_libc.process_vm_readv.restype = ctypes.c_ssize_t


def read_process(pid: int, *parts: tuple[int, memoryview]) -> int:
    """process_vm_readv(2): copy memory of *pid*, all *parts* of it from the same address space.

    Unlike a read of /proc/PID/mem it waits for a userfaultfd to supply a page, for ever if need be.
    It follows the pid: after an exec it reads the new program.

    Args:
        parts: addresses, and what the memory from there on is copied into, as much as that can hold.

    Returns:
        Bytes copied; short where the next page cannot be read.
    Raises:
        OSError: EFAULT where not even the first page can; ESRCH, EPERM.
    """
    local: list[int] = []
    remote: list[int] = []
    for address, into in parts:
        size = len(into)
        local += ctypes.addressof(ctypes.c_char.from_buffer(into)), size
        remote += address, size
    count = len(parts)
    vectors = f"={2 * count}Q"  # struct iovec: base length
    copied: int = _libc.process_vm_readv(
        pid, struct.pack(vectors, *local), count, struct.pack(vectors, *remote), count, 0
    )
    if copied < 0:
        raise _os_error("process_vm_readv")
    return copied


def peek(pid: int, address: int, size_bytes: int) -> bytes:
    """So many bytes of the memory of *pid*, which is stopped; fewer where the next page is unreadable.

    Where process_vm_readv(2) is not there (CONFIG_CROSS_MEMORY_ATTACH), or forbidden by the filter of a
    container, they are read from ``/proc/PID/mem``.

    Raises:
        OSError: not even the first page can be read.
    """
    content = bytearray(size_bytes)
    try:
        return bytes(content[: read_process(pid, (address, memoryview(content)))])
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size_bytes, address)
    finally:
        os.close(fd)


_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long]
_libc.syscall.restype = ctypes.c_long
_PIDFD_GETFD = 438  # the same on every architecture; Linux 5.6
_MEMFD_SECRET = 447  # the same; Linux 5.14


def create_secret_memory() -> int:
    """memfd_secret(2): a descriptor of memory that no one but its owner can read.

    Raises:
        OSError: ENOSYS where the kernel has it not, or it is switched off.
    """
    fd: int = _libc.syscall(_MEMFD_SECRET, os.O_CLOEXEC, 0, 0)
    if fd < 0:
        raise _os_error("memfd_secret")
    return fd


def borrow_descriptor(pid: int, fd: int) -> int:
    """pidfd_getfd(2): a descriptor of our own of what process *pid* has open as *fd*.

    Raises:
        PermissionError: ptrace access is denied.
        OSError: ESRCH, EBADF.
    """
    process = os.pidfd_open(pid)
    try:
        borrowed: int = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
    finally:
        os.close(process)
    if borrowed < 0:
        raise _os_error("pidfd_getfd")
    return borrowed


_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.munmap.restype = ctypes.c_int
_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>, <bits/mman-map-flags-generic.h>
_MAP_FAILED = ctypes.c_void_p(-1).value


def map_private(fd: int, length: int) -> int:
    """mmap(2): map *length* bytes of *fd* privately, to be read; returns the address.

    Unlike the class of the standard library, this takes a length behind the end of the file, and
    reserves no huge pages.

    Raises:
        OSError: EACCES, ENODEV.
    """
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    address: int | None = _libc.mmap(None, length, mmap.PROT_READ, flags, fd, 0)
    if address is None or address == _MAP_FAILED:
        raise _os_error("mmap")
    return address


def unmap(address: int, length: int) -> None:
    """munmap(2).

    Raises:
        OSError: EINVAL.
    """
    if _libc.munmap(address, length) < 0:
        raise _os_error("munmap")


_libc.tgkill.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
_libc.tgkill.restype = ctypes.c_int


def send_to_thread(pid: int, tid: int, number: int) -> None:
    """tgkill(2): send a signal to one thread.

    Raises:
        ProcessLookupError: there is no such thread.
    """
    if _libc.tgkill(pid, tid, number) < 0:
        raise _os_error("tgkill")


def umount(path: bytes, flags: UmountFlag) -> None:
    """umount2(2).

    Raises:
        PermissionError: needs CAP_SYS_ADMIN.
        OSError: EINVAL where nothing is mounted on *path*; EBUSY.
    """
    if _libc.umount2(path, flags) < 0:
        raise _os_error("umount2")


_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.syncfs.restype = ctypes.c_int
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.renameat2.restype = ctypes.c_int

_FALLOC_FL_KEEP_SIZE = 1  # <linux/falloc.h>
_FALLOC_FL_PUNCH_HOLE = 2
_FICLONE = 0x4004_9409  # _IOW(0x94, 9, int), <linux/fs.h>
_RENAME_EXCHANGE = 2  # <linux/fs.h>


def reserve(fd: int, offset: int, length: int) -> None:
    """fallocate(2): make sure that writing there will not run out of space; the size stays.

    Unlike posix_fallocate(3) it writes nothing where the file system cannot do it.

    Raises:
        OSError: ENOSPC; EOPNOTSUPP where the file system cannot.
    """
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, length) < 0:
        raise _os_error("fallocate")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2): give the blocks there back, and read as zeros from now on; the size stays.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot.
    """
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length) < 0:
        raise _os_error("fallocate")


def clone(fd: int, source: int) -> None:
    """FICLONE, see ioctl_ficlone(2): make *fd* a copy of *source* that shares its blocks until written.

    Raises:
        OSError: EOPNOTSUPP, EXDEV, EINVAL or ENOTTY where the file system cannot.
    """
    fcntl.ioctl(fd, _FICLONE, source)


_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.sync_file_range.restype = ctypes.c_int
_SYNC_FILE_RANGE_WRITE = 2  # <linux/fs.h>


def start_writing(fd: int, offset: int, length: int) -> None:
    """sync_file_range(2): begin to write out what is dirty there. It proves nothing, fsync(2) does.

    Raises:
        OSError: the kernel or the file system cannot.
    """
    if _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE) < 0:
        raise _os_error("sync_file_range")


def sync_file_system(fd: int) -> None:
    """syncfs(2): write out all of the file system that *fd* is on; since Linux 5.8 it tells of errors."""
    if _libc.syncfs(fd) < 0:
        raise _os_error("syncfs")


def exchange(directory: int, name: bytes, other_directory: int, other: bytes) -> None:
    """renameat2(2) with RENAME_EXCHANGE: each name leads where the other did, from one moment to the next.

    Raises:
        OSError: EINVAL where the file system cannot.
    """
    if _libc.renameat2(directory, name, other_directory, other, _RENAME_EXCHANGE) < 0:
        raise _os_error("renameat2")
