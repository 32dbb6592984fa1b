"""Reading never disturbs: neither resident memory nor page tables of the target grow."""

from pathlib import Path

import pytest
from process.reading import FLAT, LONGEST, READERS, VMA, Opened, Reader, windows
from process.trees import plain_tree
from support.held import Span
from support.outside import MemoryUse
from support.pattern import PAGE
from support.target import Target
from unit.ways import WAYS, Way, copied, spliced

from memfs.linux import pagemap as module
from memfs.linux import span as memfs_span
from memfs.linux.pagemap import PageKind, Scanner
from memfs.target.identity import identify
from memfs.tree.nodes import Name, ProcessNode

MIB = 1 << 20


def growth(before: MemoryUse, after: MemoryUse) -> int:
    """How many bytes of memory and of page tables came."""
    return after.rss - before.rss + after.page_tables - before.page_tables


def carry(opened: Opened, span: Span, way: Way) -> None:
    """Read all of *span*; what is spliced is thrown away with its pipe."""
    view = opened.workspace.data[:LONGEST]
    for start in range(span.start, span.end, LONGEST):
        size = min(LONGEST, span.end - start)
        if way is copied:
            assert opened.source.read_into(start - opened.base, view[:size], opened.workspace) == size
        else:
            assert opened.source.splice_to(start - opened.base, size, 16, opened.workspace) == size
            opened.workspace.pipe.reset()


@pytest.mark.parametrize("kind", ["reserved-8g", "file-256m"])
@pytest.mark.parametrize(("reader", "way"), [(VMA, copied), (VMA, spliced), (FLAT, copied)])
def test_reading_all_of_a_large_mapping_costs_the_target_nothing(
    tmp_path: Path, kind: str, reader: Reader, way: Way
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        before = target.rss()
        with reader.open(target.pid, mapping.span) as opened:
            carry(opened, mapping.span, way)
            assert tuple(opened.data_spans(mapping.span)) == mapping.data
        assert growth(before, target.rss()) < MIB


def test_reading_memory_of_every_kind_costs_the_target_nothing(everything: Target) -> None:
    before = everything.rss()
    for mapping in everything.mappings:
        if mapping.kind in ("secretmem", "hugetlb"):
            continue
        for reader in READERS[:3]:
            with reader.open(everything.pid, mapping.span) as opened:
                for window in windows(mapping):
                    for way in WAYS:
                        carry(opened, window, way)
    assert growth(before, everything.rss()) < MIB


def test_looking_at_names_sizes_and_attributes_costs_the_target_nothing(everything: Target) -> None:
    before = everything.rss()
    tree = plain_tree()
    process = ProcessNode(identify(everything.pid), Name.PROCESS)
    entries = [*tree.list(process), *tree.list(ProcessNode(process.owner, Name.VMAS))]
    for entry in entries:
        tree.attributes(entry.node)
        tree.contents.extended_attributes(entry.node)
    assert len(entries) > len(everything.mappings)
    assert growth(before, everything.rss()) < MIB


def test_an_open_file_reads_on_undisturbed_when_its_mapping_is_split(tmp_path: Path) -> None:
    """The object of shared anonymous memory is found under the bounds of its VMA, which have changed."""
    with Target("shared-anon", "file-256m", directory=tmp_path) as target:
        opened = [(mapping, VMA.open(target.pid, mapping.span)) for mapping in target.mappings]
        for mapping, _ in opened:
            target.mprotect(mapping.start + (8 << 12), 1 << 12, "---")
        before = target.rss()
        for mapping, reader in opened:
            with reader:
                carry(reader, mapping.span, copied)
        assert growth(before, target.rss()) < MIB


def test_a_walk_that_is_cut_short_tells_the_same(everything: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*, files: bool) -> list[tuple[int, int, PageKind]]:
        found: list[tuple[int, int, PageKind]] = []
        for run in Scanner().runs(pagemap.fileno(), memfs_span.Span(0, (1 << 47) - PAGE), files=files):
            if found and found[-1][1:] == (run.span.start, run.kind):
                found[-1] = found[-1][0], run.span.end, run.kind
            else:
                found.append((run.span.start, run.span.end, run.kind))
        return [each for each in found if each[2] is not PageKind.UNTOUCHED]

    with open(f"/proc/{everything.pid}/pagemap", "rb") as pagemap:
        whole = held(files=False), held(files=True)
        monkeypatch.setattr(module, "_MOST_PAGES", 1 << 12)
        monkeypatch.setattr(module, "_MOST_PAGES_LOOKED_AT", 1 << 11)
        assert (held(files=False), held(files=True)) == whole
