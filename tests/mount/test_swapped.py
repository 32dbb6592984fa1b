"""Reading memory that is swapped out: its process lives on, and it is swapped out again."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from mount.mounted import MEMFS, MIB, Mount, check, mounted, opened, read_all, run
from support.child import Program
from support.compiled import build
from support.held import Span
from support.outside import read_maps, read_memory_use
from support.pattern import PAGE
from support.swaparea import SwapUnavailableError, bounded_cgroup, swap_area, swapped_bytes

from memfs.linux import span as memfs_span
from memfs.linux.pagemap import Scanner

_SIZE = 16 * MIB
_BOUNDED_SIZE = 64 * MIB
_LIMIT = 24 * MIB
_ROUNDS = 2
_SLACK = 8 * MIB
"""The kernel takes more than is asked for from a cgroup that is full, the first time."""


@pytest.fixture(autouse=True, scope="module")
def _swap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(swap_area(tmp_path_factory.mktemp("swap"), 4 * _BOUNDED_SIZE))
        except SwapUnavailableError as error:
            pytest.skip(str(error))
        yield


class _Swapped(Program):
    """A process with private memory that is swapped out in part."""

    def __init__(self, group: Path | str, size: int, how: str, *file: Path, user: int | None = None) -> None:
        super().__init__(build("swapped"), str(group), str(size // MIB), how, *file, user=user)
        self.span = Span(self.hello["start"], self.hello["start"] + self.hello["length"])

    def name(self) -> str:
        """The file of its memory."""
        (line,) = (line for line in read_maps(self.pid) if line.span.start <= self.span.start < line.span.end)
        label = os.path.basename(line.path.decode()) or "anon"
        return f"{line.span.start:012x}-{line.span.end:012x}_{line.perms}_{label}"

    def expected(self) -> bytes:
        """What it holds, from its own memory."""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return read_all(memory.fileno(), self.span.length, self.span.start)


@contextmanager
def _left_alone(process: _Swapped) -> Iterator[None]:
    """What is in memory of a process, and what is swapped out, is as much as before, to 1 MiB."""
    before = read_memory_use(process.pid).rss, swapped_bytes(process.pid)
    yield
    after = read_memory_use(process.pid).rss, swapped_bytes(process.pid)
    assert after == pytest.approx(before, abs=MIB)


def _read(file: Path, flags: int = 0, *, at: int = 0, length: int = _SIZE, step: int = MIB) -> bytes:
    """Some of *file*, *step* bytes at a time."""
    with opened(file, flags) as descriptor:
        return b"".join(os.pread(descriptor, step, at + done) for done in range(0, length, step))


@pytest.mark.parametrize("how", ["all", "odd"])
def test_what_was_swapped_out_is_so_again(either_memfs: Mount, how: str, tmp_path: Path) -> None:
    with _Swapped("-", _SIZE, how) as process:
        assert swapped_bytes(process.pid) > _SIZE * (0.8 if how == "all" else 0.4)
        directory = either_memfs.process(process.pid)
        file = directory / "vmas" / process.name()
        found = []
        with _left_alone(process):
            at = process.span.start - int(process.name()[:12], 16)
            found += [_read(file, at=at), _read(file, os.O_DIRECT, at=at), _read(file, at=at, step=8 * PAGE)]
            found.append(_read(directory / "mem", at=process.span.start))
            check(MEMFS, "copy", file, tmp_path / "copy")
            found.append((tmp_path / "copy").read_bytes()[at : at + _SIZE])
        expected = process.expected()
        assert all(content == expected for content in found)
        process.send("")
        assert process.answer() == {"wrong": 0}


def test_both_ways_of_asking_tell_what_is_swapped_out() -> None:
    with _Swapped("-", _SIZE, "odd") as process, open(f"/proc/{process.pid}/pagemap", "rb") as pagemap:
        span = memfs_span.Span(process.span.start, process.span.end)
        ways = [list(Scanner(use_scan=scans).runs(pagemap.fileno(), span)) for scans in (True, False)]
        assert ways[0] == ways[1]
        assert sum(run.span.size for run in ways[0] if run.swapped) == swapped_bytes(process.pid)


def test_so_is_what_was_written_to_a_private_file(memfs: Mount, tmp_path: Path) -> None:
    with _Swapped("-", _SIZE, "all", tmp_path / "file") as process:
        assert swapped_bytes(process.pid) > 0.8 * _SIZE
        with _left_alone(process):
            content = _read(memfs.process(process.pid) / "vmas" / process.name())
        assert content == process.expected()


def test_so_it_is_when_frozen_copies_are_read(memfs: Mount) -> None:
    with _Swapped("-", _SIZE, "odd") as process:
        with _left_alone(process), memfs.snapshot(process.pid) as frozen:
            file = frozen / "vmas" / process.name()
            at = process.span.start - int(process.name()[:12], 16)
            swapped_before = sum(map(swapped_bytes, _copies_of(process.pid)))
            content = _read(file, at=at)
            swapped_after = sum(map(swapped_bytes, _copies_of(process.pid)))
            _read(frozen.parent.parent / "core", length=_SIZE)
        assert swapped_after == pytest.approx(swapped_before, abs=MIB)
        assert swapped_before > 0.4 * _SIZE
        assert content == process.expected()


def _copies_of(pid: int) -> list[int]:
    """The frozen copies of a process: others that run the same program."""
    program = os.readlink(f"/proc/{pid}/exe")
    found = []
    for other in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # a kernel thread, or it has ended
            if int(other) != pid and os.readlink(f"/proc/{other}/exe") == program:
                found.append(int(other))
    return found


@contextmanager
def _bounded(user: int | None = None) -> Iterator[_Swapped]:
    """A process of three times the memory that its cgroup has."""
    with ExitStack() as stack:
        try:
            group = stack.enter_context(bounded_cgroup(_LIMIT))
        except SwapUnavailableError as error:
            pytest.skip(str(error))
        if user is not None:
            os.chown(group / "cgroup.procs", user, user)
        yield stack.enter_context(_Swapped(group, _BOUNDED_SIZE, "none", user=user))


def test_a_process_that_its_cgroup_bounds_outlives_its_readers(memfs: Mount) -> None:
    with _bounded() as process:
        before = read_memory_use(process.pid).rss
        file = memfs.process(process.pid) / "vmas" / process.name()
        at = process.span.start - int(process.name()[:12], 16)
        for _ in range(_ROUNDS):
            for flags in (0, os.O_DIRECT):
                content = _read(file, flags, at=at, length=_BOUNDED_SIZE)
                assert read_memory_use(process.pid).rss == pytest.approx(before, abs=_SLACK)
        assert len(content) == _BOUNDED_SIZE
        for page in range(0, _BOUNDED_SIZE, PAGE):
            assert int.from_bytes(content[page : page + 8], "little") == page // PAGE
        assert Path(f"/proc/{process.pid}/comm").exists()


def test_who_cannot_put_pages_back_is_told_so_where_there_is_no_room(user: int, user_directory: Path) -> None:
    with mounted(user_directory, user=user) as mount, _bounded(user) as process:
        before = swapped_bytes(process.pid)
        mount.declare(
            rf"memory of process {process.pid} is swapped out, and there is no room.*: mount .*root.*"
        )
        done = run("cat", mount.process(process.pid) / "vmas" / process.name(), user=user)
        assert os.strerror(errno.ENOMEM).encode() in done.stderr
        assert swapped_bytes(process.pid) == pytest.approx(before, abs=_SLACK)
        process.send("")
        assert process.answer() == {"wrong": 0}


def test_who_cannot_put_pages_back_reads_them_where_there_is_room(user: int, user_directory: Path) -> None:
    with mounted(user_directory, user=user) as mount, _Swapped("-", _SIZE, "all", user=user) as process:
        done = run("cat", mount.process(process.pid) / "vmas" / process.name(), user=user)
        assert (done.returncode, done.stderr) == (0, b"")
        at = process.span.start - int(process.name()[:12], 16)
        assert done.stdout[at : at + _SIZE] == process.expected()
