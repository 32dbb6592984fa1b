"""The program ``threads.c``, and core files as their readers see them: gdb, pyelftools, the kernel itself.

Nothing here knows memfs: a core file is a path. Of what pyelftools parses, `Core` keeps what a test compares.
"""

import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from elftools.elf.elffile import ELFFile

from support.child import Program
from support.compiled import build
from support.held import Span

TIMEOUT_SECONDS = 20.0
WAITING_CALLS = {"main": 0, "sleep": 230, "condition": 202, "read": 0, "poll": 7}
"""The system call (x86-64) in which each thread waits: read, clock_nanosleep, futex, poll."""
X86_XSTATE = 0x202
"""NT_X86_XSTATE, for which pyelftools has no name."""
X86_XSAVE_LAYOUT = 0x205
_HERE = Path(__file__).resolve().parent
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def why_no_kernel_core() -> str | None:
    """Why the kernel does not dump cores as files into a process's own directory; None where it does."""
    pattern = _CORE_PATTERN.read_text().strip()
    return f"kernel.core_pattern is {pattern!r}" if not pattern or pattern[0] in "|/@" else None


class ThreadsProgram(Program):
    """A running ``threads``.

    Attributes:
        path: the program.
        threads: the numbers of its threads, by name.
        mappings: what it holds, by kind.
    """

    def __init__(self, directory: Path, *, vmas: int = 0, core_filter: int = 0x33) -> None:
        """Start it in *directory*, where it is to dump its core, and wait until each thread has its place.

        Args:
            vmas: how many more mappings it makes, of a page each.
            core_filter: what it writes to its coredump_filter, core(5).
        """
        directory.mkdir(exist_ok=True)
        files = (directory / "read", directory / "written")
        for file in files:
            file.write_bytes(b"".join(b"page %d of the file".ljust(4096, b".") % page for page in range(8)))
            os.utime(file, (0, 0))
        self.path = build("threads")
        self._directory = directory
        super().__init__(self.path, *files, *[str(vmas)] * bool(vmas), directory=directory)
        try:
            self.threads: dict[str, int] = self.hello["threads"]
            self.mappings = {kind: Span(*ends) for kind, ends in self.hello["mappings"].items()}
            Path(f"/proc/{self.pid}/coredump_filter").write_text(hex(core_filter))
            self._await_places()
        except BaseException:
            self.close()
            raise

    def _await_places(self) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for name, call in WAITING_CALLS.items():
            syscall = Path(f"/proc/{self.pid}/task/{self.threads[name]}/syscall")
            while not syscall.read_text().startswith(f"{call} "):
                assert time.monotonic() < deadline, f"{name} does not come to its place"

    def count(self) -> int:
        """Make it add one to its variable ``counter``; returns the new value."""
        self.send("")
        return int(self.line())

    def stop(self) -> None:
        """SIGSTOP it, and return once every thread has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def wait_until_stopped(self) -> None:
        """Wait until every thread is stopped: one that was let go stops again a moment later."""
        stats = list(Path(f"/proc/{self.pid}/task").glob("*/stat"))
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while {stat.read_text().rpartition(")")[2].split()[0] for stat in stats} != {"T"}:
            assert time.monotonic() < deadline, "it runs"

    def copies(self) -> list[int]:
        """The frozen copies there are of it: children that it knows nothing of."""
        return _children(self.pid)

    def dump(self) -> Path:
        """End it by SIGABRT before it does anything else; returns the core that the kernel dumps of it."""
        resource.prlimit(self.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        before = set(self._directory.iterdir())
        os.kill(self.pid, signal.SIGABRT)
        os.kill(self.pid, signal.SIGCONT)
        assert self.reap() == -signal.SIGABRT
        (core,) = set(self._directory.iterdir()) - before
        return core


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _is_traced(pid: int) -> bool:
    statuses = Path(f"/proc/{pid}/task").glob("*/status")
    return any("\nTracerPid:\t0\n" not in status.read_text() for status in statuses)


def wait_until_let_go(pid: int) -> None:
    """Wait until no snapshot of a process is left: the last one goes a moment after it was closed."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while _children(pid) or _is_traced(pid):
        assert time.monotonic() < deadline, f"process {pid} is not let go"


@attrs.frozen
class Load:
    """A PT_LOAD: its addresses, how many of its bytes the file has, and where; *flags* are ``PF_*``."""

    span: Span
    file_size: int
    flags: int
    offset: int


@attrs.frozen
class Note:
    """A note, its type by name where pyelftools knows one; *parsed* is what that makes of the content."""

    kind: str | int
    owner: str
    parsed: Any  # a container, bytes or text, by the kind of note
    content: bytes


