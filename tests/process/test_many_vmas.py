"""A process with 60,000 VMAs: its layout is right, and the parts of it that are looked at are found."""

from collections.abc import Iterator

import pytest
from process.reading import FLAT, VMA
from process.trees import plain_tree
from support.held import Span, merge
from support.outside import read_maps
from support.pattern import PAGE
from support.target import Target
from unit.ways import WAYS, Way

from memfs.fuse.inodes import Name, ProcessNode
from memfs.linux import span as memfs_span
from memfs.linux.procfs import Access
from memfs.target.identity import identify
from memfs.target.process import AddressSpace, VmaFlagsCache

LENGTH = 100 * PAGE
"""Unaligned and in as many pieces as pages, this fits into a pipe of 1 MiB."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with Target("vmas-60000", directory=tmp_path_factory.mktemp("many")) as target:
        yield target


def test_the_layout_is_that_of_maps_whichever_way_it_is_asked_for(many: Target) -> None:
    lines = [line for line in read_maps(many.pid) if line.path != b"[vsyscall]"]
    assert len(lines) > 60_000
    expected = [(line.span.start, line.span.end, line.perms, line.offset, line.path) for line in lines]
    with AddressSpace(identify(many.pid), VmaFlagsCache(), memory=False) as space:
        queried = space.layout_over(memfs_span.Span(0, 1 << 56))
        for layout in (space.layout(), queried):
            found = [
                (m.span.start, m.span.end, str(m.access), m.offset, m.path)
                for m in (region.mapping for region in layout.regions)
                if m.path != b"[vsyscall]"
            ]
            assert found == expected


def test_each_vma_is_found_by_its_address(many: Target) -> None:
    mapping = many.mapping("vmas-60000")
    with AddressSpace(identify(many.pid), VmaFlagsCache(), memory=False) as space:
        for page in (0, 1, 30_000, 59_999):
            start = mapping.start + page * PAGE
            region = space.region_at(start + 17)
            assert region is not None
            assert (region.span.start, region.span.size) == (start, PAGE)
            assert bool(region.mapping.access & Access.WRITE) == (page % 2 == 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_read_goes_over_many_vmas(many: Target, way: Way) -> None:
    mapping = many.mapping("vmas-60000")
    for reader in (VMA, FLAT):
        with reader.open(many.pid, mapping.span) as opened:
            for start in (mapping.start, mapping.start + 12_345 * PAGE + 67, mapping.end - LENGTH):
                part = Span(start, start + LENGTH)
                assert not mapping.mismatch(start - mapping.start, opened.read(part, way))


def test_data_goes_on_from_one_vma_into_the_next(many: Target) -> None:
    mapping = many.mapping("vmas-60000")
    part = Span(mapping.start, mapping.start + 500 * PAGE)
    expected = merge(span for span in mapping.data if span.end <= part.end)
    assert len(expected) == 5
    for reader in (VMA, FLAT):
        with reader.open(many.pid, mapping.span) as opened:
            assert tuple(opened.data_spans(part)) == expected


def test_there_is_a_file_for_each_with_its_blocks(many: Target) -> None:
    mapping = many.mapping("vmas-60000")
    entries = plain_tree().list(ProcessNode(identify(many.pid), Name.VMAS))
    inside = [
        entry.attributes for entry in entries if mapping.start <= int(entry.name[:12], 16) < mapping.end
    ]
    touched = sum(span.length for span in mapping.touched)
    assert len(inside) == 60_000
    assert {each.size_bytes for each in inside} == {PAGE}
    assert sum(each.blocks * 512 for each in inside) == touched
    assert {each.blocks for each in inside} == {0, 8}
