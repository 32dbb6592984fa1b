"""A snapshot: what is in it stays, what is not says so, and a process that cannot be frozen goes on."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.freezing import snapshots
from support.compiled import build
from support.drivers import StuckTarget
from support.held import HeldMapping, Span
from support.outside import children_of, thread_states
from support.pattern import PAGE, fill
from support.target import Target
from unit.ways import copied

from memfs.errors import (
    CannotFreeze,
    NameTaken,
    NoSuchEntry,
    RangeUnmapped,
    TargetBusy,
    TargetExited,
    TargetStuck,
    TooMany,
)
from memfs.image.memory import Memory
from memfs.image.source import Workspace
from memfs.linux import ptrace
from memfs.linux.span import Span as MemfsSpan
from memfs.snapshot.registry import MOST_OF_A_PROCESS, Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import Fate, Part
from memfs.target.identity import identify

NOBODY = 65534
NEW = 99
MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[Snapshots]:
    with snapshots() as made:
        yield made


def take(registry: Snapshots, pid: int, name: bytes = b"one") -> Snapshot:
    return registry.get(registry.make(identify(pid), name))


def part_of(snapshot: Snapshot, mapping: HeldMapping) -> Part:
    """What the snapshot says of the VMA that begins with *mapping*."""
    (part,) = [part for part in snapshot.frozen.parts if part.region.span.start == mapping.start]
    return part


def read(snapshot: Snapshot, span: Span) -> bytes:
    """The bytes of *span* as the snapshot has them."""
    workspace = Workspace()
    with snapshot.open() as space:
        source = Memory(space, space.layout(), MemfsSpan(0, space.end()), flat=True)
        try:
            return copied(source, span.start, span.length, workspace)
        finally:
            source.close()
            workspace.close()


def read_until_it_fails(snapshot: Snapshot, span: Span) -> None:
    """Read again and again."""
    while True:
        read(snapshot, span)


# What it holds


@pytest.mark.parametrize(
    ("kind", "fate"),
    [
        ("private-runs", Fate.FROZEN),
        ("private-full", Fate.FROZEN),
        ("thp", Fate.FROZEN),
        ("none-data", Fate.FROZEN),
        ("file-private", Fate.FROZEN),
        ("memfd-private", Fate.FROZEN),
        ("shared-anon", Fate.COPIED),
        ("memfd-shared", Fate.COPIED),
        ("file-shared", Fate.COPIED),
        ("system-v", Fate.COPIED),
    ],
)
def test_what_the_process_writes_afterwards_is_not_in_it(
    registry: Snapshots, tmp_path: Path, kind: str, fate: Fate
) -> None:
    with Target(kind, directory=tmp_path) as target:
        before = target.mapping(kind)
        snapshot = take(registry, target.pid)
        assert part_of(snapshot, before).fate is fate
        if kind == "none-data":
            target.mprotect(before.start, before.length, "rw-")
        target.write(before.start, before.length, NEW)
        assert read(snapshot, before.span) == before.expected(0, before.length)
        assert target.mapping(kind).expected(0, PAGE) == fill(before.start, PAGE, NEW)


def test_beyond_the_limit_shared_memory_is_live(tmp_path: Path) -> None:
    with (
        snapshots(copy_bytes=MIB // 2, memory_bytes=0) as registry,
        Target("shared-anon", directory=tmp_path) as target,
    ):
        shared = target.mapping("shared-anon")
        target.write(shared.start, shared.length, 1)
        snapshot = take(registry, target.pid)
        assert part_of(snapshot, shared).fate is Fate.LIVE
        target.write(shared.start, shared.length, NEW)
        assert read(snapshot, shared.span) == fill(shared.start, shared.length, NEW)


def test_a_file_that_is_written_afterwards_is_an_error_and_its_private_copies_stay(
    registry: Snapshots, tmp_path: Path
) -> None:
    with Target("file-private", directory=tmp_path) as target:
        mapping = target.mapping("file-private")
        (own, *_) = mapping.touched
        assert mapping.path is not None
        os.utime(os.fsdecode(mapping.path), (1, 1))  # long ago: its change is seen by its time
        snapshot = take(registry, target.pid)
        assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        with open(mapping.path, "r+b") as file:
            file.write(b"something else")
        with pytest.raises(RangeUnmapped) as error:
            read(snapshot, mapping.span)
        assert "was written since" in str(error.value)
        kept = Span(own.start, own.start + PAGE)
        assert read(snapshot, kept) == mapping.expected(kept.start - mapping.start, PAGE)


def test_pages_that_a_userfaultfd_has_not_supplied_are_an_error(registry: Snapshots) -> None:
    with StuckTarget() as stuck:
        snapshot = take(registry, stuck.pid)
        for span in stuck.missing:
            with pytest.raises(RangeUnmapped):
                read(snapshot, span)
        for span in stuck.mapping.data:
            expected = stuck.mapping.expected(span.start - stuck.mapping.start, span.length)
            assert read(snapshot, span) == expected
        stuck.serve(NEW)
        assert thread_states(stuck.pid)[stuck.pid][1] == 0


def test_what_is_read_late_into_pinned_memory_is_the_processs_and_not_the_copys(registry: Snapshots) -> None:
    """The kernel gives the copy pages of its own: those that are pinned stay where the bytes will come."""
    argv = [build("fixed")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            address = int(program.stdout.readline())
            if not address:
                pytest.skip("io_uring is not to be had here")
            snapshot = take(registry, program.pid)
            program.stdin.write(b"late")
            program.stdin.flush()
            assert program.stdout.readline() == b"latey\n"
            assert read(snapshot, Span(address, address + 5)) == b"early"
        finally:
            program.kill()


def test_it_outlives_an_exec_and_the_end_of_its_process(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", "shared-anon", directory=tmp_path) as target:
        mappings = target.mappings
        snapshot = take(registry, target.pid)
        target.exec("private-runs", seed=NEW)
        for mapping in mappings:
            assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        target.exit()
        for mapping in mappings:
            assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        registry.remove(snapshot.id.identity, b"one")
        with pytest.raises(NoSuchEntry):
            registry.get(snapshot.id)


def test_what_is_open_outlives_its_name(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        snapshot = take(registry, target.pid)
        assert snapshot.frozen.copy is not None
        with snapshot.open() as space:
            registry.remove(snapshot.id.identity, b"one")
            assert registry.names(snapshot.id.identity) == []
            assert os.pread(space.mem, PAGE, mapping.start) == mapping.expected(0, PAGE)
        with pytest.raises(TargetExited):
            snapshot.open()


# What the process has of it


def test_its_process_keeps_no_child_no_tracer_and_no_descriptor(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", "shared-anon", directory=tmp_path) as target:
        children, descriptors = children_of(target.pid), os.listdir(f"/proc/{target.pid}/fd")
        for _ in range(3):
            snapshot = take(registry, target.pid)
            assert snapshot.frozen.copy is not None
            copy = snapshot.frozen.copy.pid
            assert os.listdir(f"/proc/{copy}/fd") == []
            assert {tracer for _, tracer in thread_states(target.pid).values()} == {0}
            registry.remove(snapshot.id.identity, b"one")
            assert children_of(target.pid) == children
            assert not Path(f"/proc/{copy}").exists()
        assert os.listdir(f"/proc/{target.pid}/fd") == descriptors
        assert target.digest(target.mappings[0].start, PAGE)  # it answers


def test_a_copy_that_was_killed_is_an_error_and_leaves_nothing(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        children = children_of(target.pid)
        snapshot = take(registry, target.pid)
        assert snapshot.frozen.copy is not None
        killed = os.pidfd_open(snapshot.frozen.copy.pid)
        signal.pidfd_send_signal(killed, signal.SIGKILL)
        mapping = target.mapping("private-full")
        with pytest.raises(TargetExited) as error:
            read_until_it_fails(snapshot, Span(mapping.start, mapping.start + PAGE))
        assert "was killed" in str(error.value)
        registry.remove(snapshot.id.identity, b"one")
        os.close(killed)
        assert children_of(target.pid) == children


# What cannot be frozen


def test_a_process_that_is_traced_already_is_busy(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        ptrace.seize(target.pid)
        try:
            with pytest.raises(TargetBusy) as error:
                take(registry, target.pid)
            assert f"process {os.getpid()}" in str(error.value)
        finally:
            ptrace.interrupt(target.pid)
            os.waitpid(target.pid, 0)
            ptrace.detach(target.pid)
        take(registry, target.pid)


@contextmanager
def running(source: str, user: int | None = None) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A Python program that prints a number first; it is killed in the end."""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user
    ) as program:
        assert program.stdout is not None
        try:
            yield program, int(program.stdout.readline())
        finally:
            program.kill()


