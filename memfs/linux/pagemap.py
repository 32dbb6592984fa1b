"""Which pages of a mapping hold something, asked of the kernel without touching one.

PAGEMAP_SCAN (Linux 6.7, ``Documentation/admin-guide/mm/pagemap.rst``) walks the page tables and
returns runs; before it, ``/proc/PID/pagemap`` gives eight bytes a page. Both are read through a
descriptor of ``/proc/PID/pagemap``, which belongs to the address space that it was opened on.

To entries an address space that is gone looks like one in which nothing was touched. So whoever
turns UNTOUCHED into zeros must make sure that what is mapped there is what it was taken for.
"""

import ctypes
import enum
import errno
import fcntl
import os
import re
import struct
import sys
from collections.abc import Iterator

import attrs

from memfs.linux.span import PAGE_BYTES, Span


class PageKind(enum.IntEnum):
    """What a page table says of a page that it knows."""

    OWN = 0
    """Memory of the process itself: anonymous, or its private copy of a file's page."""
    FILE = 1
    """A page of a file or of shared memory. Who does not ask for the difference is told OWN."""
    EMPTY = 2
    """Reads as zeros: the shared zero page, or a guard region, behind which there is no page."""
    UNTOUCHED = 3
    """Mapped, and the page tables know no page: it was never touched, or only by others."""


class _Category(enum.IntFlag):
    """``PAGE_IS_*`` of ``<linux/fs.h>``; GUARD came with Linux 6.16."""

    WRITTEN = 1 << 1
    FILE = 1 << 2
    PRESENT = 1 << 3
    SWAPPED = 1 << 4
    PFNZERO = 1 << 5
    GUARD = 1 << 8


class _Entry(enum.IntFlag):
    """The bits of a ``/proc/PID/pagemap`` entry; GUARD came with Linux 6.15."""

    GUARD = 1 << 58
    FILE = 1 << 61
    SWAPPED = 1 << 62
    PRESENT = 1 << 63


_PAGEMAP_SCAN = 0xC060_6610  # _IOWR('f', 16, struct pm_scan_arg)
_SCAN_ARGUMENT = struct.Struct("=12Q")
_WALK_END = struct.Struct("=Q")
_WALK_END_OFFSET = 32
_REGION = struct.Struct("=3Q")  # struct page_region
MOST_RUNS = 512
"""The runs that one call to the kernel can return."""

# The kernel holds the lock of the memory map for a whole walk, and who maps memory in the process waits.
# So no walk passes more pages than it can in 2 ms: fewer where it looks at each of them.
_MOST_PAGES = 1 << 17
_MOST_PAGES_LOOKED_AT = 1 << 14
_REACH_IN_NOTHING = 16
"""Where all that was passed was never touched, so many times as many pages are passed next: that takes no
time, and reservations of terabytes are common."""
_WP_MATCHING_CHECKED = 3
"""PM_SCAN_WP_MATCHING and PM_SCAN_CHECK_WPASYNC: protect what is told, and be sure that writes are noted."""
_MOST_WRITTEN_RUNS = 1 << 13

_FORMS = (
    int(_Category.PRESENT | _Category.SWAPPED | _Category.PFNZERO | _Category.GUARD),
    int(_Category.PRESENT | _Category.SWAPPED | _Category.PFNZERO),
)
"""What to ask for, best first: a kernel refuses with EINVAL a category that it does not have."""

# Plain numbers, since arithmetic on an IntFlag costs a microsecond and each READ comes by here.
_KNOWN = int(_Category.PRESENT | _Category.SWAPPED)
_PRESENT = int(_Category.PRESENT)
_NO_PAGE = int(_Category.GUARD | _Category.PFNZERO)
_FILE = int(_Category.FILE)
_WRITTEN = int(_Category.WRITTEN)
_ENTRY_KNOWN = int(_Entry.PRESENT | _Entry.SWAPPED)
_ENTRY_PRESENT = int(_Entry.PRESENT)
_ENTRY_GUARD = int(_Entry.GUARD)
_ENTRY_FILE = int(_Entry.FILE)


_HELD = (PageKind.OWN, PageKind.FILE)


@attrs.frozen
class PageRun:
    """Neighbouring pages of one kind.

    Attributes:
        swapped: whether they are swapped out; such pages, and others of their kind, make two runs.
    """

    span: Span
    kind: PageKind
    swapped: bool = False

    @property
    def held(self) -> bool:
        """Whether the page tables hold pages for it, in memory or swapped out."""
        return self.kind in _HELD


