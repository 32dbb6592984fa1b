"""The memory of a process, running or frozen, as a source: where each byte is, and how to get it unnoticed.

Offsets are the source's, addresses the target's; nothing else is converted here. What the page
tables do not know is never read through the target, which would fault it in, but taken from the
object that is mapped there; where nothing is, it is a hole.

"Nothing there" is also what a dead or an unmapped address space looks like. So a stretch of which
not every byte came out of the open mm itself is looked at again, after it was read.
"""

import contextlib
import os
import time
from collections.abc import Iterator

from memfs.errors import RangeUnmapped
from memfs.image.objects import Objects, find_in_file, to_file
from memfs.image.source import Backing, Piece, Source, Workspace
from memfs.image.swapped import add_memory
from memfs.linux.pagemap import PageKind, PageRun, Scanner
from memfs.linux.pipe import can_splice
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, Layout, Region
from memfs.target.space import Space, unmapped

_IN_PAGE_CACHE = (Kind.SHARED, Kind.PRIVATE_FILE, Kind.COPIED)
_SCAN_AHEAD_BYTES = 8 << 20
_FIRST_REACH_BYTES = 4 << 20
_REACH_GROWTH = 16
"""How far is looked for data or for a hole at first, and how many times as far each time after that."""
_TOUCHED_S = 0.02
"""How long a page that was there is taken to be there. One that is gone meanwhile reads as zeros, as
it should, but reading it maps the zero page into the target."""


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
        self._touched = Span(0, 0), 0.0
        self._dense_up_to = -1

    def close(self) -> None:
        """Let go of the target and of all that was opened for it."""
        self._space.close()
        self._objects.close()

    def may_be_cached(self) -> bool:
        return not self._space.is_fetched(self._span)

    def backing(self) -> Backing | None:
        """The object, where the process maps it shared, from its first byte on, and runs.

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
        if self._is_held(start, end, workspace.scanner) and self._space.read_present(start, view):
            return len(view)
        return super().read_into(offset, view, workspace)

    def _is_held(self, start: int, end: int, scanner: Scanner) -> bool:
        """Whether *start* to *end* is anonymous memory that was all there, not swapped out, a moment ago."""
        touched, until = self._touched  # both at once: several threads may read
        if touched.start <= start and end <= touched.end and time.monotonic() < until:
            return True
        region = self._layout.at(start)
        if region is None or region.kind is not Kind.ANONYMOUS or end > region.span.end:
            return False
        # A reader that goes on in memory that is all there needs no scan for each piece of it.
        ahead = _SCAN_AHEAD_BYTES if start == self._dense_up_to else 0
        first, last = start & -PAGE_BYTES, -(-(end + ahead) // PAGE_BYTES) * PAGE_BYTES
        held_end = self._space.held_end(first, min(last, region.span.end), scanner)
        if held_end < end:
            return False
        self._touched = Span(first, held_end), time.monotonic() + _TOUCHED_S
        self._dense_up_to = held_end
        return True

    def still_there(self, offset: int, size: int) -> bool:
        start = offset + self._span.start
        if start not in self._touched[0]:
            return self._still_mapped(Span(start, start + size))
        try:
            return bool(os.pread(self._space.mem, 1, start))
        except OSError:
            return False

    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:
        wanted = span.moved(self._span.start)
        found: list[Piece] = []
        at = wanted.start
        for region in self._layout.over(wanted):
            part = region.span.clip(wanted)
            if part.start > at:
                found.append(self._nothing(Span(at, part.start)))
            if region.served:
                found += self._objects.served.pieces(region, part, workspace)
            else:
                self._add_pieces(region, part, workspace.scanner, found)
            at = part.end
        if at < wanted.end:
            found.append(self._nothing(Span(at, wanted.end)))
        return found

    def _add_pieces(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        if region.kind is Kind.ANONYMOUS:
            self._add_anonymous(part, scanner, found)
        elif region.kind is Kind.PRIVATE_FILE:
            self._add_private_file(region, part, scanner, found)
        elif region.kind is Kind.SHARED:
            self._add_object(region, part, scanner, found)
        elif region.kind is Kind.OPAQUE:
            found.append(self._memory(part))
        elif region.kind is Kind.COPIED:
            if part.end > region.span.start + self._space.copied_bytes(region):
                raise unmapped(part.end)
            at = part.start + self._space.copied_shift(region)
            found.append(Piece(part.size, self._space.copied, at, cached=True))
        elif region.kind is Kind.ABSENT:
            raise unmapped(part.start)
        else:
            found.append(self._nothing(part))

    def _memory(self, part: Span) -> Piece:
        """Bytes of the mm. This reads what PROT_NONE hides, and faults in what is not there."""
        return Piece(part.size, self._space.mem, part.start, cached=False)

    def _fetched(self, part: Span) -> Piece:
        """Bytes that someone has to supply first, and no one does to a frozen copy."""
        if not self._space.waits:
            raise unmapped(part.start)
        return self._memory(part)

    def _nothing(self, part: Span) -> Piece:
        """Addresses at which nothing can be read."""
        if not self._flat:
            raise unmapped(part.start)
        return _zeros(part.size)

    def _add_anonymous(self, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        if self._is_held(part.start, part.end, scanner):
            found.append(self._memory(part))
            return
        runs = list(self._space.pages(part.page_aligned(), scanner))
        if any(not run.held for run in runs) and self._space.is_fetched(part):
            found.append(self._fetched(part))
        else:
            self._add_runs(part, runs, found)

    def _add_runs(self, part: Span, runs: list[PageRun], found: list[Piece]) -> None:
        at = part.start
        for run in runs:
            piece = run.span.clip(part)
            if not piece:
                continue
            if piece.start > at:
                found.append(self._nothing(Span(at, piece.start)))
            if run.held:
                add_memory(found, self._space, piece, swapped=run.swapped, ahead=True)
            else:
                found.append(_zeros(piece.size))
            at = piece.end
        if at < part.end:
            found.append(self._nothing(Span(at, part.end)))

    def _add_private_file(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        at = part.start
        for run in self._space.pages(part.page_aligned(), scanner, files=True):
            if run.kind not in (PageKind.OWN, PageKind.EMPTY):
                continue
            piece = run.span.clip(part)
            if piece.start > at:
                self._add_object(region, Span(at, piece.start), scanner, found)
            if run.kind is PageKind.OWN:
                add_memory(found, self._space, piece, swapped=run.swapped, ahead=False)
            else:
                found.append(_zeros(piece.size))
            at = piece.end
        if at < part.end:
            self._add_object(region, Span(at, part.end), scanner, found)

    def _add_object(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        """The bytes of *part* as the mapped object has them; behind its end there are zeros.

        In the page in which it ends there may also be what someone wrote there through a mapping: then it
        is in the page cache only, and seen only through the target. So are pages that follow: before Linux
        6.18 a huge page of tmpfs was mapped whole, wherever in it the file ended.
        """
        fd, end = self._objects.open(region), self._objects.end(region)
        if end is None:
            for span, kind in self._kinds(part, scanner):
                found.append(_zeros(span.size) if kind is PageKind.EMPTY else self._memory(span))
            return
        if self._space.is_fetched(part):
            found.append(self._fetched(part))
            return
        into_file = to_file(region.mapping)
        at = min(part.end, max(part.start, end & -PAGE_BYTES))
        if at > part.start:
            found.append(Piece(at - part.start, fd, part.start + into_file, cached=True))
        for span, kind in self._kinds(Span(at, part.end), scanner):
            if kind in (PageKind.OWN, PageKind.FILE):
                found.append(self._memory(span))
                continue
            inside_end = min(span.end, max(span.start, end))
            if inside_end > span.start:
                found.append(Piece(inside_end - span.start, fd, span.start + into_file, cached=True))
            if inside_end < span.end:
                found.append(_zeros(span.end - inside_end))

    def _kinds(self, part: Span, scanner: Scanner) -> Iterator[tuple[Span, PageKind]]:
        """*part*, cut by what the page tables say of its pages."""
        at = part.start
        for run in self._space.pages(part.page_aligned(), scanner) if part else ():
            span = run.span.clip(part)
            if not span:
                continue
            if span.start > at:
                yield Span(at, span.start), PageKind.UNTOUCHED
            yield span, run.kind
            at = span.end
        if at < part.end:
            yield Span(at, part.end), PageKind.UNTOUCHED

    def readable_bytes(self, region: Region, scanner: Scanner) -> int:
        """How many bytes of *region*, from its start, can be read: a file may be gone, a page be missing."""
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
        """How many bytes of *span*, from its start, the page tables hold."""
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
        """Whether a path leads to the object of *region*; False too where that cannot be found out."""
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
        """Whether the layout still holds for *wanted*; if not, it is read anew."""
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
        raise unmapped(address)

    def _was_cut_off(self, address: int, piece: Piece) -> bool:
        """Whether the object of *piece* was made so short meanwhile that nothing is left at *address*."""
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
            at = self._find(offset + base, workspace.scanner, data=data)
            if self._still_mapped(Span(offset + base, max(at, offset + base + 1))):
                return at - base

    def _find(self, address: int, scanner: Scanner, *, data: bool) -> int:
        """The first address from *address* on that is data, or in a hole."""
        rest = Span(address, self._span.end)
        at = address
        for region in self._layout.over(rest):
            part = region.span.clip(rest)
            if part.start > at:
                self._nothing(Span(at, part.start))
                if not data:
                    return at
            at = self._find_in(region, part, scanner, data=data)
            if at < part.end:
                return at
        if at < rest.end:
            self._nothing(Span(at, rest.end))
            if not data:
                return at
        return rest.end

    def _find_in(self, region: Region, part: Span, scanner: Scanner, *, data: bool) -> int:
        """The same inside one region; the end of *part* where there is none in it."""
        if region.kind is Kind.UNREADABLE:
            self._nothing(part)
            return part.end if data else part.start
        # To find holes in what someone else serves would be to ask him.
        if region.kind in (Kind.OPAQUE, Kind.ABSENT) or region.served or self._space.is_fetched(part):
            return part.start if data else part.end
        if region.kind is Kind.COPIED:
            return find_in_file(self._space.copied, part, self._space.copied_shift(region), data=data)
        if region.kind is Kind.ANONYMOUS:
            return self._find_page(part, scanner, data=data)
        fd = self._objects.open(region)
        if fd < 0:
            return part.start if data else part.end
        if region.kind is Kind.SHARED:
            return self._find_in_object(region, part, fd, scanner, data=data)
        return self._find_in_both(region, part, fd, scanner, data=data)

    def _find_in_object(self, region: Region, part: Span, fd: int, scanner: Scanner, *, data: bool) -> int:
        """In the mapped object; behind its end the page tables alone know of data."""
        end = os.fstat(fd).st_size - to_file(region.mapping)
        behind = min(part.end, max(part.start, -(-end // PAGE_BYTES) * PAGE_BYTES))
        if behind > part.start:
            at = find_in_file(fd, Span(part.start, behind), to_file(region.mapping), data=data)
            if at < behind:
                return at
        return self._find_page(Span(behind, part.end), scanner, data=data)

    def _find_page(self, part: Span, scanner: Scanner, *, data: bool) -> int:
        """By the page tables alone: the kernel walks a little further than to what is looked for."""
        at = part.start
        reach_bytes = _FIRST_REACH_BYTES
        while at < part.end:
            window = Span(at, min(at + reach_bytes, part.end))
            for run in self._space.pages(window.page_aligned(), scanner, 2):
                if run.span.start > at:
                    self._nothing(Span(at, run.span.start))
                    if not data:
                        return at
                if run.held is data:
                    at = max(part.start, run.span.start)
                    if data and not run.swapped:
                        self._touched = run.span, time.monotonic() + _TOUCHED_S
                    return at
                at = run.span.end
            if at < window.end:
                self._nothing(Span(at, window.end))
                if not data:
                    return at
                at = window.end
            reach_bytes *= _REACH_GROWTH
        return part.end

    def _find_in_both(self, region: Region, part: Span, fd: int, scanner: Scanner, *, data: bool) -> int:
        """In a private file mapping: data is what was written, and what the file has."""
        at = part.start
        for run in self._space.pages(part.page_aligned(), scanner, files=True):
            if run.kind not in (PageKind.OWN, PageKind.EMPTY):
                continue
            between = Span(at, max(at, run.span.start))
            in_file = self._find_in_object(region, between, fd, scanner, data=data)
            if in_file < between.end:
                return in_file
            if data is (run.kind is PageKind.OWN):
                return between.end
            at = run.span.end
        rest = Span(min(at, part.end), part.end)
        return self._find_in_object(region, rest, fd, scanner, data=data)


def _zeros(size: int) -> Piece:
    return Piece(size, None, 0, cached=False)
