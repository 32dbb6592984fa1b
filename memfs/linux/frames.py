"""Which pages two address spaces share: by the numbers of the frames that their page tables name.

A frame that both name at one address is one page of memory, and to a page that two processes share no
one can write without getting another one first. ``Documentation/admin-guide/mm/pagemap.rst`` describes
the entries; since Linux 4.2 the kernel shows frame numbers only to those with CAP_SYS_ADMIN.
"""

import functools
import mmap
import operator
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import address_of

_ENTRY_BYTES = 8
_PIECE_BYTES = 32 << 20
"""What is compared at once: 64 KiB of entries, which stay in a CPU's cache."""
_THREADS = 2
_FRAME = (1 << 55) - 1
_FILE = 1 << 61
_KNOWN = 1 << 62 | 1 << 63  # swapped out, present
_CHANGED = b"\1"
_SAME = b"\0"


def shows_frames() -> bool:
    """Whether this process is shown frame numbers: looks at a page of its own."""
    page = mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[0] = 1
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entry = os.pread(fd, _ENTRY_BYTES, address_of(page) // PAGE_BYTES * _ENTRY_BYTES)
    finally:
        os.close(fd)
    return int.from_bytes(entry, "little") & _FRAME != 0


class Comparer:
    """Compares page tables. It has two threads: reading the tables is what takes the time."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="frames")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def differing(self, one: int, other: int, span: Span, *, own_only: bool = False) -> Iterator[Span]:
        """The pages in *span* (page-aligned) that are not proven the same, in order, neighbours merged.

        Args:
            one, other: descriptors of ``/proc/PID/pagemap``, opened by who is shown frame numbers.
            own_only: pages of a file count as the same whatever the tables say: the file is known to be.

        Raises:
            ProcessLookupError: one of the address spaces is gone.
        """
        pieces = [
            Span(start, min(start + _PIECE_BYTES, span.end))
            for start in range(span.start, span.end, _PIECE_BYTES)
        ]
        compare = functools.partial(self._compare, one, other, own_only=own_only)
        found = self._pool.map(compare, pieces) if len(pieces) > 1 else map(compare, pieces)
        begin = -1  # of the run of changed pages that we are in; else -1
        for piece, flags in zip(pieces, found, strict=True):
            at = 0
            while at < len(flags):
                end = flags.find(_CHANGED if begin < 0 else _SAME, at)
                if end < 0:
                    break
                at = end
                address = piece.start + at * PAGE_BYTES
                if begin < 0:
                    begin = address
                else:
                    yield Span(begin, address)
                    begin = -1
            if begin >= 0 and not flags:
                yield Span(begin, piece.start)
                begin = -1
        if begin >= 0:
            yield Span(begin, span.end)

    def _compare(self, one: int, other: int, piece: Span, *, own_only: bool) -> bytes:
        """For each page 1 where it is not proven the same; empty where all are."""
        before = self._read(0, one, piece)
        there = self._read(1, other, piece)
        # A frame may have been given back between the two looks, and taken again for the other: so
        # whoever named it before must still name it after.
        after = self._read(2, one, piece)
        if before == there == after:
            return b""
        tables = [table.cast("Q") for table in (before, there, after)]
        mine, theirs, again = (
            [_own(entry) for entry in table] if own_only else table.tolist() for table in tables
        )
        flags = bytes(map(operator.ne, mine, theirs))
        if mine != again:
            flags = bytes(map(operator.or_, flags, map(operator.ne, mine, again)))
        return flags if _CHANGED in flags else b""

    def _read(self, number: int, pagemap: int, piece: Span) -> memoryview:
        wanted = piece.size // PAGE_BYTES * _ENTRY_BYTES
        if not hasattr(self._own, "pieces"):
            self._own.pieces = [bytearray(_PIECE_BYTES // PAGE_BYTES * _ENTRY_BYTES) for _ in range(3)]
        view = memoryview(self._own.pieces[number])[:wanted]
        if os.preadv(pagemap, (view,), piece.start // PAGE_BYTES * _ENTRY_BYTES) != wanted:
            raise ProcessLookupError("the address space is gone")
        return view


def _own(entry: int) -> int:
    """*entry*, if it is of a page of the process's own; 0 for pages of files, and for none."""
    return entry if entry & _KNOWN and not entry & _FILE else 0
