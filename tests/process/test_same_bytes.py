"""Spliced equals copied equals what was written equals /proc/PID/mem, for memory of every kind."""

import os
from pathlib import Path

import pytest
from process.reading import FLAT, FROZEN_READERS, KINDS, LONGEST, READERS, VMA, Reader, mappings_of, windows
from support.held import Span
from support.outside import read_maps, read_memory
from support.pattern import PAGE
from support.target import Target
from unit.ways import WAYS, Way, spliced

from memfs.errors import RangeUnmapped
from memfs.image.source import CannotSplice, Workspace
from memfs.linux import span as memfs_span
from memfs.linux.pagemap import PageKind, PageRun

MIB = 1 << 20
READABLE = [kind for kind in KINDS if kind != "secretmem"]
CASES = [
    pytest.param(reader, kind, id=f"{kind}-{reader}")
    for kind in READABLE
    for reader in (*READERS, *FROZEN_READERS)
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("reader", "kind"), CASES)
def test_every_way_gives_the_bytes_that_were_written(
    everything: Target, reader: Reader, kind: str, way: Way
) -> None:
    for mapping in mappings_of(everything, kind):
        with reader.open(everything.pid, mapping.span) as opened:
            live = not (reader.frozen or reader.copied)
            if way is spliced and live and kind == "hugetlb" and mapping.perms[3] == "s":
                with pytest.raises(CannotSplice):  # hugetlbfs has no splice
                    opened.read(Span(mapping.start, mapping.start + PAGE), way)
                continue
            for window in windows(mapping):
                assert not mapping.mismatch(window.start - mapping.start, opened.read(window, way))


@pytest.mark.parametrize("kind", READABLE)
def test_every_readable_page_is_what_proc_mem_gives(compared: Target, kind: str) -> None:
    for mapping in mappings_of(compared, kind):
        small = mapping.length <= 16 * MIB
        spans = mapping.readable if small else [*mapping.pieces(), *windows(mapping)]
        with FLAT.open(compared.pid, mapping.span) as opened:
            for span in spans:
                for start in range(span.start, span.end, LONGEST):
                    part = Span(start, min(start + LONGEST, span.end))
                    assert opened.read(part) == read_memory(compared.pid, part)


def test_all_else_that_a_program_maps_is_what_proc_mem_gives(compared: Target) -> None:
    """Its libraries, its heap, its stack, the vDSO; the program waits for a command and is still."""
    ours = [mapping.span for mapping in compared.mappings if mapping.whole_vma]
    others = [
        line
        for line in read_maps(compared.pid)
        if not any(line.span.overlap(span) for span in ours)
        and not line.path.startswith((b"[vvar", b"[vsyscall]"))
    ]
    assert {b"[heap]", b"[stack]", b"[vdso]"} <= {line.path for line in others}
    assert any(line.path.startswith(b"/") for line in others)
    for line in others:
        for way in WAYS:
            with VMA.open(compared.pid, line.span) as opened:
                for start in range(line.span.start, line.span.end, LONGEST):
                    part = Span(start, min(start + LONGEST, line.span.end))
                    assert opened.read(part, way) == read_memory(compared.pid, part)


@pytest.mark.parametrize("way", WAYS)
def test_a_guard_region_reads_as_zeros(everything: Target, way: Way) -> None:
    (mapping,) = mappings_of(everything, "guard")
    for reader in (VMA, FLAT, *FROZEN_READERS):
        with reader.open(everything.pid, mapping.span) as opened:
            content = opened.read(Span(mapping.start, mapping.end), way)
    for span in mapping.readable:
        first, end = span.start - mapping.start, span.end - mapping.start
        assert content[first:end] == mapping.expected(first, end - first)
    for span in mapping.unreadable:
        assert not any(content[span.start - mapping.start : span.end - mapping.start])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", [*READERS, *FROZEN_READERS])
