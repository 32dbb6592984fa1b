"""The memory of a process, running or frozen, as a source of bytes.

Offsets are the source's, addresses the target's; nothing else is converted here. What is read from where
is found by :mod:`memfs.image.pieces`, data and holes by :mod:`memfs.image.holes`.

"Nothing there" is also what a dead or an unmapped address space looks like. So a stretch of which
not every byte came out of the open mm itself is looked at again, after it was read.
"""

import contextlib
import os
import time

from memfs.errors import AccessDenied, RangeUnmapped
from memfs.image.holes import HoleFinder
from memfs.image.objects import Objects
from memfs.image.pieces import PieceFinder
from memfs.image.present import Present
from memfs.image.source import Backing, Piece, Source, Workspace
from memfs.linux.maps import Access
from memfs.linux.pagemap import PageKind, Scanner
from memfs.linux.pipe import can_splice
from memfs.linux.protected import shows_protected
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, Layout, Region
from memfs.target.space import Space, unmapped

_IN_PAGE_CACHE = (Kind.SHARED, Kind.PRIVATE_FILE, Kind.COPIED)
_AHEAD_BYTES = 4 << 20
_MAPPED_S = 0.02
"""How much further than it was searched what is mapped is looked at, and how long that is believed."""


class Memory(Source):
    """A range of a process's addresses: one VMA, or the flat address space.

    It owns the address space, and descriptors of the objects mapped there, each opened when needed.
    """

    def __init__(self, space: Space, layout: Layout, span: Span, *, flat: bool) -> None:
        """Show the addresses of *span*; where nothing is mapped, a *flat* source has holes."""
        self.size_bytes = span.size
        self.has_cached_pages = any(r.kind in _IN_PAGE_CACHE for r in layout.over(span))
        self.keeps = not space.waits and not self.has_cached_pages
        self._space = space
        self._layout = layout
        self._span = span
        self._flat = flat
        self._objects = Objects(space)
        self._present = Present(space)
        self._pieces = PieceFinder(space, self._objects, self._present, flat=flat)
        self._holes = HoleFinder(space, self._objects, self._present, flat=flat)
        self._mapped = Span(0, 0), 0.0

    def close(self) -> None:
        """Close the address space and all objects that were opened for it."""
        self._space.close()
        self._objects.close()

    def may_be_cached(self) -> bool:
        return not self._space.is_fetched(self._span)

    def backing(self) -> Backing | None:
        """Return the object, where a running process maps it shared and from its first byte on.

        A private mapping has none: the process may write to a page at any time, which is its own then.
        Where a userfaultfd supplies pages, those that are not in the object yet are no zeros.
        """
        if self._flat or not self._space.waits:
            return None
        regions = list(self._layout.over(self._span))
        if len(regions) != 1 or regions[0].kind is not Kind.SHARED or regions[0].span != self._span:
            return None
        region = regions[0]
        fd = self._objects.open(region) if not region.mapping.offset else -1
        if fd < 0:
            return None
        found = os.fstat(fd)
        exact = found.st_size == self._span.size and not self._space.is_fetched(self._span) and can_splice(fd)
        return Backing(fd, (found.st_dev, found.st_ino), self._span.size, exact)

    # Reading

    def read_into(self, offset: int, view: memoryview, workspace: Workspace) -> int:
        # The way of nearly every READ of private memory: what is known to be there is just read.
        start = offset + self._span.start
        end = start + len(view)
        if self._present.is_held(self._layout, start, end, workspace.scanner) and self._space.read_present(
            start, view
        ):
            return len(view)
        return super().read_into(offset, view, workspace)

    def still_there(self, offset: int, size: int) -> bool:
        start = offset + self._span.start
        if start not in self._present.last:
            return self._still_mapped(Span(start, start + size))
        try:
            return bool(os.pread(self._space.mem, 1, start))
        except OSError:
            return False

    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:
        return self._pieces.find(self._layout, span.moved(self._span.start), workspace)

    def readable_bytes(self, region: Region, scanner: Scanner) -> int:
        """Return how many bytes of *region*, from its start, can be read: a file or a page may be missing."""
        span = region.span
        if region.kind in (Kind.ABSENT, Kind.UNREADABLE):
            return 0
        if region.kind is Kind.COPIED:
            return self._space.copied_bytes(region)
        if self._space.is_fetched(span) and not self._space.waits:
            return self._held_bytes(span, scanner)
        if region.kind in (Kind.SHARED, Kind.PRIVATE_FILE):
            try:
                self._objects.end(region)
            except RangeUnmapped:
                return self._held_bytes(span, scanner) if region.served else 0
        return span.size

    def _held_bytes(self, span: Span, scanner: Scanner) -> int:
        """Return how many bytes of *span*, from its start, the page tables hold."""
        at = span.start
        for run in self._space.pages(span, scanner):
            if not run.held or run.span.start > at:
                break
            at = run.span.end
        return at - span.start

    def has_own_pages(self, region: Region, scanner: Scanner) -> bool:
        """Whether the process has written to *region*, which is private."""
        return any(run.kind is PageKind.OWN for run in self._space.pages(region.span, scanner, files=True))

    def has_name(self, region: Region) -> bool:
        """Whether a path leads to the object of *region*; False where that is unknown."""
        if region.served:
            with contextlib.suppress(RangeUnmapped):
                return self._objects.served.look(region).links > 0
            return False
        fd = self._objects.open(region)
        return fd >= 0 and os.fstat(fd).st_nlink > 0

    def still_true(self, span: Span, pieces: list[Piece]) -> bool:
        mem = self._space.mem
        for piece in pieces:
            if piece.fd != mem:
                return self._still_mapped(span.moved(self._span.start))
        return True

    def is_settled(self, span: Span) -> bool:
        return self._still_mapped(span.moved(self._span.start))

    def _still_mapped(self, wanted: Span) -> bool:
        """Whether the layout is still right for *wanted*; if not, it is read again."""
        expected = sum(region.span.clip(wanted).size for region in self._layout.over(wanted))
        for mapping in self._space.mappings_over(wanted):
            part = mapping.span.clip(wanted)
            regions = self._layout.over(part)
            known = sum(r.span.clip(part).size for r in regions if r.mapping.same_memory(mapping))
            expected -= part.size
            if known != part.size:
                break
        else:
            if not expected:
                return True
        self._layout = self._space.layout() if self._flat else self._space.layout_over(self._span)
        return False

    def recover(self, offset: int, piece: Piece, view: memoryview) -> int:
        address = offset + self._span.start
        if (
            view
            and piece.fd == self._space.mem
            and self._space.is_fetched(Span(address, address + len(view)))
        ):
            return self._space.read_waiting(address, view)
        # A dead mm gives nothing, a live one an error: asking it for its mappings tells them apart.
        next(self._space.mappings_over(self._span), None)
        if view and self._was_cut_off(address, piece):
            size = min(len(view), -address % PAGE_BYTES or PAGE_BYTES)
            view[:size] = bytes(size)
            return size
        region = self._layout.at(address)
        if region is not None and not region.mapping.access & Access.READ and not shows_protected():
            raise AccessDenied(
                f"the kernel shows no memory that process {self._space.identity.pid} may not read itself",
                "boot it without proc_mem.force_override",
            )
        raise unmapped(address)

    def _was_cut_off(self, address: int, piece: Piece) -> bool:
        """Whether the object of *piece* has been truncated so that it ends before *address*."""
        region = self._layout.at(address)
        if region is None or region.served or region.kind not in (Kind.SHARED, Kind.PRIVATE_FILE):
            return False
        end = self._objects.end(region)
        if end is None or not self._still_mapped(Span(address, address + 1)):
            return False
        if piece.fd != self._space.mem:
            return address >= end
        page = Span(address, address + 1).page_aligned()
        return page.start >= end and not any(run.held for run in self._space.pages(page, Scanner(), 1))

    # Holes

    def next_data(self, offset: int, workspace: Workspace) -> int:
        return self._seek(offset, workspace, data=True)

    def next_hole(self, offset: int, workspace: Workspace) -> int:
        return self._seek(offset, workspace, data=False)

    def _seek(self, offset: int, workspace: Workspace, *, data: bool) -> int:
        base = self._span.start
        while True:
            wanted = Span(offset + base, self._span.end)
            at = self._holes.find(self._layout, wanted, workspace.scanner, data=data)
            if self._was_mapped(Span(offset + base, max(at, offset + base + 1))):
                return at - base

    def _was_mapped(self, passed: Span) -> bool:
        """Return whether the layout holds for *passed*; where that takes long to find, held a moment ago.

        Of the pages themselves nothing is remembered: a walk from run to run asks for each of them.
        """
        if self._space.looks_quickly:
            return self._still_mapped(passed)
        known, until = self._mapped  # both at once: several threads may seek
        if passed.start in known and passed.end <= known.end and time.monotonic() < until:
            self._space.ensure_alive()
            return True
        ahead = Span(passed.start, min(passed.end + _AHEAD_BYTES, self._span.end))
        until = time.monotonic() + _MAPPED_S
        if not self._still_mapped(ahead):
            return False
        self._mapped = ahead, until
        return True
