"""Who is read: after an exec, an exit or a reuse of the pid no byte of the wrong memory ever comes out."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from process.reading import FLAT, READERS, VMA, Opened, Reader
from support.child import Child, Program
from support.drivers import PidNamespace
from support.held import HeldMapping, Span
from support.pattern import PAGE, fill
from support.target import Target
from unit.ways import WAYS, Way

from memfs.errors import MemfsError, NoSuchEntry, TargetExited, TargetReplaced
from memfs.linux.syscalls import read_process
from memfs.target.identity import Identity, ProcessHandle, identify
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache

KINDS = (
    "private-runs",
    "zero-read",
    "shared-anon",
    "memfd-shared",
    "memfd-private",
    "file-private",
    "file-shared",
    "none-data",
)
OLD, NEW = 1, 2


def looks(mapping: HeldMapping) -> list[Span]:
    """A page with content and a hole, where there is one, and all."""
    firsts = [Span(span.start, span.start + PAGE) for span in (*mapping.data[:1], *mapping.holes[:1])]
    return [*firsts, Span(mapping.start, min(mapping.end, mapping.start + 64 * PAGE))]


def open_cold_and_warm(target: Target, reader: Reader) -> list[tuple[HeldMapping, Opened]]:
    """Every mapping opened twice, and read once through the second."""
    opened = []
    for mapping in target.mappings:
        cold, warm = reader.open(target.pid, mapping.span), reader.open(target.pid, mapping.span)
        for span in looks(mapping):
            assert warm.read(span) == mapping.expected(span.start - mapping.start, span.length)
        opened += [(mapping, cold), (mapping, warm)]
    return opened


def assert_nothing_comes(opened: list[tuple[HeldMapping, Opened]], error: type[MemfsError]) -> None:
    """Every read and every seek must raise *error*."""
    for mapping, reader in opened:
        for span in looks(mapping):
            for way in WAYS:
                with pytest.raises(error):
                    reader.read(span, way)
            with pytest.raises(error):
                reader.next_data(span.start)
            with pytest.raises(error):
                reader.next_hole(span.start)


def close(opened: list[tuple[HeldMapping, Opened]]) -> None:
    """Close what `open_cold_and_warm` opened."""
    for _, reader in opened:
        reader.__exit__(None, None, None)


@pytest.mark.parametrize("reader", READERS)
def test_after_an_exec_nothing_is_read_though_all_is_mapped_again(tmp_path: Path, reader: Reader) -> None:
    with Target(*KINDS, directory=tmp_path, seed=OLD) as target:
        opened = open_cold_and_warm(target, reader)
        target.exec(*KINDS, seed=NEW)
        assert_nothing_comes(opened, TargetReplaced)
        close(opened)
        close(open_cold_and_warm(target, reader))


@pytest.mark.parametrize("reader", READERS)
def test_after_the_end_nothing_is_read_of_a_zombie_nor_of_who_is_gone(tmp_path: Path, reader: Reader) -> None:
    with Target(*KINDS, directory=tmp_path) as target:
        opened = open_cold_and_warm(target, reader)
        os.kill(target.pid, signal.SIGKILL)
        os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        assert_nothing_comes(opened, TargetExited)
        with pytest.raises(NoSuchEntry):
            identify(target.pid)
        target.child.reap()
        assert_nothing_comes(opened, TargetExited)
        close(opened)


_LARGE = """
import mmap
memory = mmap.mmap(-1, 256 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(memory), 4096):
    memory[at] = 1
