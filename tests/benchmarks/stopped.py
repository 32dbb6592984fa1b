"""The process whose pauses are measured, and the file by which it is spoken to: see `pause_target.c`."""

import contextlib
import enum
import mmap
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from commands import CommandFailed

PAGE_BYTES = 4096
_SOURCE = Path(__file__).with_name("pause_target.c")
_CONTROL = struct.Struct("=7Q")
_POLL_S = 0.001
_LONGEST_S = 120
_WANTED, _DONE, _RESULT, _LONGEST = 0, 1, 5, 6


class Pages(enum.Enum):
    """Of what the target's memory is made."""

    SMALL = "4k"
    HUGE = "huge"
    SHARED = "shared"
    """Of 4 KiB, anonymous, shared; one is written every 50 us, all over it."""


class _Command(enum.IntEnum):
    """``enum command``."""

    RESET = 1
    FORK = 2
    WRITE = 3


@attrs.frozen
class Shape:
    """What the target is."""

    size_bytes: int
    pages: Pages
    threads: int

    def __str__(self) -> str:
        names = {Pages.SMALL: "4 KiB pages", Pages.HUGE: "huge pages", Pages.SHARED: "shared 4 KiB pages"}
        pages = names[self.pages]
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        return f"{self.size_bytes / (1 << 30):g} GiB of {pages}, {threads}"


def build_target(directory: Path) -> Path:
    """Compile it; returns the program.

    Raises:
        CommandFailed: there is no gcc, or it fails.
    """
    program = directory / "pause_target"
    argv = ["gcc", "-O2", "-pthread", "-o", program, _SOURCE]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandFailed("the target is written in C: install gcc") from None
    if done.returncode:
        raise CommandFailed(f"gcc: {done.stderr.strip()}")
    return program


class StoppedTarget:
    """A running target; it ends with the context, and with us."""

    def __init__(self, program: Path, control: Path, shape: Shape) -> None:
        """Start *program*, and wait until its memory is filled. *control* is made, and removed at the end.

        Raises:
            CommandFailed: it ended.
        """
        self._path = control
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._process = subprocess.Popen(
            [program, control, str(shape.size_bytes), shape.pages.value, str(shape.threads)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._set(_WANTED, 1)
            self._await(1)
        except BaseException:
            self._end()
            raise

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    def reset(self) -> None:
        """Forget the pauses that it had."""
        self._command(_Command.RESET)

    def longest_s(self) -> float:
        """The longest pause since."""
        return self._field(_LONGEST) / 1e9

    def fork_s(self) -> float:
        """How long a plain fork takes it.

        Raises:
            CommandFailed: it cannot fork.
        """
        self._command(_Command.FORK)
        if not self._field(_RESULT):
            raise CommandFailed("the target cannot fork")
        return self._field(_RESULT) / 1e9

    def write_s(self, first_page: int, end_page: int) -> float:
        """How long it takes to write to each of those pages."""
        self._command(_Command.WRITE, first_page, end_page)
        return self._field(_RESULT) / 1e9

    def smaps_bytes(self, field: str) -> int:
        """A figure of its smaps_rollup."""
        return rollup_bytes(self.pid, field)

    def copies(self) -> list[int]:
        """The frozen copies of it: its children, of which it knows nothing."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def _field(self, index: int) -> int:
        return int(_CONTROL.unpack_from(self._control)[index])

    def _set(self, index: int, value: int) -> None:
        struct.pack_into("=Q", self._control, 8 * index, value)

    def _command(self, command: _Command, first: int = 0, end: int = 0) -> None:
        for index, value in enumerate((command, first, end), start=_DONE + 1):
            self._set(index, value)
        wanted = self._field(_WANTED) + 1
        self._set(_WANTED, wanted)
        self._await(wanted)

    def _await(self, done: int) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while self._field(_DONE) < done:
            if self._process.poll() is not None:
                raise CommandFailed(f"the target has ended, status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise CommandFailed("the target does not answer")
            time.sleep(_POLL_S)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def rollup_bytes(pid: int, field: str) -> int:
    """A figure of ``/proc/PID/smaps_rollup``, as ``Private_Dirty``; 0 where the process has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
    return 0


def page_table_bytes(pid: int) -> int:
    """What the page tables of a process take."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmPTE:")[2].split()[0]) << 10


def available_bytes() -> int:
    """The memory of the machine that is to be had."""
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemAvailable:")[2].split()[0]) << 10
