"""The notes of a core file beside those that the kernel itself writes of the same process."""

import contextlib
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from process.freezing import snapshots

from resource import RLIM_INFINITY, RLIMIT_CORE, prlimit  # isort: skip
from support.child import Program
from support.compiled import build, why_no_32_bits
from support.cores import Core, Note, parse_core, why_no_kernel_core
from support.outside import children_of

from memfs.image.source import Workspace
from memfs.snapshot.core import open_core
from memfs.target.identity import identify

_BLOCK = 1 << 20
_DEADLINE_S = 60.0
_FIRST = ("NT_PRSTATUS", "NT_PRPSINFO", "NT_SIGINFO", "NT_AUXV", "NT_FILE")


@attrs.frozen
class Case:
    """A process to dump.

    Attributes:
        around: what runs the program, in namespaces of its own for instance.
        depth: how many generations below that it is.
    """

    name: str
    bits: int = 64
    main_ended: bool = False
    around: tuple[str, ...] = ()
    depth: int = 0

    def __str__(self) -> str:
        return self.name


_OTHER_IDS = ("--user", "--map-user=1234", "--map-group=4321")
_OTHER_PIDS = ("--pid", "--fork", "--kill-child")
# A shell stays in between: no signal but SIGKILL comes to the first process of a pid namespace from outside.
_INSIDE = ("unshare", *_OTHER_IDS, *_OTHER_PIDS, "sh", "-c", '"$0" "$@"; exit $?')

_CASES = (
    Case("plain"),
    Case("main thread ended", main_ended=True),
    Case("i386", bits=32),
    Case("i386, main thread ended", bits=32, main_ended=True),
    Case("in namespaces", around=_INSIDE, depth=2),
    Case("in namespaces, i386", bits=32, around=_INSIDE, depth=2),
)


@contextmanager
def _running(case: Case, directory: Path) -> Iterator[tuple[Program, int]]:
    """The program of ``leaderless.c``, its threads waiting, and its number here."""
    if case.bits == 32 and (reason := why_no_32_bits()):
        pytest.skip(reason)
    path = build("leaderless", bits=case.bits)
    with Program(*case.around, path, "5", directory=directory) as program:
        pid = program.pid
        for _ in range(case.depth):
            (pid,) = children_of(pid)
        if case.main_ended:
            program.ask("main-ends")
        _await_reads(pid)
        yield program, pid


def _await_reads(pid: int) -> None:
    """Wait until each thread that runs waits in read(2)."""
    deadline = time.monotonic() + _DEADLINE_S
    for task in Path(f"/proc/{pid}/task").iterdir():
        while not (task / "syscall").read_text().startswith(("0 0x", "3 0x")):
            with contextlib.suppress(FileNotFoundError):
                if "\nState:\tZ" in (task / "status").read_text():
                    break
            assert time.monotonic() < deadline, f"{task} does not come to its place"


def _numbers_inside(pid: int) -> list[int]:
    """By which numbers its threads are known to itself, the main thread first."""
    tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    texts = [Path(f"/proc/{pid}/task/{tid}/status").read_text() for tid in tids]
    lines = [line for text in texts for line in text.splitlines()]
    return [int(line.split()[-1]) for line in lines if line.startswith("NSpid:")]


def _take_core(pid: int, path: Path) -> Core:
    workspace = Workspace()
    with snapshots() as registry, path.open("wb") as file:
        snapshot = registry._attempt(identify(pid), 10.0, copy_all=False)
        core = open_core(snapshot, full=False)
        for at in range(0, core.size_bytes, _BLOCK):
            block = bytearray(min(_BLOCK, core.size_bytes - at))
            assert core.read_into(at, memoryview(block), workspace) == len(block)
            file.write(block)
        core.close()
        snapshot.drop(wait=True)
    workspace.close()
    return parse_core(path)


