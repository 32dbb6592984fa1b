"""Data and holes tile every source: walking from one to the next finds exactly the pages with content."""

import contextlib
import mmap
import os
import re
from pathlib import Path

import pytest
from process.reading import FLAT, FROZEN_READERS, KINDS, READERS, VMA, Reader, first_edges, mappings_of
from support import kernel
from support.held import HeldMapping, Span, merge, subtract
from support.kernel import Map, Prot
from support.machine import huge_pages
from support.pattern import PAGE
from support.target import Target

from memfs.linux import span as memfs_span

CASES = [
    pytest.param(reader, kind, id=f"{kind}-{reader}")
    for kind in KINDS
    for reader in (*READERS, *FROZEN_READERS)
    if reader.flat or kind != "secretmem"
    # A pagemap entry for each of 16 million pages takes its time.
    if reader.scans or kind != "reserved-64g"
]


def expected_data(mapping: HeldMapping, reader: Reader) -> tuple[Span, ...]:
    """The pages that a copy must hold."""
    if not reader.scans:
        # The pagemap does not tell a zero page that was read from one that was written.
        zero_pages = mapping.touched if mapping.kind == "zero-read" else ()
        return merge((*mapping.data, *zero_pages))
    return mapping.data


def is_behind_the_end_of_a_file(mapping: HeldMapping, address: int) -> bool:
    """Whether only the rest of a file's last page is there: zeros, data or hole."""
    ends = [layer.span.end for layer in mapping.layers]
    return any(end <= address < -(-end // PAGE) * PAGE for end in ends)


@pytest.mark.parametrize(("reader", "kind"), CASES)
def test_walking_finds_exactly_the_pages_with_content(everything: Target, reader: Reader, kind: str) -> None:
    for mapping in mappings_of(everything, kind):
        with reader.open(everything.pid, mapping.span) as opened:
            assert tuple(opened.data_spans(mapping.span)) == expected_data(mapping, reader)


@pytest.mark.parametrize(("reader", "kind"), CASES)
def test_from_any_offset_the_next_data_and_hole_are_found(
    everything: Target, reader: Reader, kind: str
) -> None:
    for mapping in mappings_of(everything, kind):
        data = expected_data(mapping, reader)
        with reader.open(everything.pid, mapping.span) as opened:
            for edge in first_edges(mapping):
                for address in {edge - PAGE, edge - 1, edge, edge + 1, edge + PAGE}:
                    if not mapping.start <= address < mapping.end or is_behind_the_end_of_a_file(
                        mapping, address
                    ):
                        continue
                    inside = [span for span in data if span.start <= address < span.end]
                    later = [span.start for span in data if span.start > address]
                    if inside:
                        assert opened.next_data(address) == address
                        assert min(opened.next_hole(address), mapping.end) == inside[0].end
                    else:
                        assert opened.next_hole(address) == address
                        wanted = later[0] if later else mapping.end
                        assert min(opened.next_data(address), mapping.end) == wanted


@pytest.mark.parametrize(("reader", "kind"), [case for case in CASES if not case.values[0].flat])
def test_what_is_held_from_an_address_on_ends_where_that_kind_of_page_does(
    everything: Target, reader: Reader, kind: str
) -> None:
    for mapping in mappings_of(everything, kind):
        with reader.open(everything.pid, mapping.span) as opened:
            space, scanner = opened.source._space, opened.workspace.scanner
            for edge in first_edges(mapping):
                start = edge & -PAGE
                if not mapping.start <= start < mapping.end:
                    continue
                run = next(space.pages(memfs_span.Span(start, mapping.end), scanner), None)
                wanted = run.span.end if run is not None and run.held and run.span.start == start else start
                assert space.held_end(start, mapping.end, scanner) == wanted


def test_a_page_never_touched_is_a_hole_and_reads_as_zeros(everything: Target) -> None:
    for kind in ("private-runs", "zero-read", "none-reserved", "reserved-8g"):
        (mapping,) = mappings_of(everything, kind)
        hole = mapping.holes[-1]
        page = Span(hole.start, hole.start + PAGE)
        for reader in (VMA, FLAT):
            with reader.open(everything.pid, mapping.span) as opened:
                assert opened.next_hole(page.start) == page.start
                assert opened.read(page) == bytes(PAGE)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["private-full", "file-private", "memfd-private"])
def test_a_guard_region_is_a_hole_that_a_copier_comes_over(tmp_path: Path, kind: str, reader: Reader) -> None:
    """Guard regions in file mappings came with Linux 6.15."""
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        guard = Span(mapping.start + 102 * PAGE, mapping.start + 130 * PAGE)
        target.madvise(guard.start, guard.length, "guard_install")
        mapping = target.mapping(kind)
        assert guard in mapping.unreadable
        with reader.open(target.pid, mapping.span) as opened:
            assert tuple(opened.data_spans(mapping.span)) == mapping.data
            assert opened.read(guard) == bytes(guard.length)


@pytest.mark.parametrize("reader", READERS)
def test_what_a_process_has_read_of_a_file_is_the_files(tmp_path: Path, reader: Reader) -> None:
    """A page that is only read is in the page tables too: it makes no data of a hole, and is no copy."""
    with Target("file-sparse", directory=tmp_path) as target:
        (mapping,) = target.mappings
        hole, data = mapping.holes[0], mapping.data[0]
        for span in (hole, data):
            target.touch(span.start, 4 * PAGE)
        assert tuple(target.mappings[0].touched)
        with reader.open(target.pid, mapping.span) as opened:
            assert tuple(opened.data_spans(mapping.span)) == mapping.data
            source, workspace = opened.source, opened.workspace
            start = data.start - source._span.start
            pieces = source.pieces(memfs_span.Span(start, start + 4 * PAGE), workspace)
            assert source._space.mem not in {piece.fd for piece in pieces}
            region = source._space.region_at(mapping.start)
            assert region is not None
            assert not source.has_own_pages(region, workspace.scanner)


_HUGE = 2 << 20
_HUGE_PAGES = 8
_AT = 0x2000_0000_0000


def _free_huge_pages() -> int:
    found = re.search(r"HugePages_Free: +(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("cannot", [{}, {"_USERFAULTFD": {}}, {"MOST_PAGES": 5}], ids=str)
def test_holes_of_huge_pages_are_told_and_no_page_is_made(
    monkeypatch: pytest.MonkeyPatch, cannot: dict[str, object]
) -> None:
    """No page table of the process knows them: others have made them. Where nobody can tell, all is data."""
    for name, value in cannot.items():
        monkeypatch.setattr(f"memfs.linux.hugeholes.{name}", value)
    mapping = Span(_AT, _AT + 6 * _HUGE)
    with huge_pages(_HUGE_PAGES), contextlib.ExitStack() as stack:
        huge = os.memfd_create("huge", os.MFD_HUGETLB)
        stack.callback(os.close, huge)
        os.ftruncate(huge, mapping.length)
        try:
            written = stack.enter_context(mmap.mmap(huge, mapping.length))  # which reserves the pages
        except OSError as error:
            pytest.skip(f"no huge pages: {error}")
        for page in (1, 2, 4):
            written[page * _HUGE + 5] = page
        kernel.map_memory(_AT, mapping.length, Prot.READ, Map.SHARED, huge)
        stack.callback(kernel.unmap, _AT, mapping.length)
        free = _free_huge_pages()
        pages = [Span(_AT + first * _HUGE, _AT + end * _HUGE) for first, end in ((1, 3), (4, 5))]
        for reader in READERS:
            with reader.open(os.getpid(), mapping) as opened:
                assert list(opened.data_spans(mapping)) == ([mapping] if cannot else pages)
                for page in range(6):
                    content = opened.read(Span(_AT + page * _HUGE, _AT + page * _HUGE + PAGE))
                    assert content[5] == (page if page in (1, 2, 4) else 0)
                    assert content.strip(b"\0") == content[5:6].strip(b"\0")
        assert _free_huge_pages() == free


def test_pages_given_back_become_holes(tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        given_back = Span(mapping.start + 8 * PAGE, mapping.start + 24 * PAGE)
        with VMA.open(target.pid, mapping.span) as opened:
            assert tuple(opened.data_spans(mapping.span)) == (mapping.span,)
            target.madvise(given_back.start, given_back.length, "dontneed")
            assert tuple(opened.data_spans(mapping.span)) == subtract([mapping.span], [given_back])
            assert opened.read(given_back) == bytes(given_back.length)


@pytest.mark.parametrize("reader", [reader for reader in READERS if not reader.flat], ids=str)
def test_nothing_is_held_from_where_nothing_is_mapped_any_more(tmp_path: Path, reader: Reader) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        with reader.open(target.pid, mapping.span) as opened:
            space, scanner = opened.source._space, opened.workspace.scanner
            assert space.held_end(mapping.start, mapping.end, scanner) == mapping.end
            target.unmap(mapping.start, 8 * PAGE)
            assert space.held_end(mapping.start, mapping.end, scanner) == mapping.start
