"""What each test of a real program does: freeze it under load, look into it and its core, see what is left.

A program of ours obeys one rule: it prints ``ready``, works and checks its work until its stdin ends, then
prints ``ok`` and how much it did, or what was wrong, and exits. Servers have clients, who know what is right.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from mount.mounted import Mount, check, children, opened, run

HERE = Path(__file__).resolve().parent
SNAPSHOTS = 20
LIMIT_SECONDS = 300.0
"""For hangs: all of it takes seconds."""
_LAST_SECONDS = 30.0
NOBODY = 65534
MIB = 1 << 20

_ABSENT = frozenset(("no one can read it",))
"""Why a mapping may be missing: vvar, vsyscall, device memory, memfd_secret."""
_LIVE = frozenset(("a device", "shared memory, and it was mapped just before"))
"""Why one may be live: a program that works maps a file at any moment, a database for one query."""
_NOT_FORKED = "fork is not possible"


def need(*programs: str) -> None:
    """Skip the test where a program is not installed."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: sh tests/programs/setup.sh")


@attrs.frozen
class Row:
    """A line of the table in docs/snapshots.md; bytes of address space, and microseconds."""

    name: str
    resident: int
    states: dict[str, int]
    pause_us: float
    longest_us: int
    fork_us: int

    def __str__(self) -> str:
        sizes = (self.resident, *(self.states[state] for state in ("frozen", "copied", "live", "absent")))
        words = [
            self.name, *(_size(size) for size in sizes),
            *(f"{us / 1000:.1f} ms" for us in (self.pause_us, self.longest_us, self.fork_us)),
        ]  # fmt: skip
        return f"| {' | '.join(words)} |"


HEAD = (
    "| program | resident | frozen | copied | live | absent | pause, median | longest | a fork |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def _size(size: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", MIB)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 100 * factor else f"{size // factor} {unit}"
    return f"{size >> 10} KiB" if size else "0"


@contextlib.contextmanager
def server(*argv: str | Path, **options: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that runs until it is told to end, by SIGTERM, and then ends with status 0."""
    program = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield program
        program.terminate()
        assert program.wait(LIMIT_SECONDS) == 0
    finally:
        program.terminate()  # and not SIGKILL at once: its workers would stay
        try:
            program.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def until(ready: Callable[[], object], what: str) -> None:
    """Wait for *ready*, which is asked again and again."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.05)


@attrs.frozen
class Worker:
    """A program of ours that works until it is told to end."""

    program: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        """Its number."""
        return self.program.pid

    def finish(self) -> None:
        """End it; its own checks must have found nothing, and it must have done something meanwhile."""
        said, errors = self.program.communicate(timeout=LIMIT_SECONDS)
        assert (self.program.returncode, re.sub(r"\d+", "N", said), errors) == (0, "ok N\n", ""), (
            said,
            errors,
        )
        assert int(said.split()[1]) > 0


@contextlib.contextmanager
def working(*argv: str | Path, **options: object) -> Iterator[Worker]:
    """One, which has said that it is ready; killed at the end, if it is still there."""
    program = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload]
    with program:
        try:
            assert program.stdout is not None
            first = program.stdout.readline()
            if first != "ready\n":
                program.kill()
                pytest.fail(f"{argv[0]} does not start: {first}{program.communicate()[1]}")
            yield Worker(program)
        finally:
            program.kill()


@attrs.frozen
class Debugger:
    """How the program's own debugger shows the stacks of a core.

    Attributes:
        argv: the command; CORE stands for the core's path.
        shows: patterns that its output must have, each.
    """

    argv: Sequence[str | Path]
    shows: Sequence[str]

    def see(self, core: Path) -> None:
        """Run it."""
        argv = [core if word == "CORE" else word for word in self.argv]
        done = run(*argv, timeout=LIMIT_SECONDS)
        said = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        for pattern in self.shows:
            assert re.search(pattern, said, re.MULTILINE), f"{argv} does not show {pattern}:\n{said[-6000:]}"


def gdb(pid: int, *shows: str) -> Debugger:
    """gdb, which must know each thread of *pid*, and a stack of more than one frame."""
    executable = os.readlink(f"/proc/{pid}/exe")
    argv = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off", "-ex", "info threads", "-ex", "bt"]
    return Debugger([*argv, executable, "CORE"], ["^#0 ", "^#1 ", r"^\* 1 +.*(LWP|Thread)", *shows])


