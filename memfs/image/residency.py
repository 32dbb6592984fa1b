"""How much of a stretch of memory is there, in memory or swapped out, as far as the page tables tell.

The kernel walks them all to say so: 3 ms for each GiB of small pages. That is asked with every stat(2) of
a file, several times before a reader has read a byte.
"""

from collections.abc import Hashable, Sequence

from memfs.linux.pagemap import Scanner
from memfs.linux.span import Span
from memfs.target.kept import Kept
from memfs.target.layout import Region
from memfs.target.space import Space

_LONG_S = 0.001
"""What takes less is counted anew each time."""


class ResidencyCounter:
    """Counts, and remembers what took long."""

    def __init__(self) -> None:
        self._kept: Kept[tuple[Hashable, Span], int] = Kept(_LONG_S)

    def held_bytes(self, owner: Hashable, space: Space, span: Span) -> int:
        """How many bytes of *span* are there in *space*, which is that of *owner*."""
        return self._kept.get((owner, span), lambda: _count(space, span))


def _count(space: Space, span: Span) -> int:
    return sum(run.span.size for run in space.pages(span, Scanner()) if run.held)


def held_by_region(space: Space, regions: Sequence[Region]) -> list[int]:
    """Bytes that each of *regions*, in order, holds: one walk through the page tables for all."""
    held = [0] * len(regions)
    if not regions:
        return held
    at = 0
    for run in space.pages(Span(regions[0].span.start, regions[-1].span.end), Scanner()):
        if not run.held:
            continue
        while regions[at].span.end <= run.span.start:
            at += 1
        while at < len(regions) and regions[at].span.start < run.span.end:
            held[at] += regions[at].span.clip(run.span).size
            if regions[at].span.end > run.span.end:
                break
            at += 1
        if at == len(regions):
            break
    return held
