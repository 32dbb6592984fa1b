"""Where an address space has data and where holes: SEEK_DATA and SEEK_HOLE, by the kind of memory."""

import os

from memfs.image.objects import Objects, find_in_file, to_file
from memfs.image.present import Present
from memfs.linux.pagemap import PageKind, Scanner
from memfs.linux.span import PAGE_BYTES, Span, tiles
from memfs.target.layout import Kind, Layout, Region
from memfs.target.space import Space, unmapped

_FIRST_REACH_BYTES = 4 << 20
_REACH_GROWTH = 16
"""How much is searched for data or for a hole first, and how many times as much each time after that."""
_LARGE_BYTES = 16 << 30
"""To look through entries of pagemap of so much takes longer than to read smaps, of most processes."""


class HoleFinder:
    """Finds data and holes in one address space. It owns none of what it is given."""

    def __init__(self, space: Space, objects: Objects, present: Present, *, flat: bool) -> None:
        """Search *space*; where nothing is mapped, a *flat* source has a hole, others have an error."""
        self._space = space
        self._objects = objects
        self._present = present
        self._flat = flat

    def find(self, layout: Layout, wanted: Span, scanner: Scanner, *, data: bool) -> int:
        """Return the first address in *wanted* that is *data*, or else in a hole; its end if there is none.

        Raises:
            MemfsError: nothing can be read there.
        """
        for part, region in tiles(wanted, layout.over(wanted)):
            if region is not None:
                at = self._find_in(region, part, scanner, data=data)
                if at < part.end:
                    return at
            elif self._has_hole(part) and not data:
                return part.start
        return wanted.end

    def _has_hole(self, part: Span) -> bool:
        """Return True for *part*, at whose addresses nothing can be read, or raise the error for it."""
        if not self._flat:
            raise unmapped(part.start)
        return True

    def _find_in(self, region: Region, part: Span, scanner: Scanner, *, data: bool) -> int:
        """Do the same inside one region; returns the end of *part* where there is none in it."""
        if region.kind is Kind.UNREADABLE:
            self._has_hole(part)
            return part.end if data else part.start
        # To search a file for holes that another process serves would be to ask that process.
        if region.kind in (Kind.OPAQUE, Kind.ABSENT) or region.served or self._space.is_fetched(part):
            return part.start if data else part.end
        if region.kind is Kind.COPIED:
            return find_in_file(self._space.copied, part, self._space.copied_shift(region), data=data)
        if region.kind is Kind.ANONYMOUS:
            return self._find_page(region, part, scanner, data=data)
        fd = self._objects.open(region)
        if fd < 0:
            return part.start if data else part.end
        if region.kind is Kind.SHARED:
            return self._find_in_object(region, part, fd, scanner, data=data)
        return self._find_in_both(region, part, fd, scanner, data=data)

    def _find_in_object(self, region: Region, part: Span, fd: int, scanner: Scanner, *, data: bool) -> int:
        """Search the mapped object; behind its end the page tables alone know of data."""
        end = os.fstat(fd).st_size - to_file(region.mapping)
        behind = min(part.end, max(part.start, -(-end // PAGE_BYTES) * PAGE_BYTES))
        if behind > part.start:
            at = find_in_file(fd, Span(part.start, behind), to_file(region.mapping), data=data)
            if at < behind:
                return at
        return self._find_page(region, Span(behind, part.end), scanner, data=data)

    def _find_page(self, region: Region, part: Span, scanner: Scanner, *, data: bool) -> int:
        """Search the page tables alone, in windows: the kernel walks further than to what is found."""
        at = part.start
        reach_bytes = _FIRST_REACH_BYTES
        while at < part.end:
            window = Span(at, min(at + reach_bytes, part.end))
            large = window.size >= _LARGE_BYTES and not scanner.uses_scan
            if data and large and self._is_untouched(region):
                return part.end
            for span, run in tiles(window, self._space.pages(window.page_aligned(), scanner, 2)):
                if run is None:
                    if self._has_hole(span) and not data:
                        return span.start
                elif run.held is data:
                    if data and not run.swapped:
                        self._present.note(run.span)
                    return span.start
            at = window.end
            reach_bytes *= _REACH_GROWTH
        return part.end

    def _is_untouched(self, region: Region) -> bool:
        """Return whether the page tables hold no page of the VMA of *region*: most large reservations are so.

        Entries of pagemap are 2 MiB for each GiB of it; for smaps the kernel passes over what is not there.
        """
        use = self._space.uses_now().get(region.span.start)
        if use is None or use.resident_bytes or use.swapped_bytes or b"ht" in use.flags:
            return False  # pages of hugetlbfs smaps does not count as resident
        return [found.span for found in self._space.mappings_over(region.span)] == [region.span]

    def _find_in_both(self, region: Region, part: Span, fd: int, scanner: Scanner, *, data: bool) -> int:
        """Search a private file mapping: data is what the process wrote, and what the file has."""
        runs = self._space.pages(part.page_aligned(), scanner, files=True)
        own = (run for run in runs if run.kind in (PageKind.OWN, PageKind.EMPTY))
        for span, run in tiles(part, own):
            if run is None:
                at = self._find_in_object(region, span, fd, scanner, data=data)
                if at < span.end:
                    return at
            elif data is (run.kind is PageKind.OWN):
                return span.start
        return part.end