def test_pages_behind_the_end_of_a_file_read_as_zeros(everything: Target, reader: Reader, way: Way) -> None:
    for mapping in mappings_of(everything, "file-truncated"):
        (beyond,) = mapping.unreadable
        before = mapping.expected(beyond.start - 2 * PAGE - mapping.start, 2 * PAGE)
        with reader.open(everything.pid, mapping.span) as opened:
            for span in (beyond, Span(beyond.start + 1, beyond.end - 1), Span(beyond.end - 1, beyond.end)):
                assert opened.read(span, way) == bytes(span.length)
            around = Span(beyond.start - 2 * PAGE, beyond.start + PAGE)
            assert opened.read(around, way) == before + bytes(PAGE)


@pytest.mark.parametrize("kind", ["file-shared", "memfd-shared", "file-private"])
def test_a_file_that_is_cut_off_while_it_is_read_ends_there(
    tmp_path: Path, kind: str, workspace: Workspace
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        cut = mapping.length // 2 // PAGE * PAGE
        target.touch(mapping.start, mapping.length)
        with VMA.open(target.pid, mapping.span) as opened:
            source = opened.source
            view = memoryview(bytearray(4 * PAGE))
            told = source.pieces(memfs_span.Span(cut - 2 * PAGE, cut + 2 * PAGE), workspace)
            link = f"/proc/{target.pid}/map_files/{mapping.start:x}-{mapping.end:x}"
            os.truncate(link, mapping.offset + cut)
            at = 0
            for piece in told:
                piece_end = at + piece.size
                source._copy(cut - 2 * PAGE + at, piece, view[at:piece_end], workspace)
                at = piece_end
            assert bytes(view) == mapping.expected(cut - 2 * PAGE, 2 * PAGE) + bytes(2 * PAGE)


def test_a_page_behind_the_end_that_is_held_and_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 6.18 there could be such pages: a huge page of tmpfs was mapped whole."""
    with Target("file-truncated", directory=tmp_path) as target:
        for mapping in target.mappings:
            (beyond,) = mapping.unreadable
            held = PageRun(memfs_span.Span(beyond.start, beyond.start + PAGE), PageKind.FILE)
            rest = PageRun(memfs_span.Span(held.span.end, beyond.end), PageKind.UNTOUCHED)
            with VMA.open(target.pid, mapping.span) as opened:
                runs = [held, rest]
                monkeypatch.setattr(opened.source._space, "pages", lambda *_, runs=runs, **__: iter(runs))
                assert opened.next_data(beyond.start) == beyond.start
                assert opened.next_hole(beyond.start) == beyond.start + PAGE
                with pytest.raises(RangeUnmapped):
                    opened.read(Span(beyond.start, beyond.start + PAGE))
                assert opened.read(Span(beyond.start + PAGE, beyond.end)) == bytes(beyond.length - PAGE)


@pytest.mark.parametrize("way", WAYS)
def test_what_no_one_can_read_is_a_hole_of_the_whole_and_no_file(everything: Target, way: Way) -> None:
    (mapping,) = mappings_of(everything, "secretmem")
    with FLAT.open(everything.pid, mapping.span) as opened:
        assert not any(opened.read(mapping.span, way))
        assert list(opened.data_spans(mapping.span)) == []
    with VMA.open(everything.pid, mapping.span) as opened, pytest.raises(RangeUnmapped):
        opened.read(mapping.span, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_read_stops_at_the_end_and_behind_it_there_is_nothing(everything: Target, way: Way) -> None:
    (mapping,) = mappings_of(everything, "private-runs")
    with VMA.open(everything.pid, mapping.span) as opened:
        last = Span(mapping.end - 10, mapping.end + LONGEST - 10)
        assert opened.read(last, way) == mapping.expected(mapping.length - 10, 10)
        assert opened.read(Span(mapping.end, mapping.end + 10), way) == b""
        assert opened.read(Span(mapping.end + 5, mapping.end + 10), way) == b""
        assert opened.read(Span(mapping.start, mapping.start), way) == b""