@attrs.frozen
class Lab:
    """A mount, a directory for this test, and the rows of the table so far."""

    mount: Mount
    directory: Path
    rows: list[Row]

    def examine(
        self,
        name: str,
        pid: int,
        plaintext: bytes,
        debuggers: Sequence[Debugger],
        still_works: Callable[[], object] = lambda: None,
        live: frozenset[str] = frozenset(),
    ) -> None:
        """Freeze *pid* again and again while it works, and look at the last snapshot and its core.

        Args:
            plaintext: what its memory must have.
            debuggers: they must show its stacks.
            still_works: called between two snapshots; it fails where the program does not.
            live: why memory of it may be live, besides.
        """
        before = _Traces.of(pid)
        snapshots = self.mount.process(pid) / "snapshots"
        infos = []
        for number in range(SNAPSHOTS):
            (snapshots / f"{number}").mkdir()
            infos.append(json.loads((snapshots / f"{number}/info.json").read_text()))
            if number + 1 < SNAPSHOTS:
                still_works()
                (snapshots / f"{number}").rmdir()
        last = snapshots / f"{SNAPSHOTS - 1}"
        self.rows.append(_row(name, pid, infos))
        self._look_into(last, plaintext, debuggers)
        last.rmdir()
        still_works()
        _Traces.of(pid).must_be(before)
        for number, info in enumerate(infos):
            assert not [one for one in info["mappings"] if one.get("reason") == _NOT_FORKED], name
            for state, allowed in (("absent", _ABSENT), ("live", _LIVE | live)):
                wrong = [
                    one for one in info["mappings"] if one["state"] == state and one["reason"] not in allowed
                ]
                assert not wrong, f"{name}, snapshot {number}"

    def _look_into(self, snapshot: Path, plaintext: bytes, debuggers: Sequence[Debugger]) -> None:
        core = self.directory / "core"
        check("cp", "--sparse=always", snapshot / "core", core, timeout=LIMIT_SECONDS)
        assert _holds(core, plaintext), "the text is not in the core"
        assert any(_holds(vma, plaintext) for vma in (snapshot / "vmas").iterdir()), "nor in any mapping"
        for debugger in debuggers:
            debugger.see(core)
        core.unlink()


def _holds(path: Path, wanted: bytes) -> bool:
    """Whether *wanted* is in the data of a file; holes, of which there may be terabytes, are not read."""
    with opened(path) as file:
        size = os.fstat(file).st_size
        at = 0
        with contextlib.suppress(OSError):  # ENXIO: no data follows
            while at < size:
                at = os.lseek(file, at, os.SEEK_DATA)
                end = os.lseek(file, at, os.SEEK_HOLE)
                for start in range(at, end, MIB):
                    if wanted in os.pread(file, min(MIB, end - start) + len(wanted), start):
                        return True
                at = end
    return False


def _row(name: str, pid: int, infos: list[dict]) -> Row:  # type: ignore[type-arg]
    pauses = [info["pause_us"] for info in infos]
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    resident, anonymous, huge = (
        int(found[1]) << 10 if (found := re.search(rf"^{field}: +(\d+) kB", rollup, re.MULTILINE)) else 0
        for field in ("Rss", "Anonymous", "AnonHugePages")
    )
    fork_us = int(check(build("forkprobe"), str(anonymous - huge), str(huge)))
    return Row(name, resident, infos[-1]["bytes"], statistics.median(pauses), max(pauses), fork_us)


@attrs.frozen
class _Traces:
    """What a snapshot could leave: processes, stopped threads and tracers, attachments of shared memory."""

    processes: frozenset[int]
    states: frozenset[str]
    attached: int

    @classmethod
    def of(cls, pid: int) -> "_Traces":
        """Those of *pid* and, as this process takes up orphans, of its copies."""
        states = set()
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = (task / "status").read_text()
            found = re.search(r"^State:\s+(\S)", status, re.MULTILINE)
            tracer = re.search(r"^TracerPid:\s+(\d+)", status, re.MULTILINE)
            assert found is not None
            assert tracer is not None
            if found[1] in "tT" or tracer[1] != "0":
                states.add(f"{task.name}: {found[1]}, traced by {tracer[1]}")
        own = set(
            re.findall(r"(\d+) +/SYSV", Path(f"/proc/{pid}/maps").read_text())
        )  # their inodes are the shmids
        segments = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
        attached = sum(int(segment[6]) for segment in segments if segment[1] in own)
        return cls(frozenset(children()), frozenset(states), attached)

    def must_be(self, before: "_Traces") -> None:
        """Nothing that was not there before."""
        assert self.processes <= before.processes
        assert self.states == before.states == frozenset()
        assert self.attached == before.attached


_built_in = TemporaryDirectory()  # for the time of the test run


@cache
def build(name: str, *flags: str) -> Path:
    """The program of ``NAME.c`` in this directory; skips where it cannot be compiled."""
    need("gcc")
    directory = Path(_built_in.name)
    directory.chmod(0o755)
    program = directory / "-".join((name, *(flag.strip("-") for flag in flags)))
    done = run(
        "gcc",
        "-O1",
        "-g",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        *flags,
        "-o",
        program,
        HERE / f"{name}.c",
    )
    if done.returncode:
        pytest.skip(f"{name}.c cannot be compiled with {flags}: {done.stderr.decode()[-300:]}")
    return program
