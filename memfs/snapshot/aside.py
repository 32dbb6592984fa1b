"""What fork does not keep of a process, copied aside while it is stopped.

It goes into a memfd in which each byte lies at the address that it has in the process. All of it is
copied once before, which opens what must be opened and makes the pages that the copy is written to:
what is left for the pause is the copying itself.
"""

import contextlib
import os

import attrs

from memfs.errors import MemfsError
from memfs.image.memory import Memory
from memfs.image.source import MAX_READ_BYTES, Workspace
from memfs.linux.span import Span
from memfs.target.layout import USER_END, Kind, Layout, Region
from memfs.target.process import AddressSpace
from memfs.target.space import unmapped

_MERGED_GAP_BYTES = 64 << 10


@attrs.frozen
class Wanted:
    """A VMA to be copied, and why."""

    region: Region
    reason: str


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
        self.copied: dict[int, Wanted] = {}
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
        now = {region.span.start: region for region in layout.regions}
        for start, (wanted, before) in self._extents.items():
            region = now.get(start)
            if region is None or region != wanted.region:
                continue  # mapped anew since: it is not in the copy
            with contextlib.suppress(MemfsError, OSError):
                # What was data before may be a hole now: the zeros must be written too.
                self._copy(region, _merged(before + self._find_extents(region, layout)), layout)
                self.copied[start] = wanted

    def _find_extents(self, region: Region, layout: Layout) -> list[Span]:
        source = self._source(region, layout)
        if source.readable_bytes(region, self._workspace.scanner) < region.span.size:
            raise unmapped(region.span.end)  # a copy would have zeros where reading is an error
        found: list[Span] = []
        at = 0
        while at < source.size_bytes:
            begin = source.next_data(at, self._workspace)
            if begin >= source.size_bytes:
                break
            at = source.next_hole(begin, self._workspace)
            found.append(Span(begin, at).moved(region.span.start))
        return _merged(found)

    def _copy(self, region: Region, extents: list[Span], layout: Layout) -> None:
        source = self._source(region, layout)
        for extent in extents:
            for start in range(extent.start, extent.end, MAX_READ_BYTES):
                view = self._workspace.data[: min(extent.end - start, MAX_READ_BYTES)]
                source.read_into(start - region.span.start, view, self._workspace)
                os.pwrite(self.fd, view, start)

    def _source(self, region: Region, layout: Layout) -> Memory:
        source = self._sources.get(region.span)
        if source is None:
            source = self._sources[region.span] = Memory(self._space, layout, region.span, flat=False)
        return source


def what_fork_does_not_keep(region: Region, flags: frozenset[bytes]) -> str:
    """Why fork leaves *region* out of the copy, or keeps it shared; empty where it does neither.

    *flags* are those of smaps. What a userfaultfd supplies cannot be read while its server, maybe a
    thread of the process, stands still: it is not copied either.
    """
    if not region.has_file or region.kind is Kind.OPAQUE or b"um" in flags:
        return ""
    if b"dc" in flags:
        return "MADV_DONTFORK"
    if b"wf" in flags:
        return "MADV_WIPEONFORK"
    if b"ht" in flags and not region.mapping.shared:
        return "private huge pages, which the kernel takes from a copy when there are too few"
    return "shared memory" if region.kind is Kind.SHARED else ""


def _merged(extents: list[Span]) -> list[Span]:
    """The same in order, with small gaps filled: a call costs more than some pages."""
    merged: list[Span] = []
    for extent in sorted(extents):
        if merged and extent.start - merged[-1].end <= _MERGED_GAP_BYTES:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, extent.end))
        else:
            merged.append(extent)
    return merged
