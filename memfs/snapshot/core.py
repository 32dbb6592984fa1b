"""The core file of a snapshot: a head that is built, and memory that is laid out behind it, never copied.

A segment ends in the file where its VMA cannot be read any further, so that reading a core to its end
is never an error: what it leaves out, it says so.
"""

import bisect
import contextlib
from collections.abc import Iterator

from memfs.errors import MemfsError, NoSuchEntry
from memfs.image.elfcore import CoreFilter, CoreLayout, Extent, Segment, dumped_bytes, lay_out
from memfs.image.elfnotes import Lacking, pack_notes
from memfs.image.memory import Memory
from memfs.image.source import Piece, Source, Workspace
from memfs.image.text import Text
from memfs.linux.elf import MAGIC
from memfs.linux.maps import parse_maps
from memfs.linux.span import Span
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import Fate, Part
from memfs.target.layout import Kind


def open_core(snapshot: Snapshot, *, full: bool) -> "Core":
    """The core file of *snapshot*, which is held until it is closed; *full* leaves nothing out.

    Raises:
        TargetExited: the snapshot has been let go.
        NoSuchEntry: the kind of program is one (x32) whose core files memfs does not know.
    """
    space = snapshot.open()
    try:
        memory = Memory(space, space.layout(), Span(0, space.end()), flat=True)
        return Core(_layout_of(snapshot, memory, full=full), memory)
    except BaseException:
        space.close()
        raise


def size_core(snapshot: Snapshot, *, full: bool) -> int:
    """Its size in bytes.

    Raises: as :func:`open_core`.
    """
    if snapshot.core is None:
        open_core(snapshot, full=full).close()
    assert snapshot.core is not None
    return snapshot.core.size_bytes


def _layout_of(snapshot: Snapshot, memory: Memory, *, full: bool) -> CoreLayout:
    if snapshot.core is None:
        frozen = snapshot.frozen
        form = frozen.process.core_format
        if form is None:
            raise NoSuchEntry(
                f"process {frozen.identity.pid} runs a program of the x32 ABI, of which memfs makes no core",
                "read mem and vmas: they have all of its memory",
            )
        workspace = Workspace()
        try:
            found = [_segment(snapshot, part, memory, workspace, full=full) for part in frozen.parts]
        finally:
            workspace.close()
        notes = pack_notes(
            form,
            frozen.process,
            frozen.threads,
            parse_maps(frozen.maps_text),
            [lacking for _, lacking in found if lacking is not None],
        )
        snapshot.core = lay_out(form, notes, [segment for segment, _ in found])
    return snapshot.core


def _segment(
    snapshot: Snapshot, part: Part, memory: Memory, workspace: Workspace, *, full: bool
) -> tuple[Segment, Lacking | None]:
    """What is in the file of a VMA, and what should be and is not."""
    region = part.region
    span = region.span
    if not region.has_file:
        return Segment(span, region.mapping.access, 0), None
    if part.fate is Fate.ABSENT:
        return Segment(span, region.mapping.access, 0), Lacking(span, part.reason)
    wanted = span.size if full else _wanted_bytes(snapshot, part, memory, workspace)
    size = min(wanted, memory.readable_bytes(region, workspace.scanner))
    reason = _why_short(snapshot, part, size) if size < wanted else ""
    lacking = Lacking(Span(span.start + size, span.start + wanted), reason) if reason else None
    return Segment(span, region.mapping.access, size), lacking


def _why_short(snapshot: Snapshot, part: Part, size: int) -> str:
    """Why no more than *size* bytes of a VMA can be read; empty where its file ends there."""
    region = part.region
    if any(region.span.clip(fetched) for fetched in snapshot.frozen.fetched):
        return "its userfaultfd has not supplied all of it"
    if region.kind is Kind.PRIVATE_FILE and not size:
        return "its file was written since, or does not answer"
    return ""