_VFORKS = """
import ctypes, os
_CLONE, _CLONE_VFORK, _SIGCHLD = 56, 0x4000, 17
if ctypes.CDLL(None).syscall(_CLONE, _CLONE_VFORK | _SIGCHLD, 0, 0, 0, 0) == 0:
    print(os.getpid(), flush=True)
    os.read(0, 1)
    os._exit(0)
print("on", flush=True)
os.read(0, 1)
"""


def test_a_thread_that_does_not_come_out_of_the_kernel_is_given_up_in_time(registry: Snapshots) -> None:
    """It waits, as vfork(2) does, where only SIGKILL can reach it."""
    with running(_VFORKS) as (program, _):
        begun = time.monotonic()
        with pytest.raises(TargetStuck) as error:
            take(registry, program.pid)
        assert time.monotonic() - begun < 2
        assert "try again later" in str(error.value)
        assert registry.names(identify(program.pid)) == []
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"x")
        program.stdin.flush()
        assert program.stdout.readline() == b"on\n"
        assert thread_states(program.pid)[program.pid][1] == 0
        take(registry, program.pid)


def test_a_process_that_has_ended_is_no_snapshot_of_who_has_its_pid_now(registry: Snapshots) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as program:
        identity = identify(program.pid)
        program.kill()
    with pytest.raises(TargetExited):
        registry.make(identity, b"one")
    assert list(registry.owners()) == []


