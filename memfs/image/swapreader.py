"""Stretches of memory some of whose pages are swapped out: read so that they are again afterwards."""

import os

import attrs

from memfs.image.source import Piece
from memfs.linux.span import Span
from memfs.target.space import Space

_WINDOW_BYTES = 1 << 18
"""How much may be in memory at a time that was swapped out before: 64 pages. In windows of a quarter of that
the reading takes twice as long, and larger ones push out other pages of a full cgroup."""


@attrs.frozen(eq=False)
class SwappedReader:
    """Reads from one address space.

    Attributes:
        spans: what is swapped out, in order.
        ahead: whether the kernel may bring it in before it is read: in private memory of no file.
    """

    space: Space
    spans: tuple[Span, ...]
    ahead: bool

    def read(self, address: int, view: memoryview) -> int:
        """Copy bytes from *address* on into *view*; returns how many: fewer where much is swapped out.

        Raises:
            NoRoom: there is no room to bring them in.
            OSError: as pread(2) of ``/proc/PID/mem``.
        """
        window = Span(address, address + min(len(view), _WINDOW_BYTES))
        pages = window.page_aligned()
        swapped = [part for span in self.spans if (part := span.clip(pages))]
        if swapped:
            self.space.expect_swapped(swapped, ahead=self.ahead)
        try:
            return os.preadv(self.space.mem, (view[: window.size],), address)
        finally:
            if swapped:
                self.space.put_back(swapped)


def add_memory(found: list[Piece], space: Space, part: Span, *, swapped: bool, ahead: bool) -> None:
    """Add the piece of the mm's *part* to *found*; it becomes one with the last where it follows that.

    Where every other page is swapped out, that makes one piece, which is read as fast as any.
    """
    spans: tuple[Span, ...] = (part.page_aligned(),) if swapped else ()
    start = part.start
    last = found[-1] if found else None
    if last is not None and last.fd == space.mem and last.position + last.size == start:
        before = last.reader
        if not isinstance(before, SwappedReader):
            start = found.pop().position
        elif before.ahead is ahead:
            spans = before.spans + spans
            start = found.pop().position
    reader = SwappedReader(space, spans, ahead) if spans else None
    found.append(Piece(part.end - start, space.mem, start, cached=False, reader=reader))
