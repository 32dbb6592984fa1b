"""The one type for a range of bytes: half-open, in addresses or in file offsets."""

import attrs

PAGE_BYTES = 4096
"""The page size of x86-64. Every mapping begins and ends on a multiple of it."""


@attrs.frozen(order=True)
class Span:
    """Bytes *start* to *end*, the last one not included."""

    start: int
    end: int

    def __bool__(self) -> bool:
        return self.end > self.start

    def __contains__(self, position: int) -> bool:
        return self.start <= position < self.end

    def __str__(self) -> str:
        return f"{self.start:x}-{self.end:x}"

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start

    def clip(self, other: "Span") -> "Span":
        """The part of *self* that lies in *other*; empty where they do not meet."""
        start = min(max(self.start, other.start), other.end)
        return Span(start, max(start, min(self.end, other.end)))

    def moved(self, by: int) -> "Span":
        """A span of the same length, *by* bytes further up."""
        return Span(self.start + by, self.end + by)

    def page_aligned(self) -> "Span":
        """The smallest span of whole pages that holds this one."""
        return Span(self.start & -PAGE_BYTES, -(-self.end // PAGE_BYTES) * PAGE_BYTES)
