"""Long reads in order, ahead of which the daemon reads: what it holds never shows what should not be seen."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import MIB, Mount, opened
from support.held import HeldMapping
from support.target import Target

_SIZE = 24 * MIB
_BLOCK = MIB // 8
_BEGUN = 4 * MIB
"""Much more than must be read in order before anything is read ahead."""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A process with private memory enough."""
    with Target("private-full", directory=tmp_path, size=_SIZE) as target:
        yield target


def _read_on(descriptor: int, mapping: HeldMapping, start: int, end: int) -> None:
    for at in range(start, end, _BLOCK):
        assert mapping.mismatch(at, os.read(descriptor, _BLOCK)) is None


def _error(descriptor: int, blocks: int) -> set[int | None]:
    answers: set[int | None] = set()
    for _ in range(blocks):
        try:
            os.read(descriptor, _BLOCK)
        except OSError as error:
            answers.add(error.errno)
        else:
            answers.add(None)
    return answers


@pytest.mark.parametrize("block", [16 << 10, 1 << 17, 3 << 17, 1 << 20])
def test_every_byte_is_right_to_the_end(memfs: Mount, target: Target, block: int) -> None:
    mapping = target.mapping("private-full")
    with opened(memfs.vma(target.pid, mapping)) as descriptor:
        copy = bytearray()
        while got := os.read(descriptor, block):
            copy += got
    assert len(copy) == mapping.length
    assert mapping.mismatch(0, bytes(copy)) is None


@pytest.mark.parametrize(("end", "number"), [("exec", errno.ESTALE), ("exit", errno.ESRCH)])
def test_what_was_read_ahead_of_the_end_of_a_program_is_not_shown(
    memfs: Mount, target: Target, end: str, number: int
) -> None:
    mapping = target.mapping("private-full")
    with opened(memfs.vma(target.pid, mapping)) as descriptor:
        _read_on(descriptor, mapping, 0, _BEGUN)
        if end == "exec":
            target.exec("private-full", seed=2)
        else:
            target.exit()
        assert _error(descriptor, 8) == {number}


def test_what_was_read_ahead_of_an_unmap_is_not_shown(memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    with opened(memfs.vma(target.pid, mapping)) as descriptor:
        _read_on(descriptor, mapping, 0, _BEGUN)
        target.unmap(mapping.start, mapping.length)
        assert _error(descriptor, 8) == {errno.EIO}


def test_a_direct_reader_sees_each_write(memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    with opened(memfs.vma(target.pid, mapping), os.O_DIRECT) as descriptor:
        _read_on(descriptor, mapping, 0, _BEGUN)
        for at in range(_BEGUN, 2 * _BEGUN, _BLOCK):
            target.write(mapping.start + at, _BLOCK, seed=5)
            got = os.read(descriptor, _BLOCK)
            assert target.mapping("private-full").mismatch(at, got) is None


def test_a_reader_who_goes_back_sees_what_was_written_since(memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    with opened(memfs.vma(target.pid, mapping)) as descriptor:
        _read_on(descriptor, mapping, 0, _BEGUN)
        target.write(mapping.start, 2 * _BEGUN, seed=6)
        for at in (0, _BEGUN + MIB):
            os.lseek(descriptor, at, os.SEEK_SET)
            _read_on(descriptor, target.mapping("private-full"), at, at + MIB)