class Scanner:
    """Asks for runs of pages. One for each thread: it owns what the kernel is asked with and fills."""

    def __init__(self, *, use_scan: bool = True) -> None:
        self._regions = (ctypes.c_uint64 * (3 * MOST_RUNS))()
        self._regions_address = ctypes.addressof(self._regions)
        self._regions_view = memoryview(self._regions).cast("B")
        self._argument = bytearray(_SCAN_ARGUMENT.size)
        self._forms: tuple[int, ...] = _FORMS if use_scan else ()

    @property
    def uses_scan(self) -> bool:
        """False where the kernel has no PAGEMAP_SCAN, as far as was seen."""
        return bool(self._forms)

    @property
    def knows_guards(self) -> bool:
        """Whether guard regions are told apart, as far as was seen."""
        return self._forms[:1] == _FORMS[:1]

    def runs(
        self, pagemap: int, span: Span, limit: int = MOST_RUNS, *, files: bool = False
    ) -> Iterator[PageRun]:
        """The mapped pages in *span* (page-aligned), in order; what is not mapped is left out.

        Args:
            limit: how many runs the caller is likely to take; asking for one stops the walk early.
            files: tell pages of files from the process's own. For that the kernel looks at each page
                behind the page tables: a walk takes four times as long.
        """
        at = span.start
        reach = 1
        while at < span.end:
            count = self._ask(pagemap, at, span.end, min(limit, MOST_RUNS), files=files, reach=reach)
            if count < 0:
                yield from _read_entries(pagemap, Span(at, span.end), files=files)
                return
            (at,) = _WALK_END.unpack_from(self._argument, _WALK_END_OFFSET)
            reach = _REACH_IN_NOTHING if count == 1 and not self._regions[2] & _KNOWN else 1
            # The array is taken out before the first yield: the next call overwrites it.
            for start, end, categories in list(
                _REGION.iter_unpack(self._regions_view[: count * _REGION.size])
            ):
                kind = _kind_of(categories)
                yield PageRun(Span(start, end), kind, kind in _HELD and not categories & _PRESENT)
            if not count:
                return

    def held_end(self, pagemap: int, start: int, end: int) -> int:
        """Up to where from *start* on, *end* at most, pages are in memory; all page-aligned.

        The same as the first of :meth:`runs`, for who reads page after page: without a value or an
        iterator made.
        """
        count = self._ask(pagemap, start, end, 1, files=False)
        if count < 0:
            run = next(_read_entries(pagemap, Span(start, end), files=False), None)
            return run.span.end if run is not None and run.held and not run.swapped else start
        first, until, categories = _REGION.unpack_from(self._regions_view)
        if not count or first != start or not categories & _PRESENT or categories & _NO_PAGE:
            return start
        return int(until)

    def _ask(self, pagemap: int, start: int, end: int, limit: int, *, files: bool, reach: int = 1) -> int:
        """Have the array filled, by a walk of *reach* times the usual length at most.

        Returns how many runs came, -1 where the kernel does not know the call.
        """
        also, most_pages = (_FILE, _MOST_PAGES_LOOKED_AT) if files else (0, _MOST_PAGES)
        while self._forms:
            _SCAN_ARGUMENT.pack_into(
                self._argument, 0, _SCAN_ARGUMENT.size, 0, start, end, 0, self._regions_address,
                limit, most_pages * reach, 0, 0, 0, self._forms[0] | also,
            )  # fmt: skip
            try:
                count: int = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, self._argument, True)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTTY):
                    raise
                self._forms = self._forms[1:]
            else:
                return count
        return -1


def take_written(pagemap: int, span: Span) -> Iterator[Span]:
    """The pages in *span* that were written since they were protected, see :mod:`memfs.linux.userfaultfd`.

    They are protected again before they are told. A page of which the page tables know nothing counts as
    written: with a page that was swapped out or given back they may have lost the note of it.

    Raises:
        ProcessLookupError: the address space is gone.
        PermissionError: writes to some of it are not noted.
    """
    regions = (ctypes.c_uint64 * (3 * _MOST_WRITTEN_RUNS))()
    view = memoryview(regions).cast("B")
    argument = bytearray(_SCAN_ARGUMENT.size)
    told = _WRITTEN | _PRESENT
    at = span.start
    while at < span.end:
        end = min(at + _MOST_PAGES * PAGE_BYTES, span.end)
        _SCAN_ARGUMENT.pack_into(
            argument, 0, _SCAN_ARGUMENT.size, _WP_MATCHING_CHECKED, at, end, 0,
            ctypes.addressof(regions), _MOST_WRITTEN_RUNS, 0, _PRESENT, 0, told, told | _KNOWN,
        )  # fmt: skip
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument, True)
        (at,) = _WALK_END.unpack_from(argument, _WALK_END_OFFSET)
        for start, end, categories in _REGION.iter_unpack(view[: count * _REGION.size]):
            if categories & _WRITTEN or not categories & _KNOWN:
                yield Span(start, end)


