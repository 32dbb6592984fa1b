"""A target whose page faults never end: it blocks who reads it, and nobody else."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounted import Mount, check, memfs, mounts_on, opened
from support.drivers import StuckTarget
from support.pattern import PAGE
from support.target import Target

_ENDS_SECONDS = 60.0
"""For hangs only."""
_SAMPLES = 15
_LANE_THREADS = 4
"""So many reads of one target are tried at a time; the others wait for these."""


@pytest.fixture
def stuck() -> Iterator[StuckTarget]:
    """A process of which half the pages are missing."""
    with StuckTarget() as target:
        yield target


@contextmanager
def _reader(mount: Mount, stuck: StuckTarget, tool: str, copy: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is blocked in a read of a missing page."""
    file = mount.vma(stuck.pid, stuck.mapping)
    argv = {
        "cp": ["cp", file, copy],
        "dd": ["dd", f"if={file}", f"of={copy}", "bs=64K", "status=none"],
        "dd-direct": ["dd", f"if={file}", f"of={copy}", "bs=64K", "iflag=direct", "status=none"],
    }[tool]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as reader:
        try:
            address = stuck.wait_for_fault()
            assert any(span.start <= address < span.end for span in stuck.missing)
            yield reader
        finally:
            reader.kill()


@pytest.mark.parametrize("tool", ["cp", "dd", "dd-direct"])
def test_a_reader_waits_and_wakes_with_the_right_bytes(
    either_memfs: Mount, stuck: StuckTarget, tool: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with _reader(either_memfs, stuck, tool, copy) as reader:
        assert reader.poll() is None
        stuck.serve(7)
        assert reader.wait(_ENDS_SECONDS) == 0
    assert stuck.mapping.mismatch(0, copy.read_bytes()) is None
    assert len(copy.read_bytes()) == stuck.mapping.length


def test_what_is_there_is_read_without_waiting(memfs: Mount, stuck: StuckTarget) -> None:
    with opened(memfs.vma(stuck.pid, stuck.mapping)) as descriptor:
        for span in stuck.mapping.data:
            at = span.start - stuck.mapping.start
            assert stuck.mapping.mismatch(at, os.pread(descriptor, span.length, at)) is None
    assert stuck.pending_faults() == ()


def test_others_go_on_while_a_reader_is_blocked(
    either_memfs: Mount, stuck: StuckTarget, holder: Target, tmp_path: Path
) -> None:
    mapping = holder.mapping("private-full")
    file = either_memfs.vma(holder.pid, mapping)

    def read_other() -> None:
        with opened(file) as descriptor:
            got = os.pread(descriptor, 64 * PAGE, 0)
        assert (len(got), mapping.mismatch(0, got)) == (64 * PAGE, None)

    with _reader(either_memfs, stuck, "dd", tmp_path / "copy"):
        for _ in range(_SAMPLES):
            read_other()
            assert file.name in os.listdir(file.parent)


def test_each_of_many_blocked_readers_leaves_room_for_others(
    memfs: Mount, stuck: StuckTarget, holder: Target, tmp_path: Path
) -> None:
    mapping = holder.mapping("private-full")
    with opened(memfs.vma(holder.pid, mapping)) as descriptor:
        readers = []
        try:
            for index in range(6):
                file = memfs.vma(stuck.pid, stuck.mapping)
                argv = ["dd", f"if={file}", f"of={tmp_path / str(index)}", "bs=64K", "status=none"]
                readers.append(subprocess.Popen(argv))
                if index < _LANE_THREADS:
                    stuck.wait_for_fault()
                assert mapping.mismatch(0, os.pread(descriptor, PAGE, 0)) is None
            assert [reader.poll() for reader in readers] == [None] * 6
            stuck.serve(3)
            assert [reader.wait(_ENDS_SECONDS) for reader in readers] == [0] * 6
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
    for index in range(6):
        assert stuck.mapping.mismatch(0, (tmp_path / str(index)).read_bytes()) is None


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name
)
@pytest.mark.parametrize("tool", ["cp", "dd"])
def test_a_signal_ends_a_blocked_reader(
    either_memfs: Mount, stuck: StuckTarget, tool: str, number: signal.Signals, tmp_path: Path
) -> None:
    with _reader(either_memfs, stuck, tool, tmp_path / "copy") as reader:
        reader.send_signal(number)
        # dd asks to be told of SIGINT, and ends by it nevertheless.
        assert reader.wait(_ENDS_SECONDS) == -number


ENDINGS: dict[str, Callable[[Mount], None]] = {
    "memfs umount": lambda mount: _assert_silent(memfs("umount", mount.path)),
    "SIGTERM": lambda mount: mount.signal(signal.SIGTERM),
    "SIGINT": lambda mount: mount.signal(signal.SIGINT),
}


def _assert_silent(done: subprocess.CompletedProcess[bytes]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("ending", ["memfs umount", "SIGTERM", "SIGINT"])
def test_the_daemon_ends_with_a_reader_blocked(
    either_memfs: Mount, stuck: StuckTarget, ending: str, tmp_path: Path
) -> None:
    with _reader(either_memfs, stuck, "dd", tmp_path / "copy") as reader:
        ENDINGS[ending](either_memfs)
        assert either_memfs.reap() == 0
        assert reader.wait(_ENDS_SECONDS) == 1
        assert mounts_on(either_memfs.path) == []


def test_what_is_let_go_reads_as_zeros(memfs: Mount, stuck: StuckTarget, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with _reader(memfs, stuck, "dd", copy) as reader:
        stuck.release()
        assert reader.wait(_ENDS_SECONDS) == 0
    assert stuck.mapping.mismatch(0, copy.read_bytes()) is None


def test_a_target_that_dies_wakes_its_reader(memfs: Mount, stuck: StuckTarget, tmp_path: Path) -> None:
    with _reader(memfs, stuck, "dd", tmp_path / "copy") as reader:
        stuck.child.kill()
        assert reader.wait(_ENDS_SECONDS) == 1
        assert reader.stderr is not None
        assert b"No such process" in reader.stderr.read()


def test_the_mount_is_whole_after_a_reader_was_killed(
    memfs: Mount, stuck: StuckTarget, tmp_path: Path
) -> None:
    for _ in range(3):
        with _reader(memfs, stuck, "dd", tmp_path / "copy") as reader:
            reader.kill()
            reader.wait(_ENDS_SECONDS)
        assert str(stuck.pid) in check("ls", memfs.path).decode().split()
    stuck.serve(5)
    assert stuck.mapping.mismatch(0, memfs.vma(stuck.pid, stuck.mapping).read_bytes()) is None