def _wanted_bytes(snapshot: Snapshot, part: Part, memory: Memory, workspace: Workspace) -> int:
    """How much of a VMA the process wants in its core files, see core(5)."""
    region = part.region
    use = snapshot.frozen.uses.get(region.span.start)
    has_own_pages = not region.mapping.shared and (
        part.fate is Fate.COPIED or memory.has_own_pages(region, workspace.scanner)
    )
    return dumped_bytes(
        region.mapping,
        use.flags if use is not None else frozenset(),
        CoreFilter(snapshot.frozen.process.core_filter),
        has_own_pages=has_own_pages,
        has_name=lambda: memory.has_name(region),
        begins_program=lambda: _begins_with_elf(memory, region.span.start, workspace),
    )


def _begins_with_elf(memory: Memory, address: int, workspace: Workspace) -> bool:
    magic = bytearray(len(MAGIC))
    with contextlib.suppress(MemfsError, OSError):
        memory.read_into(address, memoryview(magic), workspace)
    return magic == MAGIC


class Core(Source):
    """The file: its head comes from our own memory, all else from the snapshot's."""

    has_cached_pages = False  # its memory is private for the most part

    def __init__(self, layout: CoreLayout, memory: Memory) -> None:
        """Show *layout* over the flat *memory*, which is taken over."""
        self.size_bytes = layout.size_bytes
        self._head = Text(layout.head)
        self._head_bytes = len(layout.head)
        self._extents = layout.extents
        self._starts = [extent.span.start for extent in layout.extents]
        self._memory = memory

    def close(self) -> None:
        self._head.close()
        self._memory.close()

    def read_into(self, offset: int, view: memoryview, workspace: Workspace) -> int:
        # Most READs lie in one segment, and are reads of memory, with all that makes those fast.
        for extent in self._extents_over(Span(offset, offset + 1)):
            if offset + len(view) <= extent.span.end:
                return self._memory.read_into(offset - extent.span.start + extent.address, view, workspace)
        return super().read_into(offset, view, workspace)

    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:
        found = self._head.pieces(span.clip(Span(0, self._head_bytes)), workspace)
        for addresses in self._addresses(span):
            found += self._memory.pieces(addresses, workspace)
        return found

    def _extents_over(self, span: Span) -> Iterator[Extent]:
        at = max(0, bisect.bisect_right(self._starts, span.start) - 1)
        while at < len(self._extents) and self._starts[at] < span.end:
            if self._extents[at].span.end > span.start:
                yield self._extents[at]
            at += 1

    def _addresses(self, span: Span) -> Iterator[Span]:
        """Where the memory lies that *span* of the file shows."""
        for extent in self._extents_over(span):
            yield extent.span.clip(span).moved(extent.address - extent.span.start)

    def still_true(self, span: Span, pieces: list[Piece]) -> bool:
        return all(self._memory.still_true(addresses, pieces) for addresses in self._addresses(span))

    def is_settled(self, span: Span) -> bool:
        return all(self._memory.is_settled(addresses) for addresses in self._addresses(span))

    def recover(self, offset: int, piece: Piece, view: memoryview) -> int:
        for addresses in self._addresses(Span(offset, offset + 1)):
            return self._memory.recover(addresses.start, piece, view)
        return self._head.recover(offset, piece, view)

    def next_data(self, offset: int, workspace: Workspace) -> int:
        if offset < self._head_bytes:
            return offset
        known = -1  # up to there nothing is data
        for extent in self._extents_over(Span(offset, self.size_bytes)):
            to_file = extent.span.start - extent.address
            at = max(offset - to_file, extent.address)
            if known < at:
                known = self._memory.next_data(at, workspace)
            if known < extent.span.end - to_file:
                return max(at, known) + to_file
        return self.size_bytes

    def next_hole(self, offset: int, workspace: Workspace) -> int:
        for extent in self._extents_over(Span(max(offset, self._head_bytes), self.size_bytes)):
            to_file = extent.span.start - extent.address
            at = max(offset - to_file, extent.address)
            found = self._memory.next_hole(at, workspace)
            if found < extent.span.end - to_file:
                return found + to_file
        return self.size_bytes
