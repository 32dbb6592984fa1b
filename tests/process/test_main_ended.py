"""A process whose main thread has ended: all that the tree and a snapshot do goes by a thread that runs."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from process.freezing import snapshots
from process.test_access import NOBODY, being
from process.trees import plain_tree
from support.child import Program
from support.compiled import build, why_no_32_bits
from support.held import Span
from support.outside import children_of, read_maps, read_memory, thread_states

from memfs.errors import AccessDenied, NoSuchEntry, TargetExited, TargetReplaced
from memfs.image.memory import Memory
from memfs.image.source import Workspace
from memfs.linux.span import Span as MemfsSpan
from memfs.snapshot.values import Fate
from memfs.target.identity import identify
from memfs.target.process import AddressSpace
from memfs.target.sameness import marks_of
from memfs.target.space import Space
from memfs.target.vmaflags import VmaFlagsCache
from memfs.tree.inodes import Fixed, Name, ProcessNode

_FILL, _NEW = 5, 9
_LENGTH = 1 << 20
_DEADLINE_S = 60.0
_UNREADABLE = (b"[vvar", b"[vsyscall")


@contextmanager
def leaderless(user: int | None = None, *, ended: bool = True, bits: int = 64) -> Iterator[Program]:
    """The program of ``leaderless.c``, whose main thread has *ended*, or is yet to."""
    if bits == 32 and (reason := why_no_32_bits()):
        pytest.skip(reason)
    with Program(build("leaderless", bits=bits), str(_FILL), user=user) as program:
        if ended:
            program.ask("main-ends")
        yield program


def spans_of(program: Program) -> list[Span]:
    """The private stretch, and the shared one."""
    return [Span(*program.hello[kind]) for kind in ("private", "shared")]


def thread_of(pid: int) -> int:
    """A thread that runs: the file system of /proc has the memory below its number, too."""
    return next(tid for tid, (state, _) in sorted(thread_states(pid).items()) if state != "Z")


class _Reading:
    """A space, and what is read of it."""

    def __init__(self, space: Space) -> None:
        self._source = Memory(space, space.layout(), MemfsSpan(0, space.end()), flat=True)
        self._workspace = Workspace()

    def read(self, span: Span) -> bytes:
        """The bytes of *span*, as in one long READ."""
        content = bytearray(span.length)
        assert self._source.read_into(span.start, memoryview(content), self._workspace) == span.length
        return bytes(content)

    def close(self) -> None:
        """Let go."""
        self._source.close()
        self._workspace.close()


@contextmanager
def reading(pid: int, *, watched: bool) -> Iterator[_Reading]:
    """All of *pid*, open."""
    opened = _Reading(AddressSpace(identify(pid), VmaFlagsCache(), memory=True, watched=watched))
    try:
        yield opened
    finally:
        opened.close()


def test_it_is_in_the_tree_as_one_whose_main_thread_runs() -> None:
    tree = plain_tree()
    with leaderless(ended=False) as program:
        node = ProcessNode(identify(program.pid), Name.PROCESS)
        names = [entry.name for entry in tree.list(node)]
        program.ask("main-ends")
        assert ProcessNode(identify(program.pid), Name.PROCESS) == node
        assert tree.lookup(Fixed(Name.ROOT), b"%d" % program.pid).node == node
        assert b"%d" % program.pid in {entry.name for entry in tree.list(Fixed(Name.ROOT))}
        by_name = tree.lookup(Fixed(Name.BY_NAME), b"leaderless").node
        assert b"%d" % program.pid in {entry.name for entry in tree.list(by_name)}
        assert [entry.name for entry in tree.list(node)] == names
        starts = [int(entry.name[:12], 16) for entry in tree.list(ProcessNode(node.owner, Name.VMAS))]
        lines = read_maps(thread_of(program.pid))
        assert starts == [line.span.start for line in lines if not line.path.startswith(_UNREADABLE)]
        for name, least in ((Name.MEM, 2 * _LENGTH), (Name.CORE, 2 * _LENGTH)):
            found = tree.attributes(ProcessNode(node.owner, name))
            assert found.size_bytes > least
            assert 512 * found.blocks >= least


def test_a_zombie_is_still_no_process() -> None:
    with leaderless() as program:
        os.kill(program.pid, signal.SIGKILL)
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(NoSuchEntry):
            identify(program.pid)


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
def test_each_of_its_mappings_is_read(watched: bool, bits: int) -> None:
    with leaderless(bits=bits) as program, reading(program.pid, watched=watched) as opened:
        for span in spans_of(program):
            assert opened.read(span) == bytes([_FILL]) * span.length
        tid = thread_of(program.pid)
        for line in read_maps(tid):
            if not line.path.startswith(_UNREADABLE) and "r" in line.perms:
                assert opened.read(Span(line.span.start, line.span.start + 4096)) == read_memory(
                    tid, Span(line.span.start, line.span.start + 4096)
                )


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
def test_what_is_open_shows_its_memory_whichever_thread_ends(watched: bool) -> None:
    with leaderless(ended=False) as program, reading(program.pid, watched=watched) as opened:
        private, shared = spans_of(program)
        libraries = [line.span for line in read_maps(program.pid) if line.path.endswith(b"libc.so.6")]
        assert opened.read(private) == bytes([_FILL]) * _LENGTH
        for number, command in enumerate(("main-ends", "others-end", "others-end"), 1):
            program.ask(command)
            program.ask("fill", number)
            assert opened.read(private) == opened.read(shared) == bytes([number]) * _LENGTH
            tid = thread_of(program.pid)
            page = Span(libraries[number].start, libraries[number].start + 4096)
            assert opened.read(page) == read_memory(tid, page)


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
def test_an_exec_by_another_thread_shows_nothing_of_the_next_program(watched: bool, bits: int) -> None:
    with leaderless(bits=bits) as program:
        spans = spans_of(program)
        identity = identify(program.pid)
        with reading(program.pid, watched=watched) as cold, reading(program.pid, watched=watched) as warm:
            for span in spans:
                assert warm.read(span) == bytes([_FILL]) * _LENGTH
            again = program.ask("exec", _NEW)
            assert [Span(*again[kind]) for kind in ("private", "shared")] == spans
            assert identify(program.pid) == identity
            program.ask("main-ends")
            for opened in (cold, warm):
                for span in spans:
                    with pytest.raises(TargetReplaced):
                        opened.read(span)
        with reading(program.pid, watched=watched) as opened:
            assert opened.read(spans[0]) == bytes([_NEW]) * _LENGTH


@pytest.mark.parametrize("bits", [64, 32])
def test_each_exec_maps_at_other_addresses_what_the_program_is_known_by(bits: int) -> None:
    with leaderless(bits=bits) as program:
        seen = []
        for number in range(3):
            with AddressSpace(identify(program.pid), VmaFlagsCache(), memory=False) as space:
                seen.append(marks_of(space))
            program.ask("exec", number)
        assert all({name for _, name in marks} == {b"[vdso]", b"[stack]"} for marks in seen)
        assert any(marks != seen[0] for marks in seen[1:])


def test_after_its_end_nothing_is_read() -> None:
    with leaderless() as program, reading(program.pid, watched=True) as opened:
        span = spans_of(program)[0]
        opened.read(span)
        program.kill()
        with pytest.raises(TargetExited):
            opened.read(span)


@contextmanager
def in_group(gid: int) -> Iterator[None]:
    """Do as a member of group *gid*."""
    before = os.getegid()
    os.setegid(gid)
    try:
        yield
    finally:
        os.setegid(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_read_it_is_who_may_read_one_whose_main_thread_runs() -> None:
    with leaderless() as roots, leaderless(NOBODY) as own, in_group(NOBODY), being(NOBODY):
        with AddressSpace(identify(own.pid), VmaFlagsCache(), memory=True) as space:
            assert os.pread(space.mem, 1, spans_of(own)[0].start) == bytes([_FILL])
        with pytest.raises(AccessDenied) as denied:
            AddressSpace(identify(roots.pid), VmaFlagsCache(), memory=True)
        assert "uid 0" in denied.value.sentence
        tree = plain_tree()
        found = [tree.attributes(ProcessNode(identify(each.pid), Name.PROCESS)).uid for each in (roots, own)]
        assert found == [0, NOBODY]


@pytest.mark.parametrize("user", [None, NOBODY], ids=["root", "nobody"])
@pytest.mark.parametrize("copied", [False, True], ids=["forked", "copied"])
@pytest.mark.parametrize("bits", [64, 32])
def test_it_is_frozen_and_goes_on(user: int | None, copied: bool, bits: int) -> None:
    with snapshots() as registry, leaderless(user, bits=bits) as program:
        identity = identify(program.pid)
        before = thread_states(program.pid).keys()
        snapshot = registry._attempt(identity, 10.0, copy_all=copied)
        program.ask("fill", _NEW)
        opened = _Reading(snapshot.open())
        for span in spans_of(program):
            assert opened.read(span) == bytes([_FILL]) * _LENGTH
        opened.close()
        assert {thread.tid for thread in snapshot.frozen.threads} == before - {program.pid}
        assert all(
            part.fate in (Fate.FROZEN, Fate.COPIED) for part in snapshot.frozen.parts if part.region.has_file
        )
        if snapshot.frozen.copy is not None and user is not None:
            assert os.stat(f"/proc/{snapshot.frozen.copy.pid}/mem").st_uid == 0  # closed to its user
        snapshot.drop(wait=True)
        deadline = time.monotonic() + _DEADLINE_S
        while children_of(program.pid):
            assert time.monotonic() < deadline, "its copy is not reaped"
        assert thread_states(program.pid).keys() == before
        program.ask("fill", 1)