def _dump(program: Program, pid: int, directory: Path) -> Core:
    """The core that the kernel dumps of it."""
    prlimit(pid, RLIMIT_CORE, (RLIM_INFINITY, RLIM_INFINITY))
    before = set(directory.iterdir())
    _await_reads(pid)
    os.kill(pid, signal.SIGABRT)
    program.reap()
    (core,) = set(directory.iterdir()) - before
    return parse_core(core)


def _threads(core: Core, pid_at: int) -> dict[int, list[Note]]:
    """The notes of each thread by its number, less what there is once, of the process."""
    found: dict[int, list[Note]] = {}
    number = 0
    for note in core.notes:
        if note.kind == "NT_PRSTATUS":
            (number,) = struct.unpack_from("<i", note.content, pid_at)
            found[number] = []
        if note.kind not in _FIRST[1:] and note.kind != 0x205:
            found[number].append(note)
    return found


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_each_note_is_the_one_that_the_kernel_writes(case: Case, tmp_path: Path) -> None:
    if reason := why_no_kernel_core():
        pytest.skip(reason)
    pid_at = 32 if case.bits == 64 else 24
    registers_at = 112 if case.bits == 64 else 72
    directory = tmp_path / "dumped"
    directory.mkdir()
    directory.chmod(0o777)
    with _running(case, directory) as (program, pid):
        ours = _take_core(pid, tmp_path / "ours")
        theirs = _dump(program, pid, directory)
    for name in ("e_ident", "e_machine", "e_flags"):
        assert ours.header[name] == theirs.header[name]
    kinds = [[note.kind for note in core.notes if note.kind != "NT_SIGINFO"] for core in (ours, theirs)]
    assert kinds[0] == kinds[1]
    assert [note.kind for note in ours.notes[:5]] == list(_FIRST)
    seen, dumped = _threads(ours, pid_at), _threads(theirs, pid_at)
    assert seen.keys() == dumped.keys()
    for number, notes in seen.items():
        assert [(note.kind, note.owner, len(note.content)) for note in notes] == [
            (note.kind, note.owner, len(note.content)) for note in dumped[number]
        ]
        (mine, *mine_too), (other, *others_too) = notes, dumped[number]
        for part in (slice(pid_at, pid_at + 16), slice(registers_at, None)):  # pid, parent, group, session
            assert mine.content[part] == other.content[part]
        assert mine_too == others_too
    for kind in ("NT_AUXV", "NT_FILE", 0x205):
        assert [note.content for note in ours.of(kind)] == [note.content for note in theirs.of(kind)]
    infos = [core.of("NT_PRPSINFO")[0].content for core in (ours, theirs)]
    state, flags = (slice(0, 4), slice(4, 16 if case.bits == 64 else 8))
    assert infos[0][flags.stop :] == infos[1][flags.stop :]
    if case.main_ended:
        assert infos[0][state] == infos[1][state] == b"\x08.\0\0"
        # PF_EXITING and the like; that it dumps core is no flag of ours (PF_DUMPCORE, PF_SIGNALED)
        assert infos[0][flags] == infos[1][flags]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_gdb_sees_each_thread_once_and_where_it_waits(case: Case, tmp_path: Path) -> None:
    with _running(case, tmp_path) as (_, pid):
        path = _take_core(pid, tmp_path / "ours").path
        main, *others = _numbers_inside(pid)
    gdb = ("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "thread apply all bt")
    program_path = build("leaderless", bits=case.bits)
    done = subprocess.run(
        [*gdb, program_path, path], capture_output=True, text=True, timeout=_DEADLINE_S, check=True
    )
    # Of a thread that has ended gdb knows by the list that libpthread keeps, in a core of the kernel's, too.
    stacks = re.split(r"^Thread .*\(LWP (\d+)\).*:$", done.stdout, flags=re.MULTILINE)[1:]
    seen = dict(zip(map(int, stacks[::2]), stacks[1::2], strict=True))
    assert len(seen) == len(stacks) // 2
    assert sorted(seen.keys() - {main}) == others
    for number in others:
        assert " in idle " in seen[number] or " in obey " in seen[number]
    assert case.main_ended or " in main " in seen[main]
