"""How much of a stretch of memory is there, in memory or swapped out, as far as the page tables tell.

The kernel walks them all to say so: 5 ms for each GiB of small pages. That is asked with every stat(2) of
a file, several times before a reader has read a byte; so an answer that took long is given again for a while.
"""

import threading
import time
from collections.abc import Hashable, Sequence

from memfs.linux.pagemap import Scanner
from memfs.linux.span import Span
from memfs.target.layout import Region
from memfs.target.space import Space

_SHARE = 20
"""An answer is kept for so many times as long as it took: 5 % of the time goes into counting at most."""
_LONG_S = 0.001
"""What takes less is counted anew each time."""


class ResidencyCounter:
    """Counts, and remembers what it has counted."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, Span], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def held_bytes(self, owner: Hashable, space: Space, span: Span) -> int:
        """How many bytes of *span* are there in *space*, which is that of *owner*."""
        key = owner, span
        began = time.monotonic()
        expires, held = self._kept.get(key, (0.0, 0))
        if began < expires:
            return held
        held = sum(run.span.size for run in space.pages(span, Scanner()) if run.held)
        now = time.monotonic()
        if now - began >= _LONG_S:
            with self._lock:
                for old in [key for key, (until, _) in self._kept.items() if until < now]:
                    del self._kept[old]
                self._kept[key] = now + _SHARE * (now - began), held
        return held


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
