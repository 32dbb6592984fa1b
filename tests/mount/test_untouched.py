"""Reading leaves the target as it was, and takes no more room than the target does."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounted import MIB, Mount, check, opened, read_all
from support.held import HeldMapping
from support.pattern import PAGE
from support.target import Target

_GIB = 1 << 30


@contextmanager
def _undisturbed(target: Target) -> Iterator[None]:
    """Resident memory and page tables of the target grow by less than 1 MiB."""
    before = target.rss()
    yield
    after = target.rss()
    assert after.rss - before.rss < MIB
    assert after.page_tables - before.page_tables < MIB


def _check_pieces(mapping: HeldMapping, copy: Path) -> None:
    with opened(copy) as descriptor:
        for piece in mapping.pieces():
            at = piece.start - mapping.start
            assert mapping.mismatch(at, read_all(descriptor, piece.length, at)) is None
        for hole in mapping.holes:
            assert os.pread(descriptor, PAGE, hole.start - mapping.start) == bytes(PAGE)


@pytest.mark.parametrize(("kind", "held"), [("reserved-8g", 32 * MIB), ("reserved-64g", 64 * MIB)])
def test_a_copy_of_reserved_memory_is_as_small_as_what_was_touched(
    either_memfs: Mount, kind: str, held: int, tmp_path: Path
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping, copy = target.mapping(kind), tmp_path / "copy"
        with _undisturbed(target):
            check("cp", either_memfs.vma(target.pid, mapping), copy)
        assert copy.stat().st_size == mapping.length
        assert copy.stat().st_blocks * 512 == pytest.approx(held, rel=0.02)
        _check_pieces(mapping, copy)


def test_reading_holes_byte_for_byte_touches_nothing(either_memfs: Mount, tmp_path: Path) -> None:
    with Target("reserved-8g", directory=tmp_path) as target:
        file = either_memfs.vma(target.pid, target.mapping("reserved-8g"))
        with _undisturbed(target):
            for flags in ("count_bytes", "count_bytes,direct"):
                check(
                    "dd",
                    f"if={file}",
                    "of=/dev/null",
                    "bs=1M",
                    f"count={_GIB}",
                    f"iflag={flags}",
                    "status=none",
                )
            check("dd", f"if={file}", "of=/dev/null", "bs=16K", "count=8192", "skip=4096", "status=none")


def test_a_mapped_file_is_read_without_the_target(either_memfs: Mount, shm: Path, tmp_path: Path) -> None:
    with Target("file-256m", directory=tmp_path) as target:
        mapping, copy = target.mapping("file-256m"), shm / "copy"
        with _undisturbed(target):
            check("cp", either_memfs.vma(target.pid, mapping), copy)
            check(
                "dd",
                f"if={either_memfs.vma(target.pid, mapping)}",
                "of=/dev/null",
                "bs=16K",
                "count=2048",
                "status=none",
            )
        with opened(copy) as descriptor:
            assert os.fstat(descriptor).st_size == mapping.length
            for at in range(0, mapping.length, 16 * MIB):
                assert mapping.mismatch(at, os.pread(descriptor, MIB, at)) is None


def test_looking_around_touches_nothing(memfs: Mount, tmp_path: Path) -> None:
    kinds = "reserved-8g", "file-256m", "private-runs"
    with Target(*kinds, directory=tmp_path) as target, _undisturbed(target):
        process = memfs.process(target.pid)
        check("find", process, "-ls")
        check("du", "-a", process)
        check("getfattr", "-dR", "--absolute-names", process / "vmas")
        check("cat", process / "maps")


def test_a_whole_process_is_copied_without_disturbing_it(memfs: Mount, shm: Path, tmp_path: Path) -> None:
    with Target("reserved-8g", "shared-anon-other", "file-sparse", directory=tmp_path) as target:
        with _undisturbed(target):
            check("cp", "-r", memfs.process(target.pid), shm / "copy")
        for kind in ("reserved-8g", "file-sparse"):
            mapping = target.mapping(kind)
            _check_pieces(mapping, shm / "copy/vmas" / memfs.vma(target.pid, mapping).name)