_SECCOMP = """
import ctypes, os, struct
# A filter that answers clone and wait4 with EPERM (<linux/filter.h>, <linux/seccomp.h>).
rules = [(0x20, 0, 0, 0), (0x15, 2, 0, 56), (0x15, 1, 0, 61), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
program = struct.pack("=H6xQ", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(program)) == 0
print(libc.syscall(56, 17, 0, 0, 0, 0), flush=True)
os.read(0, 1)
"""


def test_a_seccomp_filter_does_not_see_the_fork(registry: Snapshots) -> None:
    with running(_SECCOMP) as (program, cloned):
        assert cloned == -1, "the filter does not work"
        snapshot = take(registry, program.pid)
        assert snapshot.frozen.copy is not None
        registry.remove(snapshot.id.identity, b"one")
        assert children_of(program.pid) == set()


_HOLDS = """
import ctypes, os, resource
memory = bytearray(b"recognise me " * 100000)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
os.read(0, 1)
"""


def test_where_fork_is_refused_the_error_says_why_and_a_copy_can_be_had_instead() -> None:
    with running(_HOLDS, user=NOBODY) as (program, address):
        with snapshots() as registry, pytest.raises(CannotFreeze) as error:
            take(registry, program.pid)
        assert error.value.cause == 11  # EAGAIN
        assert "limit of processes" in error.value.hint
        with snapshots(fall_back=True) as registry:
            snapshot = take(registry, program.pid)
            assert snapshot.frozen.copy is None
            span = Span(address, address + 1300000)
            assert read(snapshot, span) == b"recognise me " * 100000
            fates = {part.fate for part in snapshot.frozen.parts}
            assert fates == {Fate.COPIED, Fate.ABSENT}
        assert children_of(program.pid) == set()


# Names and limits


def test_a_name_is_given_once_and_again_when_it_is_free(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        first = take(registry, target.pid)
        with pytest.raises(NameTaken):
            take(registry, target.pid)
        registry.remove(first.id.identity, b"one")
        second = take(registry, target.pid)
        assert second.id != first.id
        with pytest.raises(NoSuchEntry):
            registry.remove(first.id.identity, b"two")


def test_a_process_has_so_many_snapshots_and_no_more(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        for number in range(MOST_OF_A_PROCESS):
            take(registry, target.pid, b"%d" % number)
        with pytest.raises(TooMany) as error:
            take(registry, target.pid, b"more")
        assert "rmdir" in error.value.hint
        with pytest.raises(TooMany):
            registry.share(identify(target.pid))
        registry.remove(identify(target.pid), b"3")
        take(registry, target.pid, b"more")


def test_all_who_share_have_the_same_and_the_last_lets_it_go(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        identity, children = identify(target.pid), children_of(target.pid)
        first = registry.share(identity)
        assert registry.share(identity) is first
        first.drop()
        assert registry.shared(identity) is first
        first.drop(wait=True)
        assert registry.shared(identity) is None
        assert children_of(target.pid) == children
        other = registry.share(identity)
        assert other is not first
        other.drop(wait=True)


def test_unmounting_ends_what_someone_still_holds(tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping, children = target.mapping("private-full"), children_of(target.pid)
        with snapshots() as registry:
            snapshot = take(registry, target.pid)
            space = snapshot.open()
            assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        assert children_of(target.pid) == children
        with pytest.raises(TargetExited):
            read(snapshot, mapping.span)
        space.close()
