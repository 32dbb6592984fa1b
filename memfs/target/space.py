"""What can be asked of an address space, be it of a running process or of a frozen copy of one."""

import abc
import os
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as ReadOnlyDict
from typing import ClassVar, Self

from memfs.errors import RangeUnmapped
from memfs.linux.maps import Mapping
from memfs.linux.pagemap import MOST_RUNS, PageRun, Scanner
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.stat import Stat
from memfs.target.identity import Identity
from memfs.target.layout import USER_END, Layout, Region


class Space(abc.ABC):
    """One address space, held. The owner closes it.

    Attributes:
        waits: whether a page that is missing may still be supplied by someone.
        identity: the process.
        stat: where its heap, its stack and its code begin.
        mem: a descriptor in which the byte at each address lies at that offset.
        copied: descriptor of what was copied out of it, Kind.COPIED; -1 where nothing was.
    """

    waits: ClassVar[bool]
    identity: Identity
    stat: Stat
    mem: int
    copied: int = -1

    @abc.abstractmethod
    def close(self) -> None:
        """Let go; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    def maps_text(self) -> bytes:
        """The text of ``/proc/PID/maps``."""

    @abc.abstractmethod
    def layout(self) -> Layout:
        """All that is mapped."""

    @abc.abstractmethod
    def layout_over(self, span: Span) -> Layout:
        """What is mapped in *span* and meets it; cheap where the process has many VMAs."""

    @abc.abstractmethod
    def mappings_over(self, span: Span, *, paths: bool = False) -> Iterator[Mapping]:
        """The VMAs that meet *span*, in order; with their *paths* only if asked for.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """

    @property
    def looks_quickly(self) -> bool:
        """Whether :meth:`mappings_over` takes no longer than what it finds: before Linux 6.11 it does."""
        return True

    @abc.abstractmethod
    def ensure_alive(self) -> None:
        """Make sure that the mm is still there.

        Raises:
            TargetExited, TargetReplaced: it is gone.
        """

    @abc.abstractmethod
    def uses(self) -> ReadOnlyDict[int, MemoryUse]:
        """What smaps says of each VMA, by its start address."""

    @abc.abstractmethod
    def uses_now(self) -> ReadOnlyDict[int, MemoryUse]:
        """The same, and of this moment.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """

    @abc.abstractmethod
    def is_fetched(self, span: Span) -> bool:
        """Whether a userfaultfd supplies missing pages in some part of *span*."""

    @abc.abstractmethod
    def pages(
        self, span: Span, scanner: Scanner, limit: int = MOST_RUNS, *, files: bool = False
    ) -> Iterator[PageRun]:
        """What the page tables know of *span*, see :meth:`Scanner.runs`.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """

    def held_end(self, start: int, end: int, scanner: Scanner) -> int:
        """Up to where, from *start* on and *end* at most, all pages are in memory; all page-aligned.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        run = next(self.pages(Span(start, end), scanner, 1), None)
        return run.span.end if run is not None and run.held and not run.swapped else start

    @abc.abstractmethod
    def read_waiting(self, address: int, view: memoryview) -> int:
        """Read pages that a userfaultfd supplies, waiting for it; returns how many bytes came.

        Raises:
            TargetExited, TargetReplaced: it may have been another program's memory.
            RangeUnmapped: nothing can be read there.
        """

    @abc.abstractmethod
    def expect_swapped(self, spans: Sequence[Span], *, ahead: bool) -> None:
        """Get ready for a read of *spans*, which are swapped out, see :meth:`SwapKeeper.expect`.

        Raises:
            NoRoom: they would stay in memory, for which there is no room.
        """

    @abc.abstractmethod
    def put_back(self, spans: Sequence[Span]) -> None:
        """Have *spans*, which were swapped out before they were read, swapped out again."""

    def copied_bytes(self, region: Region) -> int:
        """How much of *region*, which is Kind.COPIED, was copied from its start; the rest cannot be read."""
        return region.span.size

    def copied_shift(self, region: Region) -> int:  # noqa: ARG002 nothing is copied of a running process
        """What must be added to an address in *region*, which is Kind.COPIED, for its offset in `copied`."""
        return 0

    def read_present(self, address: int, view: memoryview) -> bool:
        """Copy pages that are known to be there; False where *view* must be filled in some other way."""
        try:
            return os.preadv(self.mem, (view,), address) == len(view)
        except OSError:
            return False

    @abc.abstractmethod
    def open_backing(self, mapping: Mapping) -> int:
        """Open the object that *mapping* shows: a file, a memfd, shared memory. The caller closes it.

        Raises:
            OSError: it cannot be had; then its pages are read through the address space.
        """

    @property
    @abc.abstractmethod
    def objects_pid(self) -> int:
        """The process by whose map_files the mapped objects can be reached.

        Raises:
            RangeUnmapped: there is none.
        """

    @abc.abstractmethod
    def ensure_shows(self, mapping: Mapping) -> None:
        """Make sure that what was just opened or read by :attr:`objects_pid` is what *mapping* shows.

        Raises:
            RangeUnmapped: it is mapped there no more.
            TargetExited, TargetReplaced: it may be another program's.
        """

    @abc.abstractmethod
    def ensure_unchanged(self, mapping: Mapping, mtime_ns: int, size_bytes: int) -> None:
        """Make sure that the object which *mapping* shows still has the bytes that it should show.

        *mtime_ns* and *size_bytes* are what stat(2) tells of it now.

        Raises:
            RangeUnmapped: it has not.
        """

    def region_at(self, address: int) -> Region | None:
        """The region that covers *address*."""
        return next(iter(self.layout_over(Span(address, address + 1)).regions), None)

    def heap(self) -> Region | None:
        """The heap of brk(2): the first part of it, where mprotect has split it."""
        # It begins on the page behind the program's data, heap_start need not be on a page's start.
        found = self.layout_over(Span(self.stat.heap_start, self.stat.heap_start + PAGE_BYTES)).regions
        return next((region for region in found if _is_named(region, b"[heap]")), None)

    def stack(self) -> Region | None:
        """The main thread's stack."""
        found = self.region_at(self.stat.stack_start)
        return found if found is not None and _is_named(found, b"[stack]") else None

    def text(self) -> Region | None:
        """The first mapping of the executable that can be run."""
        found = self.region_at(self.stat.code_start)
        return found if found is not None and found.mapping.backed else None

    def end(self) -> int:
        """The end of the highest mapping in user space."""
        # Nothing but the vDSO and the like lies above the stack: few VMAs are looked at.
        above = self.mappings_over(Span(self.stat.stack_start, USER_END))
        return max((mapping.span.end for mapping in above), default=0) or self.layout().end


def _is_named(region: Region, name: bytes) -> bool:
    """Whether the kernel calls it so: what a file is called, its owner chooses."""
    return region.mapping.path == name and not region.mapping.backed


def unmapped(address: int) -> RangeUnmapped:
    """The error for an address at which nothing can be read."""
    return RangeUnmapped(f"nothing can be read at address {address:#x}")
