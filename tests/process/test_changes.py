"""A target that changes while it is open: what is mapped now is read, and what is gone is an error."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process.reading import FLAT, READERS, VMA, Reader
from support.child import Child
from support.drivers import StuckTarget
from support.held import Span
from support.outside import read_maps, read_memory
from support.pattern import PAGE, fill
from support.target import Target
from unit.ways import WAYS, Way

from memfs.errors import RangeUnmapped, TargetExited
from memfs.image.memory import Memory
from memfs.image.source import Piece, Workspace
from memfs.linux.span import Span as MemfsSpan
from memfs.target.identity import identify
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache

KINDS = ("private-runs", "shared-anon", "memfd-private", "file-private", "file-shared", "none-data")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_that_was_unmapped_is_an_error(tmp_path: Path, kind: str, way: Way) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        gone = Span(mapping.start + 64 * PAGE, mapping.start + 256 * PAGE)
        with VMA.open(target.pid, mapping.span) as opened, FLAT.open(target.pid, mapping.span) as flat:
            for reader in (opened, flat):
                assert not mapping.mismatch(64 * PAGE, reader.read(Span(gone.start, gone.start + 10 * PAGE)))
            target.unmap(gone.start, gone.length)
            for page in (0, 100, 191):
                part = Span(gone.start + page * PAGE, gone.start + (page + 1) * PAGE)
                with pytest.raises(RangeUnmapped):
                    opened.read(part, way)
            assert not mapping.mismatch(0, opened.read(Span(mapping.start, gone.start), way))
            with FLAT.open(target.pid, mapping.span) as anew:
                assert anew.read(Span(gone.start, gone.start + PAGE), way) == bytes(PAGE)
                assert anew.next_hole(mapping.start + 4 * PAGE) <= gone.start


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_range_that_was_mapped_anew_has_its_new_content(
    tmp_path: Path, kind: str, reader: Reader, way: Way
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        head = Span(mapping.start, mapping.start + 64 * PAGE)
        with reader.open(target.pid, mapping.span) as opened:
            assert not mapping.mismatch(0, opened.read(head, way))
            target.unmap(mapping.start, mapping.length)
            anew = target.map(mapping.start, mapping.length)
            target.write(head.start + 3 * PAGE, 10 * PAGE, 77)
            expected = bytes(3 * PAGE) + fill(head.start + 3 * PAGE, 10 * PAGE, 77) + bytes(51 * PAGE)
            assert opened.read(head, way) == expected
            written = Span(head.start + 3 * PAGE, head.start + 13 * PAGE)
            assert tuple(opened.data_spans(anew.span)) == (written,)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "private-runs"])
def test_another_mapping_moved_into_an_open_one_is_read_as_itself(
    tmp_path: Path, kind: str, way: Way
) -> None:
    with Target("private-runs", kind, directory=tmp_path) as target:
        mapping, other = target.mapping("private-runs"), target.mapping(kind)
        with VMA.open(target.pid, mapping.span) as opened:
            assert not mapping.mismatch(0, opened.read(Span(mapping.start, mapping.start + PAGE)))
            target.move(other.start, other.length, mapping.start)
            for first, end in ((0, 1), (60, 130), (131, 200), (254, 256)):
                part = Span(mapping.start + first * PAGE, mapping.start + end * PAGE)
                assert opened.read(part, way) == other.expected(first * PAGE, (end - first) * PAGE)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_that_was_split_is_the_same_memory(tmp_path: Path, kind: str, reader: Reader) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        with reader.open(target.pid, mapping.span) as opened:
            target.mprotect(mapping.start + 70 * PAGE, 20 * PAGE, "r-x")
            for start in (0, 60, 80, 120):
                part = Span(mapping.start + start * PAGE, mapping.start + (start + 30) * PAGE)
                assert not mapping.mismatch(start * PAGE, opened.read(part))


@pytest.mark.parametrize("way", WAYS)
def test_a_heap_that_grew_is_read_right(way: Way) -> None:
    with Child(str(Path(__file__).with_name("heap.py"))) as child:
        old = Span(*child.hello["block"])
        heap = next(line.span for line in read_maps(child.pid) if line.path == b"[heap]")
        with VMA.open(child.pid, heap) as opened, FLAT.open(child.pid, heap) as flat:
            new = Span(*child.ask("grow")["block"])
            assert new.end > heap.end
            for reader in (opened, flat):
                assert reader.read(old, way) == fill(old.start, old.length, 1)
            assert flat.read(new, way) == fill(new.start, new.length, 1)
            grown = next(line.span for line in read_maps(child.pid) if line.path == b"[heap]")
            with VMA.open(child.pid, grown) as anew:
                assert anew.read(new, way) == fill(new.start, new.length, 1)
            with AddressSpace(identify(child.pid), VmaFlagsCache(), memory=False) as space:
                found = space.heap()
                assert found is not None
                assert (found.span.start, found.span.end) == (grown.start, grown.end)


def test_a_stack_that_grew_is_read_right(tmp_path: Path) -> None:
    with Target("stack", directory=tmp_path) as target:
        before, start = target.recurse(3000)
        assert start < before
        grown = next(line.span for line in read_maps(target.pid) if line.path == b"[stack]")
        assert grown.start == start
        with VMA.open(target.pid, grown) as opened:
            part = Span(start, start + 100 * PAGE)
            assert opened.read(part) == read_memory(target.pid, part)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_between_look_and_read_is_read_again(
    tmp_path: Path, kind: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        part = Span(mapping.start, mapping.start + 64 * PAGE)
        look = Memory.pieces

        def look_and_unmap(source: Memory, span: MemfsSpan, workspace: Workspace) -> list[Piece]:
            found = look(source, span, workspace)
            if any(line.span.overlap(part) for line in read_maps(target.pid)):
                target.unmap(mapping.start, mapping.length)
            return found

        with FLAT.open(target.pid, mapping.span) as flat, VMA.open(target.pid, mapping.span) as opened:
            monkeypatch.setattr(Memory, "pieces", look_and_unmap)
            assert flat.read(part, way) == bytes(part.length)
            with pytest.raises(RangeUnmapped):
                opened.read(part, way)


def test_missing_pages_of_a_userfaultfd_are_no_holes() -> None:
    with StuckTarget() as stuck, AddressSpace(identify(stuck.pid), VmaFlagsCache(), memory=False) as space:
        text, region = space.text(), space.region_at(stuck.mapping.start)
        assert text is not None
        assert region is not None
        assert space.is_fetched(region.span)
        assert not space.is_fetched(text.span)
        for reader in READERS:
            with reader.open(stuck.pid, stuck.mapping.span) as opened:
                assert tuple(opened.data_spans(stuck.mapping.span)) == (stuck.mapping.span,)
                for span in stuck.mapping.data:
                    for way in WAYS:
                        content = opened.read(span, way)
                        assert not stuck.mapping.mismatch(span.start - stuck.mapping.start, content)
        assert stuck.pending_faults() == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS)
def test_who_reads_a_missing_page_waits_until_it_is_there(reader: Reader, way: Way) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        StuckTarget() as stuck,
        reader.open(stuck.pid, stuck.mapping.span) as opened,
    ):
        missing = stuck.missing[0]
        reading = pool.submit(opened.read, missing, way)
        assert stuck.wait_for_fault() == missing.start
        assert not reading.done()
        stuck.serve(5)
        assert reading.result() == fill(missing.start, missing.length, 5)
        assert not stuck.mapping.mismatch(0, opened.read(stuck.mapping.span, way))


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_for_a_page_of_a_process_that_is_killed_gets_an_error(way: Way) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        StuckTarget() as stuck,
        VMA.open(stuck.pid, stuck.mapping.span) as opened,
    ):
        reading = pool.submit(opened.read, stuck.missing[0], way)
        stuck.wait_for_fault()
        stuck.child.kill()
        with pytest.raises((TargetExited, RangeUnmapped)):
            reading.result()


def test_once_the_userfaultfd_is_closed_its_missing_pages_are_holes() -> None:
    with StuckTarget() as stuck:
        missing = stuck.missing
        stuck.release()
        for reader in (VMA, FLAT):
            with reader.open(stuck.pid, stuck.mapping.span) as opened:
                assert tuple(opened.data_spans(stuck.mapping.span)) == stuck.mapping.data
                assert stuck.mapping.holes == missing
                assert not stuck.mapping.mismatch(0, opened.read(stuck.mapping.span))
