"""A process with 60,000 VMAs: its layout is right, and the parts of it that are looked at are found."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process.reading import FLAT, VMA
from process.trees import plain_tree
from support.held import Span, merge
from support.outside import read_maps
from support.pattern import PAGE
from support.reads import counted
from support.target import Target
from unit.ways import WAYS, Way

from memfs.linux import span as memfs_span
from memfs.linux.maps import Access
from memfs.target.identity import identify
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache
from memfs.tree.attributes import Entry
from memfs.tree.contents import attribute_names
from memfs.tree.nodes import Name, ProcessNode, VmaNode
from memfs.tree.tree import Tree

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


_FEW_BYTES = 16 << 10
"""Enough for a few reads of stat and status; each line of maps is of 50 bytes."""


def look_up(tree: Tree, vma: VmaNode) -> Entry:
    """Look the file of *vma* up by its name."""
    return tree.lookup(ProcessNode(vma.owner, Name.VMAS), b"%012x-%012x_rw-p_anon" % (vma.start, vma.end))


_QUESTIONS: dict[str, Callable[[Tree, VmaNode], object]] = {
    "lookup of a VMA": look_up,
    "stat of a VMA": lambda tree, vma: tree.attributes(vma),
    "attribute of a VMA": lambda tree, vma: tree.contents.extended_attributes(vma, use=False),
    "open of a VMA": lambda tree, vma: tree.contents.open(vma).close(),
    "stat of the process": lambda tree, vma: tree.attributes(ProcessNode(vma.owner, Name.PROCESS)),
    "stat of mem": lambda tree, vma: tree.attributes(ProcessNode(vma.owner, Name.MEM)),
    "stat of core": lambda tree, vma: tree.attributes(ProcessNode(vma.owner, Name.CORE)),
    "stat of vmas": lambda tree, vma: tree.attributes(ProcessNode(vma.owner, Name.VMAS)),
    "the link stack": lambda tree, vma: tree.contents.read_link(ProcessNode(vma.owner, Name.STACK), 1),
    "ls of the process": lambda tree, vma: list(tree.list(ProcessNode(vma.owner, Name.PROCESS))),
}


@pytest.mark.parametrize("question", _QUESTIONS)
def test_a_question_about_one_file_reads_nothing_of_the_others(many: Target, question: str) -> None:
    start = many.mapping("vmas-60000").start + 30_000 * PAGE
    vma = VmaNode(identify(many.pid), start, start + PAGE)
    assert len(Path(f"/proc/{many.pid}/maps").read_bytes()) > 100 * _FEW_BYTES
    tree = plain_tree()
    with counted() as reads:
        _QUESTIONS[question](tree, vma)
    assert 0 < reads.size_bytes < _FEW_BYTES


def test_attributes_of_all_files_come_from_one_look(many: Target) -> None:
    tree, identity = plain_tree(), identify(many.pid)
    first = many.mapping("vmas-60000").start
    nodes = [VmaNode(identity, first + page * PAGE, first + (page + 1) * PAGE) for page in range(1_000)]
    numbers = [tree.inodes.number_of(node) for node in nodes]
    assert tree.attribute_at_once(numbers[0], b"user.memfs.rss") is None
    expected = [tree.contents.extended_attributes(node, use=False) for node in nodes[:8]]
    looked = tree.contents.extended_attributes(nodes[0])
    with counted() as reads:
        found = [
            {name: tree.attribute_at_once(number, name) for name in attribute_names(number).split(b"\0")[:-1]}
            for number in numbers
        ]
    assert reads.calls == 0
    assert found[0] == looked
    assert all(
        few == {name: all_of_them[name] for name in few}
        for few, all_of_them in zip(expected, found, strict=False)
    )
    assert len({each[b"user.memfs.start"] for each in found}) == len(nodes)


def test_what_was_seen_is_shown_of_the_same_extent_only(many: Target) -> None:
    tree, identity = plain_tree(), identify(many.pid)
    first = many.mapping("vmas-60000").start
    tree.contents.extended_attributes(VmaNode(identity, first, first + PAGE))
    longer = tree.inodes.number_of(VmaNode(identity, first, first + 2 * PAGE))
    assert tree.attribute_at_once(longer, b"user.memfs.start") is None
    mem = tree.inodes.number_of(ProcessNode(identity, Name.MEM))
    assert tree.attribute_at_once(mem, b"user.memfs.start") is None
    number = tree.inodes.number_of(VmaNode(identity, first, first + PAGE))
    assert tree.attribute_at_once(number, b"user.memfs.start") == b"%012x" % first
    assert tree.attribute_at_once(number, b"user.memfs.other") is None


def test_a_listing_reads_maps_once_and_its_entries_nothing(many: Target) -> None:
    tree, identity = plain_tree(), identify(many.pid)
    text = len(Path(f"/proc/{many.pid}/maps").read_bytes())
    with counted() as reads:
        entries = tree.list(ProcessNode(identity, Name.VMAS))
    assert text <= reads.size_bytes < text + _FEW_BYTES
    with counted() as reads:
        assert [entry.attributes.size_bytes for entry in entries[30_000:30_150]] == [PAGE] * 150
    assert reads.calls == 0