def _kind_of(categories: int) -> PageKind:
    if not categories & _KNOWN:
        return PageKind.UNTOUCHED
    if categories & _NO_PAGE:
        return PageKind.EMPTY
    return PageKind.FILE if categories & _FILE else PageKind.OWN


_ENTRY_BYTES = 8
_FIRST_ENTRIES = 1 << 7
_MOST_ENTRIES = 1 << 17
_ENTRIES_GROWTH = 4
"""A walk begins with few entries, since most who ask want the next run, and then reads more and more of
them: the kernel takes as long for a page that is not there as for any other."""

# What a run is made of: the byte that holds the bits which tell, the uppermost, as one letter for a page.
_UNTOUCHED, _EMPTY, _OWN, _FILED, _OWN_OUT, _FILED_OUT = b"uedfDF"
_MEANINGS = {
    _UNTOUCHED: (PageKind.UNTOUCHED, False),
    _EMPTY: (PageKind.EMPTY, False),
    _OWN: (PageKind.OWN, False),
    _FILED: (PageKind.FILE, False),
    _OWN_OUT: (PageKind.OWN, True),
    _FILED_OUT: (PageKind.FILE, True),
}
_ENTRY_UPPERMOST = 56
_UPPERMOST_BYTE = 7 if sys.byteorder == "little" else 0


def _letter_of(uppermost: int, *, files: bool) -> int:
    entry = uppermost << _ENTRY_UPPERMOST
    if not entry & _ENTRY_KNOWN:
        return _UNTOUCHED
    if entry & _ENTRY_GUARD:
        return _EMPTY
    out = not entry & _ENTRY_PRESENT
    if files and entry & _ENTRY_FILE:
        return _FILED_OUT if out else _FILED
    return _OWN_OUT if out else _OWN


_LETTERS = {files: bytes(_letter_of(byte, files=files) for byte in range(256)) for files in (False, True)}
_SAME_LETTERS = re.compile(rb"(.)\1*", re.DOTALL)


def _read_entries(pagemap: int, span: Span, *, files: bool) -> Iterator[PageRun]:
    """The same from pagemap entries.

    They do not tell the zero page, which counts as OWN here, nor what is not mapped at all, which
    counts as UNTOUCHED.

    Raises:
        ProcessLookupError: the address space is gone.
    """
    run: PageRun | None = None
    for found in _entry_runs(pagemap, span, files=files):
        if run is not None and (run.kind, run.swapped) == (found.kind, found.swapped):
            run = PageRun(Span(run.span.start, found.span.end), run.kind, run.swapped)
        else:
            if run is not None:
                yield run
            run = found
    if run is not None:
        yield run


def _entry_runs(pagemap: int, span: Span, *, files: bool) -> Iterator[PageRun]:
    """The same, cut where one read ends and the next begins."""
    at = span.start
    most = _FIRST_ENTRIES
    while at < span.end:
        wanted = min((span.end - at) // PAGE_BYTES, most)
        entries = os.pread(pagemap, wanted * _ENTRY_BYTES, at // PAGE_BYTES * _ENTRY_BYTES)
        if not entries:
            ensure_alive(pagemap)
            return
        letters = entries[_UPPERMOST_BYTE::_ENTRY_BYTES].translate(_LETTERS[files])
        for same in _SAME_LETTERS.finditer(letters):
            kind, swapped = _MEANINGS[letters[same.start()]]
            first, end = same.span()
            yield PageRun(Span(at + first * PAGE_BYTES, at + end * PAGE_BYTES), kind, swapped)
        at += len(letters) * PAGE_BYTES
        most = min(most * _ENTRIES_GROWTH, _MOST_ENTRIES)


def ensure_alive(pagemap: int) -> None:
    """Make sure that the address space has a user still.

    One that is gone has no entries, and a live one has one for address 0, mapped or not, but none for
    addresses above all that a process can map (``pagemap_read`` of fs/proc/task_mmu.c, Linux 6.1 to 6.18).

    Raises:
        ProcessLookupError: it is gone.
    """
    if not os.pread(pagemap, _ENTRY_BYTES, 0):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