print("{}", flush=True)
input()
"""


@pytest.mark.parametrize("memory", [True, False])
def test_a_process_that_is_ending_has_ended_and_not_run_exec(memory: bool) -> None:
    """Its address space is gone for the process at once, but the kernel takes a while to free the pages."""
    with Program(sys.executable, "-c", _LARGE) as program:
        identity = identify(program.pid)
        os.kill(program.pid, signal.SIGKILL)
        said = ""
        while "has ended" not in said:
            try:
                with AddressSpace(identity, VmaFlagsCache(), memory=memory, watched=True) as space:
                    space.maps_text()
            except TargetExited as error:
                said = error.sentence


def test_texts_of_a_program_that_is_gone_are_not_those_of_the_next(tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        identity = identify(target.pid)
        with AddressSpace(identity, VmaFlagsCache(), memory=False) as space:
            assert b"-" in space.maps_text()
            target.exec("private-runs", seed=NEW)
            with pytest.raises(TargetReplaced):
                space.maps_text()
            with pytest.raises(TargetReplaced):
                space.layout()
            assert identify(target.pid) == identity
            target.exit()
            with pytest.raises(TargetExited):
                space.maps_text()
        with pytest.raises(TargetExited):
            AddressSpace(identity, VmaFlagsCache(), memory=True)


def test_an_identity_with_another_start_is_another_process() -> None:
    mine = identify(os.getpid())
    with pytest.raises(TargetExited):
        ProcessHandle(Identity(mine.pid, mine.start_ticks - 1))
    handle = ProcessHandle(mine)
    assert not handle.exited
    handle.close()
    handle.close()


@pytest.fixture(params=["random", "fixed"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """This Python; or one that has the same addresses in each process, as under a debugger."""
    if request.param == "random":
        return sys.executable
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec setarch -R {sys.executable} "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("reader", [VMA, FLAT])
def test_old_memory_kept_alive_by_a_sharer_gives_old_bytes_or_none(
    tmp_path: Path, python: str, reader: Reader, warm: bool, way: Way
) -> None:
    """The new program maps, at the same addresses, files whose inode numbers are those of the old ones."""
    script = str(Path(__file__).with_name("sharer.py"))
    with Child(script, str(OLD), str(tmp_path), python=python) as child:
        spans = [Span(*ends) for ends in child.hello["spans"]]
        opened = [(span, reader.open(child.pid, span)) for span in spans]
        if warm:
            for span, each in opened:
                assert each.read(span) == fill(span.start, span.length, OLD)
        sharer = child.ask("share")["sharer"]
        try:
            again = child.ask("exec")
            assert [Span(*ends) for ends in again["spans"]] == spans
            assert again["inodes"] == child.hello["inodes"]
            for span, each in opened:
                with contextlib.suppress(TargetReplaced):
                    assert each.read(span, way) == fill(span.start, span.length, OLD)
        finally:
            os.kill(sharer, signal.SIGKILL)
        child.ask("reap", sharer)
        for span, each in opened:
            with pytest.raises(TargetReplaced):
                each.read(span, way)
            each.__exit__(None, None, None)


def test_a_fork_with_the_number_of_its_dead_parent_is_not_taken_for_it(tmp_path: Path) -> None:
    """It has the random bytes of its parent, whose memory a sharer keeps alive. The number is only said."""
    script = str(Path(__file__).with_name("sharer.py"))
    with Child(script, str(OLD), str(tmp_path)) as child:
        span = Span(*child.hello["spans"][0])
        with AddressSpace(identify(child.pid), VmaFlagsCache(), memory=True) as space:
            sharer, fork = child.ask("share")["sharer"], child.ask("fork")["fork"]
            try:
                os.kill(child.pid, signal.SIGKILL)
                child.reap()
                content = memoryview(bytearray(span.length))
                assert read_process(fork, (span.start, content)) == span.length
                assert content == fill(span.start, span.length, NEW)
                space.identity = Identity(fork, space.identity.start_ticks)
                assert space.read_present(span.start, content)
                assert content == fill(span.start, span.length, OLD)
            finally:
                os.kill(sharer, signal.SIGKILL)
                os.kill(fork, signal.SIGKILL)


_LATE_READER = """
import sys
sys.path[:0] = {path!r}
from process.reading import FLAT, VMA
from support.held import Span
from memfs.errors import MemfsError
from memfs.target.identity import ProcessHandle, identify

pid, start, end = map(int, sys.argv[1:])
span = Span(start, end)
opened = [reader.open(pid, span) for reader in (VMA, FLAT)]
before = identify(pid)
assert all(any(each.read(span)) for each in opened)
print("read", flush=True)
input()
assert identify(pid) != before
for attempt in (*[lambda each=each: each.read(span) for each in opened], lambda: ProcessHandle(before)):
    try:
        attempt()
        print("something came")
    except MemfsError as error:
        print(type(error).__name__)
"""


def test_a_pid_that_another_process_has_taken_over_gives_nothing_of_it(tmp_path: Path) -> None:
    pid = 1234
    with PidNamespace() as inside:
        held = inside.hold(pid, "private-runs", seed=OLD, directory=tmp_path)
        (mapping,) = held.of("private-runs")
        part = Span(mapping.start, mapping.start + 64 * PAGE)
        source = _LATE_READER.format(path=sys.path)
        reader = inside.python(source, str(pid), str(part.start), str(part.end))
        assert inside.line(reader) == b"read"
        inside.end(pid)
        inside.hold(pid, "private-runs", seed=NEW, directory=tmp_path)
        inside.send(reader, "now")
        assert [inside.line(reader) for _ in range(3)] == [b"TargetExited"] * 3
