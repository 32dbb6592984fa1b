"""How the tests of this directory open a process, live or frozen, and where in a mapping they look."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import attrs
import pytest
from process.freezing import Freezer
from support import kinds
from support.ending import Ending
from support.held import HeldMapping, Span
from support.machine import huge_pages
from support.pattern import PAGE
from support.target import Target
from unit.ways import Way, copied

from memfs.image.memory import Memory
from memfs.image.source import Workspace
from memfs.linux import span as memfs_span
from memfs.linux.pagemap import Scanner
from memfs.target.identity import identify
from memfs.target.process import AddressSpace
from memfs.target.space import Space
from memfs.target.vmaflags import VmaFlagsCache

LONGEST = 200 * PAGE
"""The longest read here: with a header it fits into a pipe of 1 MiB, wherever in a page it begins."""
_MOST_EDGES = 16
_HUGE_PAGES = 16  # each holder of everything takes four


@attrs.frozen
class Reader:
    """How a process is opened: one range or all of it, and with which of the kernel's answers."""

    name: str
    flat: bool = False
    scans: bool = True
    """By PAGEMAP_SCAN; else by /proc/PID/pagemap, as before Linux 6.7."""
    queries: bool = True
    """By PROCMAP_QUERY; else by the text of maps, as before Linux 6.11."""
    frozen: bool = False
    """In a snapshot, made by a fork; else the running process."""
    copied: bool = False
    """In a snapshot, made by copying all of it."""

    freezer: ClassVar[Freezer]
    """Set for as long as the tests of this directory run."""

    def __str__(self) -> str:
        return self.name

    def _space(self, pid: int) -> Space:
        if self.frozen or self.copied:
            return self.freezer.freeze(pid, copy_all=self.copied).open()
        space = AddressSpace(identify(pid), VmaFlagsCache(), memory=True)
        space._maps._has_query = self.queries
        return space

    def open(self, pid: int, span: Span) -> "Opened":
        """Open *pid*; *span* is what it shows, unless it is flat."""
        space = self._space(pid)
        if self.flat:
            source = Memory(space, space.layout(), memfs_span.Span(0, space.end()), flat=True)
        else:
            wanted = memfs_span.Span(span.start, span.end)
            source = Memory(space, space.layout_over(wanted), wanted, flat=False)
        workspace = Workspace()
        if not self.scans:
            workspace.scanner = Scanner(use_scan=False)
        return Opened(source, 0 if self.flat else span.start, workspace)


VMA = Reader("vma")
FLAT = Reader("flat", flat=True)
READERS = (
    VMA,
    FLAT,
    Reader("vma-by-pagemap", scans=False),
    Reader("flat-by-maps-text", flat=True, queries=False),
    Reader("vma-by-both", scans=False, queries=False),
)
FROZEN = Reader("frozen", frozen=True)
FROZEN_READERS = (
    FROZEN,
    Reader("frozen-flat", frozen=True, flat=True),
    Reader("copied", copied=True),
    Reader("copied-flat", copied=True, flat=True),
)
"""Of processes that do not change: each is frozen once, when it is first read."""


@attrs.frozen
class Opened(Ending):
    """A process, open; addresses in, bytes and addresses out."""

    source: Memory
    base: int
    workspace: Workspace

    def read(self, span: Span, way: Way = copied) -> bytes:
        """The bytes of *span*."""
        return way(self.source, span.start - self.base, span.length, self.workspace)

    def next_data(self, address: int) -> int:
        """The first address from *address* on that is not in a hole."""
        return self.base + self.source.next_data(address - self.base, self.workspace)

    def next_hole(self, address: int) -> int:
        """The first address from *address* on that is in a hole."""
        return self.base + self.source.next_hole(address - self.base, self.workspace)

    def data_spans(self, span: Span) -> Iterator[Span]:
        """The data of *span*, walked as cp does: data, hole, data, …"""
        at = span.start
        while (start := self.next_data(at)) < span.end:
            end = self.next_hole(start)
            assert start < end, f"data and a hole at {start:#x}: a copier would not come further"
            yield Span(start, min(end, span.end))
            at = end
            if at >= span.end:
                break

    def close(self) -> None:
        """Let go of the process."""
        self.source.close()
        self.workspace.close()


def first_edges(mapping: HeldMapping) -> tuple[int, ...]:
    """The addresses where the content of *mapping* changes; not all, where there are very many."""
    edges = mapping.edges
    return edges if len(edges) <= _MOST_EDGES else (*edges[: _MOST_EDGES - 4], *edges[-4:])


def windows(mapping: HeldMapping) -> Iterator[Span]:
    """Readable stretches of *mapping*: around each edge, at both ends, short and long, aligned and not."""
    for whole in mapping.readable:
        for edge in first_edges(mapping):
            for before, behind in ((1, 1), (0, PAGE), (PAGE, 0), (PAGE + 1, PAGE + 3), (100_000, 31)):
                if part := Span(edge - before, edge + behind).overlap(whole):
                    yield part
        for start in (whole.start, whole.start + 123, whole.end - LONGEST):
            if part := Span(start, start + LONGEST).overlap(whole):
                yield part


KINDS = tuple(kind for kind in kinds.KINDS if kind != "vmas-60000")
"""All but the one whose maps text takes long to parse; it has tests of its own."""


@contextmanager
def hold_everything(directory: Path) -> Iterator[Target]:
    """A process with a mapping of every kind that this machine can make."""
    with huge_pages(_HUGE_PAGES):
        available = [kind for kind in KINDS if kind not in _unavailable()]
        with Target(*available, directory=directory) as target:
            yield target


@cache
def _unavailable() -> dict[str, str]:
    """The kinds that this machine cannot make, and why."""
    with (
        TemporaryDirectory() as directory,
        huge_pages(_HUGE_PAGES),
        Target("all", directory=Path(directory)) as target,
    ):
        return target.held.unavailable


def mappings_of(target: Target, kind: str) -> tuple[HeldMapping, ...]:
    """The mappings of *kind*; skips where this machine cannot make it."""
    if kind in _unavailable():
        pytest.skip(f"{kind}: {_unavailable()[kind]}")
    found = target.held.of(kind)
    assert found
    return found
