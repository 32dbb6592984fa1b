"""A frozen copy as an address space: the same questions as of a running process, and answers that stay.

A file or a directory that is open holds the snapshot; when the last is closed and its name is gone,
the copy ends.
"""

import os
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as ReadOnlyDict
from typing import TYPE_CHECKING

from memfs.errors import RangeUnmapped, TargetExited
from memfs.linux.maps import Mapping
from memfs.linux.pagemap import MOST_RUNS, PageKind, PageRun, Scanner
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.values import FileState
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import object_key
from memfs.target.space import Space, unmapped

if TYPE_CHECKING:
    from memfs.snapshot.snapshot import Snapshot


class FrozenSpace(Space):
    """One use of a snapshot."""

    waits = False

    def __init__(self, snapshot: "Snapshot") -> None:
        """Use *snapshot*, which is held until :meth:`close`."""
        frozen = snapshot.frozen
        self.identity = frozen.identity
        self.stat = frozen.stat
        self.mem = snapshot.copy.mem if snapshot.copy is not None else -1
        self.copied = snapshot.aside
        self._frozen = frozen
        self._parts = snapshot.parts
        self._layout = snapshot.layout
        self._copy = snapshot.copy
        self._segments = snapshot.segments
        self._snapshot: Snapshot | None = snapshot

    def close(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.drop()

    def maps_text(self) -> bytes:
        return self._frozen.maps_text

    def layout(self) -> Layout:
        return self._layout

    def layout_over(self, span: Span) -> Layout:
        return Layout(tuple(self._layout.over(span)))

    def mappings_over(self, span: Span, *, paths: bool = False) -> Iterator[Mapping]:
        self.ensure_alive()
        for region in self._layout.over(span):
            yield region.mapping

    def uses(self) -> ReadOnlyDict[int, MemoryUse]:
        return self._frozen.uses

    def uses_now(self) -> ReadOnlyDict[int, MemoryUse]:
        self.ensure_alive()
        return self._frozen.uses

    def is_fetched(self, span: Span) -> bool:
        return any(span.clip(fetched) for fetched in self._frozen.fetched)

    def pages(
        self, span: Span, scanner: Scanner, limit: int = MOST_RUNS, *, files: bool = False
    ) -> Iterator[PageRun]:
        if self._copy is None:
            for region in self._layout.over(span):
                shift = self.copied_shift(region)
                for run in _data_runs(self.copied, region.span.clip(span).moved(shift)):
                    yield PageRun(run.span.moved(-shift), run.kind)
            return
        try:
            yield from self._copy.pages(span, scanner, limit, files=files)
        except TargetExited:
            raise self._lost() from None

    def copied_bytes(self, region: Region) -> int:
        return self._parts[region.span.start].copied_bytes

    def copied_shift(self, region: Region) -> int:
        return self._parts[region.span.start].shift if region.kind is Kind.COPIED else 0

    def read_waiting(self, address: int, view: memoryview) -> int:
        raise unmapped(address)  # no one supplies pages to a copy

    def expect_swapped(self, spans: Sequence[Span], *, ahead: bool) -> None:
        if self._copy is not None:
            self._copy.expect_swapped(spans, ahead=ahead)

    def put_back(self, spans: Sequence[Span]) -> None:
        if self._copy is not None:
            self._copy.put_back(spans)

    def open_backing(self, mapping: Mapping) -> int:
        held = self._segments.get(mapping.span.start)
        if held is not None:
            return os.dup(held)
        if self._copy is None:
            raise unmapped(mapping.span.start)
        return self._copy.open_backing(mapping)

    @property
    def objects_pid(self) -> int:
        if self._copy is None:
            raise RangeUnmapped(f"nothing but copies is left of process {self.identity.pid}")
        return self._copy.objects_pid

    def ensure_shows(self, mapping: Mapping) -> None:
        if self._copy is not None:
            self._copy.ensure_shows(mapping)

    def ensure_unchanged(self, mapping: Mapping, mtime_ns: int, size_bytes: int) -> None:
        region = self._layout.at(mapping.span.start)
        if region is not None and region.kind is Kind.SHARED:
            return
        known = self._frozen.files.get(object_key(mapping))
        if known != FileState(mtime_ns, size_bytes):
            path = mapping.path.decode(errors="backslashreplace")
            raise RangeUnmapped(f"{path} was written since process {self.identity.pid} was frozen")

    def ensure_alive(self) -> None:
        if self._copy is not None:
            try:
                self._copy.ensure_alive()
            except TargetExited:
                raise self._lost() from None

    def _lost(self) -> TargetExited:
        return TargetExited(
            f"the frozen copy of process {self.identity.pid} was killed",
            "memory may have run short: see the kernel's log",
        )


def _data_runs(fd: int, span: Span) -> Iterator[PageRun]:
    """What a sparse file holds of *span*."""
    at = span.start
    while at < span.end:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing follows
            begin = span.end
        begin = min(begin, span.end)
        if begin > at:
            yield PageRun(Span(at, begin), PageKind.UNTOUCHED)
        if begin == span.end:
            return
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), span.end)
        yield PageRun(Span(begin, -(-at // PAGE_BYTES) * PAGE_BYTES), PageKind.OWN)
