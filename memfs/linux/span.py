"""The one type for a range of bytes: half-open, in addresses or in file offsets."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

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


class Spanned(Protocol):
    """Anything that takes up a span: a VMA, a run of pages, an extent of a file."""

    @property
    def span(self) -> Span:
        """The bytes that it takes up."""


_Part = TypeVar("_Part", bound=Spanned)


def tiles(whole: Span, parts: Iterable[_Part]) -> Iterator[tuple[Span, _Part | None]]:
    """Cut *whole* into *parts* and the gaps between them.

    Yields, in order, what of each part lies in *whole*, with the part, and each gap with None. No tile is
    empty. The parts are in order and do not overlap; they are taken one by one, as the caller goes on.
    """
    at = whole.start
    for part in parts:
        if part.span.start >= whole.end:
            break
        span = part.span.clip(whole)
        if not span:
            continue
        if span.start > at:
            yield Span(at, span.start), None
        yield span, part
        at = span.end
    if at < whole.end:
        yield Span(at, whole.end), None
