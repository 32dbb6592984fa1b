"""Data and holes tile every source: walking from one to the next finds exactly the pages with content."""

from pathlib import Path

import pytest
from process.reading import FLAT, FROZEN_READERS, KINDS, READERS, VMA, Reader, first_edges, mappings_of
from support.held import HeldMapping, Span, merge, subtract
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
    if mapping.kind == "hugetlb" and mapping.perms[3] == "s":
        return (mapping.span,)  # hugetlbfs does not tell its holes
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
