"""System calls for the support programs, through ctypes. Standard library only.

Every function raises OSError where the kernel refuses. Addresses are plain numbers, and whoever calls
`poke` or `peek` with a wrong one dies of SIGSEGV, as in C. This file knows of no pattern, no command and no
test.
"""

import ctypes
import errno
import os
import signal
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long

_MAP_FAILED = ctypes.c_void_p(-1).value


class Prot(IntFlag):
    """PROT_* of <bits/mman-linux.h>."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4


class Map(IntFlag):
    """MAP_* of <bits/mman-map-flags-generic.h>."""

    SHARED = 0x01
    PRIVATE = 0x02
    ANONYMOUS = 0x20
    NORESERVE = 0x4000
    HUGETLB = 0x40000
    FIXED_NOREPLACE = 0x100000


class Advice(IntEnum):
    """MADV_* of <asm-generic/mman-common.h>."""

    DONTNEED = 4
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    WIPEONFORK = 18
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    COLLAPSE = 25
    GUARD_INSTALL = 102  # Linux 6.13
    GUARD_REMOVE = 103


class Prctl(IntEnum):
    """PR_* of <linux/prctl.h>."""

    SET_PDEATHSIG = 1
    SET_DUMPABLE = 4
    SET_NAME = 15
    SET_VMA = 0x53564D41


class Call(IntEnum):
    """System call numbers of x86-64 that glibc may lack a function for."""

    USERFAULTFD = 323
    MEMFD_SECRET = 447


CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
_MREMAP_MAYMOVE_FIXED = 3
_PR_SET_VMA_ANON_NAME = 0
_IPC_CREAT = 0o1000
_IPC_RMID = 0
_MS_REC_PRIVATE = (1 << 14) | (1 << 18)


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _check(result: int, what: str) -> int:
    if result == -1:
        raise _failure(what)
    return result


def map_memory(address: int, length: int, prot: Prot, flags: Map, fd: int = -1, offset: int = 0) -> int:
    """Map *length* bytes at exactly *address*; EEXIST where anything is mapped there."""
    result = _libc.mmap(address, length, prot, flags | Map.FIXED_NOREPLACE, fd, offset)
    if result == _MAP_FAILED:
        raise _failure("mmap")
    return int(result)


def unmap(address: int, length: int) -> None:
    """Unmap the pages of the range."""
    _check(_libc.munmap(address, length), "munmap")


def protect(address: int, length: int, prot: Prot) -> None:
    """Set the protection of the range."""
    _check(_libc.mprotect(address, length, prot), "mprotect")


def advise(address: int, length: int, advice: int) -> None:
    """Call madvise; *advice* is one of `Advice`, or any number."""
    _check(_libc.madvise(address, length, advice), "madvise")


def move(address: int, length: int, target: int) -> None:
    """Move the mapping, pages and all, to *target* in one step; what was mapped there goes."""
    if _libc.mremap(address, length, length, _MREMAP_MAYMOVE_FIXED, target) == _MAP_FAILED:
        raise _failure("mremap")


def poke(address: int, data: bytes) -> None:
    """Write *data* into this process at *address*."""
    ctypes.memmove(address, data, len(data))


def peek(address: int, length: int) -> bytes:
    """Read this process at *address*; faults pages in."""
    return ctypes.string_at(address, length)


def prctl(option: Prctl, first: int = 0, second: int = 0, third: int = 0, fourth: int = 0) -> None:
    """Call prctl with numbers."""
    _check(_libc.prctl(option, first, second, third, fourth), f"prctl({option.name})")


def _address_of(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    return ctypes.addressof(buffer)


def set_name(name: bytes) -> None:
    """Set this thread's comm; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name)
    prctl(Prctl.SET_NAME, _address_of(buffer))


def name_memory(address: int, length: int, name: bytes) -> None:
    """Name an anonymous mapping; EINVAL where the kernel has no CONFIG_ANON_VMA_NAME (Linux 5.17)."""
    buffer = ctypes.create_string_buffer(name)
    prctl(Prctl.SET_VMA, _PR_SET_VMA_ANON_NAME, address, length, _address_of(buffer))


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL when the thread that started this process ends; exit if *parent* is gone already."""
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def secret_memory() -> int:
    """A memfd_secret descriptor (Linux 5.14; ENOSYS where it is turned off)."""
    return int(_check(_libc.syscall(Call.MEMFD_SECRET, os.O_CLOEXEC), "memfd_secret"))


def userfault_descriptor() -> int:
    """A non-blocking userfaultfd that also catches faults taken inside the kernel; needs privilege.

    A blocking one cannot be polled: poll() gives POLLERR.
    """
    return int(_check(_libc.syscall(Call.USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK), "userfaultfd"))


def attach_system_v(address: int, length: int) -> None:
    """Attach a new System V segment at *address*; its id is removed, so that it ends with its last user."""
    identifier = _check(_libc.shmget(0, ctypes.c_size_t(length), _IPC_CREAT | 0o600), "shmget")
    try:
        if _libc.shmat(identifier, address, 0) == _MAP_FAILED:
            raise _failure("shmat")
    finally:
        _libc.shmctl(identifier, _IPC_RMID, None)


def unshare(flags: int) -> None:
    """Leave the named namespaces."""
    _check(_libc.unshare(flags), "unshare")


def mount_private() -> None:
    """Make every mount of this mount namespace private, so that nothing shows outside."""
    try:
        _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None), "mount --make-rprivate /")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # In a chroot / need not be a mount point: then each mount below it is made private.
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            place = line.split()[4].decode("unicode_escape").encode("latin-1")
            _check(_libc.mount(b"none", place, None, _MS_REC_PRIVATE, None), "mount --make-rprivate")


def mount_proc() -> None:
    """Mount a proc of this pid namespace over /proc."""
    _check(_libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount -t proc")


def fork_with_pid(pid: int) -> int:
    """fork(), with a chosen *pid* for the child; EEXIST where it is taken.

    By ns_last_pid, see proc_sys_kernel(5): no one else may fork in this pid namespace meanwhile.
    """
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    child = os.fork()
    if child not in (0, pid):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise OSError(errno.EEXIST, f"{pid} is taken")
    return child


def start(argv: Sequence[str], descriptors: tuple[int, int, int], pid: int | None = None) -> int:
    """Start *argv*, as process *pid* where given, with these for 0, 1 and 2; it dies with its parent."""
    parent = os.getpid()
    child = os.fork() if pid is None else fork_with_pid(pid)
    if child != 0:
        return child
    try:
        die_with_parent(parent)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.execv(argv[0], list(argv))
    finally:
        os._exit(127)
