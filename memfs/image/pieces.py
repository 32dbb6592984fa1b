"""From where each byte of an address space is to be read, by the kind of memory that is mapped there.

What the page tables do not know is never read through the target, which would fault it in, but taken from
the object that is mapped there; where nothing is, it is a hole.
"""

from collections.abc import Iterable, Iterator

from memfs.image.objects import Objects, to_file
from memfs.image.present import Present
from memfs.image.source import Piece, Workspace
from memfs.image.swapreader import add_memory
from memfs.linux.pagemap import PageKind, PageRun, Scanner
from memfs.linux.span import PAGE_BYTES, Span, tiles
from memfs.target.layout import Kind, Layout, Region
from memfs.target.space import Space, unmapped


class PieceFinder:
    """Finds the pieces of one address space. It owns none of what it is given."""

    def __init__(self, space: Space, objects: Objects, present: Present, *, flat: bool) -> None:
        """Find pieces of *space*; where nothing is mapped, a *flat* source has zeros, others an error."""
        self._space = space
        self._objects = objects
        self._present = present
        self._flat = flat

    def find(self, layout: Layout, wanted: Span, workspace: Workspace) -> list[Piece]:
        """Return the pieces that tile the addresses *wanted*, of which *layout* says what is mapped.

        Raises:
            MemfsError: a part of them cannot be read.
        """
        found: list[Piece] = []
        for part, region in tiles(wanted, layout.over(wanted)):
            if region is None:
                found.append(self._nothing(part))
            elif region.served:
                found += self._objects.served.pieces(region, part, workspace)
            elif region.kind is Kind.ANONYMOUS:
                self._add_anonymous(layout, part, workspace.scanner, found)
            else:
                self._add_pieces(region, part, workspace.scanner, found)
        return found

    def _add_pieces(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        if region.kind is Kind.PRIVATE_FILE:
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
        """Return *part* as bytes of the mm, PROT_NONE or not; a read of them faults missing pages in."""
        return Piece(part.size, self._space.mem, part.start, cached=False)

    def _fetched(self, part: Span) -> Piece:
        """Return *part*, which a userfaultfd has to supply first; no userfaultfd serves a frozen copy."""
        if not self._space.waits:
            raise unmapped(part.start)
        return self._memory(part)

    def _nothing(self, part: Span) -> Piece:
        """Return *part*, at whose addresses nothing can be read."""
        if not self._flat:
            raise unmapped(part.start)
        return _zeros(part.size)

    def _add_anonymous(self, layout: Layout, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        if self._present.is_held(layout, part.start, part.end, scanner):
            found.append(self._memory(part))
            return
        runs = list(self._space.pages(part.page_aligned(), scanner))
        if any(not run.held for run in runs) and self._space.is_fetched(part):
            found.append(self._fetched(part))
        else:
            self._add_runs(part, runs, found)

    def _add_runs(self, part: Span, runs: Iterable[PageRun], found: list[Piece]) -> None:
        for span, run in tiles(part, runs):
            if run is None:
                found.append(self._nothing(span))
            elif run.held:
                add_memory(found, self._space, span, swapped=run.swapped, ahead=True)
            else:
                found.append(_zeros(span.size))

    def _add_private_file(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        runs = self._space.pages(part.page_aligned(), scanner, files=True)
        own = (run for run in runs if run.kind in (PageKind.OWN, PageKind.EMPTY))
        for span, run in tiles(part, own):
            if run is None:
                self._add_object(region, span, scanner, found)
            elif run.kind is PageKind.OWN:
                add_memory(found, self._space, span, swapped=run.swapped, ahead=False)
            else:
                found.append(_zeros(span.size))

    def _add_object(self, region: Region, part: Span, scanner: Scanner, found: list[Piece]) -> None:
        """Add the bytes of *part* as the mapped object has them; behind its end there are zeros.

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
        """Cut *part* by what the page tables say of its pages."""
        if part:
            for span, run in tiles(part, self._space.pages(part.page_aligned(), scanner)):
                yield span, run.kind if run is not None else PageKind.UNTOUCHED


def _zeros(size: int) -> Piece:
    return Piece(size, None, 0, cached=False)
