"""What the kernel itself says about another process: the reference that memfs is compared with.

Each function reads /proc/PID anew. None of them goes through memfs.
"""

import ctypes
import errno
import os
import re
import struct
from pathlib import Path

import attrs

from support.held import Span, merge
from support.pattern import PAGE

# Documentation/admin-guide/mm/pagemap.rst. A guard page has the swap bit too; its own came with Linux 6.15.
_PRESENT = (1 << 63) | (1 << 62)
_GUARD = 1 << 58


@attrs.frozen
class MapsLine:
    """One line of /proc/PID/maps."""

    span: Span
    perms: str
    offset: int
    inode: int
    path: bytes
    """As printed: escaped, `` (deleted)`` included, empty where there is none."""


@attrs.frozen
class MemoryUse:
    """What a process has, in bytes."""

    size: int
    rss: int
    anon: int
    file: int
    shmem: int
    page_tables: int


def read_maps(pid: int) -> tuple[MapsLine, ...]:
    """The mappings of a process."""
    pattern = rb"^([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) \S+ (\d+) *(.*)$"
    lines = re.finditer(pattern, Path(f"/proc/{pid}/maps").read_bytes(), re.MULTILINE)
    return tuple(_maps_line(*line.groups()) for line in lines)


def _maps_line(start: bytes, end: bytes, perms: bytes, offset: bytes, inode: bytes, path: bytes) -> MapsLine:
    span = Span(int(start, 16), int(end, 16))
    return MapsLine(span, perms.decode(), int(offset, 16), int(inode), path)


def read_memory(pid: int, span: Span) -> bytes:
    """The bytes at *span*, by /proc/PID/mem.

    Raises:
        OSError: EIO, where any page of it cannot be read.
    """
    content = bytearray()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        while len(content) < span.length:
            content += os.pread(memory.fileno(), span.length - len(content), span.start + len(content))
    return bytes(content)


def read_present(pid: int, span: Span) -> tuple[Span, ...]:
    """The pages of *span* that are in the process's page table, or swapped, merged."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), span.length // PAGE * 8, span.start // PAGE * 8)
    entries = (entry for (entry,) in struct.iter_unpack("<Q", data))
    starts = (
        span.start + index * PAGE
        for index, entry in enumerate(entries)
        if entry & _PRESENT and not entry & _GUARD
    )
    return merge(Span(start, start + PAGE) for start in starts)


def read_memory_use(pid: int) -> MemoryUse:
    """The figures of /proc/PID/status, which reading does not change."""
    status = Path(f"/proc/{pid}/status").read_text()
    names = ("VmSize", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmPTE")
    figures = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return MemoryUse(*(int(figures[name]) * 1024 for name in names))


class _IoVector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_memory_waiting(pid: int, span: Span) -> bytes:
    """The bytes at *span*, by process_vm_readv, which waits for a userfaultfd where /proc/PID/mem gives EIO.

    Raises:
        OSError: EFAULT, where not all of it can be read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    content = ctypes.create_string_buffer(span.length)
    local = _IoVector(ctypes.addressof(content), span.length)
    remote = _IoVector(span.start, span.length)
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    got = libc.process_vm_readv(pid, ctypes.byref(local), one, ctypes.byref(remote), one, zero)
    if got != span.length:
        number = ctypes.get_errno() if got < 0 else errno.EFAULT
        raise OSError(number, os.strerror(number))
    return content.raw


def children_of(pid: int) -> set[int]:
    """The children of a process, zombies and those too that its wait(2) would not show."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def thread_states(pid: int) -> dict[int, tuple[str, int]]:
    """The state letter of each thread, and the pid of who traces it."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(re.findall(r"^(State|TracerPid):\t(\w+)", status.read_text(), re.MULTILINE))
        found[int(status.parent.name)] = (fields["State"], int(fields["TracerPid"]))
    return found
