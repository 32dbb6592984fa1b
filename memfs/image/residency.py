"""How much of a stretch of memory is there, in memory or swapped out, as far as the page tables tell.

The kernel walks them all to say so: 3 ms for each GiB of small pages. That is asked with every stat(2) of
a file, several times before a reader has read a byte.
"""

from collections.abc import Hashable, Sequence

from memfs.linux.pagemap import Scanner
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.kept import Kept
from memfs.target.layout import Region
from memfs.target.space import Space

_LONG_S = 0.001
"""What takes less is counted anew each time."""
_LARGE_BYTES = 1 << 30
"""A reservation, most of it likely never touched: entries of pagemap there are 2 MiB for each GiB."""


class ResidencyCounter:
    """Counts, and remembers what took long."""

    def __init__(self) -> None:
        self._kept: Kept[tuple[Hashable, Span], int] = Kept(_LONG_S)

    def held_bytes(self, owner: Hashable, space: Space, span: Span) -> int:
        """How many bytes of *span* are there in *space*, which is that of *owner*."""
        return self._kept.get((owner, span), lambda: _count(space, span))


def _count(space: Space, span: Span) -> int:
    scanner = Scanner()
    if _is_told_by_smaps(space, span, scanner) and (use := space.uses().get(span.start)):
        return min(use.resident_bytes + use.swapped_bytes, span.size)
    return sum(run.span.size for run in space.pages(span, scanner) if run.held)


def _is_told_by_smaps(space: Space, span: Span, scanner: Scanner) -> bool:
    """Whether smaps is read sooner than entries: for it the kernel passes over what is not there."""
    if span.size < _LARGE_BYTES:
        return False
    next(space.pages(Span(span.start, span.start + PAGE_BYTES), scanner), None)
    if scanner.uses_scan:
        return False
    # Pages of hugetlbfs smaps does not count as resident.
    return (use := space.uses().get(span.start)) is not None and b"ht" not in use.flags


def held_by_region(space: Space, regions: Sequence[Region]) -> list[int]:
    """Bytes that each of *regions*, in order, holds: one walk for those without a gap between them."""
    held: list[int] = []
    scanner = Scanner()
    together: list[Region] = []
    for region in regions:
        if together and region.span.start != together[-1].span.end:
            held += _held_together(space, together, scanner)
            together = []
        if _is_told_by_smaps(space, region.span, scanner):
            held += _held_together(space, together, scanner)
            together = []
            held.append(_count(space, region.span))
        else:
            together.append(region)
    return held + _held_together(space, together, scanner)


def _held_together(space: Space, regions: Sequence[Region], scanner: Scanner) -> list[int]:
    """The same for regions that follow each other without a gap."""
    held = [0] * len(regions)
    if not regions:
        return held
    at = 0
    for run in space.pages(Span(regions[0].span.start, regions[-1].span.end), scanner):
        while at < len(regions) and regions[at].span.end <= run.span.start:
            at += 1
        while at < len(regions) and regions[at].span.start < run.span.end:
            if run.held:
                held[at] += regions[at].span.clip(run.span).size
            if regions[at].span.end > run.span.end:
                break
            at += 1
    return held