@attrs.frozen
class Core:
    """What pyelftools reads of a core file."""

    path: Path
    header: Any  # a container
    loads: tuple[Load, ...]
    notes: tuple[Note, ...]

    def of(self, kind: str | int) -> list[Note]:
        """The notes of a kind."""
        return [note for note in self.notes if note.kind == kind]

    def thread_numbers(self) -> list[int]:
        """The threads that it tells of, in order: ``pr_pid`` of each ``struct elf_prstatus``."""
        return [struct.unpack_from("<i", note.content, 32)[0] for note in self.of("NT_PRSTATUS")]

    def load(self, span: Span) -> Load:
        """The segment that begins where *span* does."""
        (found,) = (load for load in self.loads if load.span.start == span.start)
        return found

    def content(self, load: Load) -> bytes:
        """What the file has of a segment."""
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), load.file_size, load.offset)

    @property
    def end(self) -> int:
        """Where its last segment ends."""
        return max(load.offset + load.file_size for load in self.loads)


def parse_core(path: Path) -> Core:
    """Read all headers and notes of a core file."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_CORE"
        loads, notes = [], []
        for segment in elf.iter_segments():
            header = segment.header
            if header["p_type"] == "PT_LOAD":
                span = Span(header["p_vaddr"], header["p_vaddr"] + header["p_memsz"])
                loads.append(Load(span, header["p_filesz"], header["p_flags"], header["p_offset"]))
            elif header["p_type"] == "PT_NOTE":
                notes += [
                    Note(note["n_type"], note["n_name"], note["n_desc"], note["n_descdata"])
                    for note in segment.iter_notes()
                ]
        return Core(path, elf.header, tuple(loads), tuple(notes))


@attrs.frozen
class GdbView:
    """What gdb sees, see ``gdb_view.py``; *complaints* are its warnings, with # for each number."""

    threads: dict[int, Any]
    values: dict[str, str]
    complaints: frozenset[str]

    def functions(self, thread: int) -> list[str]:
        """The names on the stack of a thread, from the inside out."""
        return [frame["function"] for frame in self.threads[thread]["frames"]]

    def unavailable(self) -> set[tuple[int, str]]:
        """The registers that gdb cannot tell, each with its thread."""
        return {
            (tid, name)
            for tid, thread in self.threads.items()
            for name, value in thread["registers"].items()
            if "<unavailable>" in value
        }


def complaints(output: str) -> frozenset[str]:
    """The lines by which a reader says that something is wrong with a file, with # for each number."""
    lines = (line for line in output.splitlines() if re.search("warning|error|cannot|corrupt", line, re.I))
    return frozenset(re.sub(r"\d+", "#", line) for line in lines)


def run_gdb(directory: Path, expressions: Sequence[str], *arguments: str | Path) -> GdbView:
    """Let gdb look at a core or a process, which *arguments* name."""
    view = directory / "view.json"
    environment = {**os.environ, "GDB_VIEW": str(view), "GDB_EXPRESSIONS": "\n".join(expressions)}
    gdb = ("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-x", _HERE / "gdb_view.py")
    done = subprocess.run(
        [*gdb, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done
    found = json.loads(view.read_text())
    threads = {int(tid): thread for tid, thread in found["threads"].items()}
    return GdbView(threads, found["values"], complaints(done.stdout + done.stderr))


def holes_and_data(descriptor: int) -> Iterator[tuple[Span, bool]]:
    """The file from its beginning to its end, by lseek: each stretch, and whether it is data."""
    size = os.fstat(descriptor).st_size
    at = 0
    while at < size:
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        if hole > at:
            yield Span(at, hole), True
        try:
            at = os.lseek(descriptor, hole, os.SEEK_DATA) if hole < size else size
        except OSError:  # ENXIO: only a hole is left
            at = size
        if at > hole:
            yield Span(hole, at), False


_PYTHON = """
import sys, threading

def outer_function(depth):
    return inner_function(depth + 1, "a text to be found")

def inner_function(depth, text):
    print("{}", flush=True)
    return sys.stdin.read()

def thread_function(event):
    event.wait()

threading.Thread(target=thread_function, args=(threading.Event(),), daemon=True).start()
outer_function(1)
"""
PYTHON_FUNCTIONS = ("outer_function", "inner_function", "thread_function")


class PythonProgram(Program):
    """A Python of this kind that waits in functions of known names."""

    def __init__(self) -> None:
        super().__init__(sys.executable, "-c", _PYTHON)
