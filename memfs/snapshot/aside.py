"""What fork does not keep of a process, copied aside while it is stopped.

It goes into a memfd in which each byte lies at the address that it has in the process. All of it is
copied once before, which opens what must be opened and makes the pages that the copy is written to:
what is left for the pause is the copying itself.
"""

import contextlib
import os
from collections.abc import Iterator

import attrs

from memfs.errors import MemfsError
from memfs.image.memory import Memory
from memfs.image.source import MAX_READ_BYTES, Workspace
from memfs.linux.span import Span
from memfs.linux.syscalls import punch_hole
from memfs.target.layout import USER_END, Kind, Layout, Region
from memfs.target.process import AddressSpace

_READ_GAP_BYTES = 64 << 10


@attrs.frozen
class Wanted:
    """A VMA to be copied, and why."""

    region: Region
    reason: str


@attrs.frozen
class Copied:
    """A VMA that was copied.

    Attributes:
        reason: why.
        size_bytes: how much of it, from its start: what lies behind cannot be read by anyone.
    """

    reason: str
    size_bytes: int


class Aside:
    """The memfd and what is in it.

    Attributes:
        fd: of the memfd. Whoever takes it over keeps it; :meth:`close` leaves it open.
        copied: the VMAs that are in it, by their start address.
    """

    def __init__(self, space: AddressSpace, limit_bytes: int) -> None:
        """Copy out of *space*, *limit_bytes* at most of what :meth:`prepare` is told to limit."""
        self.fd = os.memfd_create("memfs-snapshot", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, USER_END)
        self.copied: dict[int, Copied] = {}
        self._space = space
        self._left_bytes = limit_bytes
        self._extents: dict[int, tuple[Wanted, list[Span]]] = {}
        self._sources: dict[Span, Memory] = {}
        self._workspace = Workspace()

    def close(self) -> None:
        """Let go of all but the memfd."""
        for source in self._sources.values():
            source.close()
        self._workspace.close()

    @property
    def prepared_bytes(self) -> int:
        """How much :meth:`take` has to copy, if nothing changes until then."""
        return sum(extent.size for _, extents in self._extents.values() for extent in extents)

    def prepare(self, wanted: list[Wanted], layout: Layout, *, limited: bool) -> None:
        """Copy *wanted* in advance, in that order; what goes beyond the limit is left out."""
        for one in wanted:
            with contextlib.suppress(MemfsError, OSError):
                extents = self._find_extents(one.region, layout)
                size = sum(extent.size for extent in extents)
                if limited and size > self._left_bytes:
                    continue
                self._copy(one.region, extents, layout)
                self._extents[one.region.span.start] = (one, extents)
                if limited:
                    self._left_bytes -= size

    def take(self, layout: Layout) -> None:
        """Copy it for good; *layout* is that of the stopped process."""
        for start, (wanted, before) in self._extents.items():
            region = next(layout.over(wanted.region.span), None)
            if region != wanted.region:
                continue  # mapped anew since: it is not in the copy
            with contextlib.suppress(MemfsError, OSError):
                extents = self._find_extents(region, layout)
                if extents != before:
                    punch_hole(self.fd, start, region.span.size)
                self._copy(region, extents, layout)
                size = self._source(region, layout).readable_bytes(region, self._workspace.scanner)
                self.copied[start] = Copied(wanted.reason, size)

    def _find_extents(self, region: Region, layout: Layout) -> list[Span]:
        source = self._source(region, layout)
        found: list[Span] = []
        at = 0
        while at < source.size_bytes:
            begin = source.next_data(at, self._workspace)
            if begin >= source.size_bytes:
                break
            at = source.next_hole(begin, self._workspace)
            found.append(Span(begin, at).moved(region.span.start))
        return found

    def _copy(self, region: Region, extents: list[Span], layout: Layout) -> None:
        """Holes stay holes: what lies in a small gap is read, but not written."""
        source = self._source(region, layout)
        data = self._workspace.data
        for stretch, pieces in _stretches(extents):
            source.read_into(stretch.start - region.span.start, data[: stretch.size], self._workspace)
            for piece in pieces:
                at = piece.start - stretch.start
                os.pwrite(self.fd, data[at : at + piece.size], piece.start)

    def _source(self, region: Region, layout: Layout) -> Memory:
        source = self._sources.get(region.span)
        if source is None:
            source = self._sources[region.span] = Memory(self._space, layout, region.span, flat=False)
        return source


def what_fork_does_not_keep(region: Region, flags: frozenset[bytes]) -> str:
    """Why fork leaves *region* out of the copy, or keeps it shared; empty where it does neither.

    *flags* are those of smaps. What a userfaultfd supplies cannot be read while its server, maybe a
    thread of the process, stands still: it is not copied either. Nor is a file that someone else serves,
    who may take as long as he likes.
    """
    if not region.has_file or region.served or region.kind is Kind.OPAQUE or b"um" in flags:
        return ""
    if b"dc" in flags:
        return "MADV_DONTFORK"
    if b"wf" in flags:
        return "MADV_WIPEONFORK"
    if b"ht" in flags and not region.mapping.shared:
        return "private huge pages, which the kernel takes from a copy when there are too few"
    return "shared memory" if region.kind is Kind.SHARED else ""


def _stretches(extents: list[Span]) -> Iterator[tuple[Span, list[Span]]]:
    """What to read at once, and the *extents*, or parts of them, that lie in it.

    Extents with small gaps are read together: a call costs more than some pages.
    """
    pieces: list[Span] = []
    for extent in extents:
        for start in range(extent.start, extent.end, MAX_READ_BYTES):
            piece = Span(start, min(start + MAX_READ_BYTES, extent.end))
            if pieces and (
                piece.start - pieces[-1].end > _READ_GAP_BYTES or piece.end - pieces[0].start > MAX_READ_BYTES
            ):
                yield Span(pieces[0].start, pieces[-1].end), pieces
                pieces = []
            pieces.append(piece)
    if pieces:
        yield Span(pieces[0].start, pieces[-1].end), pieces
