"""Which pages of an address space were in memory a moment ago: a read of those needs no further scan."""

import time

from memfs.linux.pagemap import Scanner
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, Layout
from memfs.target.space import Space

_SCAN_AHEAD_BYTES = 8 << 20
_TOUCHED_S = 0.02
"""How long a page that was present is assumed to be present. A page that is gone meanwhile reads as zeros, as
it should, but reading it maps the zero page into the target."""


class Present:
    """The last range of pages of *space* that was found in memory. Several threads may use it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._touched = Span(0, 0), 0.0
        self._dense_up_to = -1

    @property
    def last(self) -> Span:
        """The last range that was found in memory, however long ago."""
        return self._touched[0]

    def note(self, span: Span) -> None:
        """Remember that all pages of *span* are in memory now."""
        self._touched = span, time.monotonic() + _TOUCHED_S

    def is_held(self, layout: Layout, start: int, end: int, scanner: Scanner) -> bool:
        """Whether *start* to *end* is anonymous memory that was all there, not swapped out, a moment ago."""
        touched, until = self._touched  # both at once: several threads may read
        if touched.start <= start and end <= touched.end and time.monotonic() < until:
            return True
        region = layout.at(start)
        if region is None or region.kind is not Kind.ANONYMOUS or end > region.span.end:
            return False
        # A reader that goes on in memory that is all there needs no scan for each piece of it.
        ahead = _SCAN_AHEAD_BYTES if start == self._dense_up_to else 0
        first, last = start & -PAGE_BYTES, -(-(end + ahead) // PAGE_BYTES) * PAGE_BYTES
        held_end = self._space.held_end(first, min(last, region.span.end), scanner)
        if held_end < end:
            return False
        self.note(Span(first, held_end))
        self._dense_up_to = held_end
        return True
