"""Runs the commands that are measured: starts, waits, counts and ends them. Knows nothing of memfs.

How much a command moved is what the kernel counted for it: /proc/PID/io can still be read of a
process that has ended, until it is reaped.
"""

import contextlib
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import attrs

_LONGEST_S = 900
_ENVIRONMENT = {**os.environ, "LC_ALL": "C"}

Argv = Sequence[str | Path]


class CommandFailed(Exception):
    """A command ended badly, or did not do what it was to do."""


@attrs.frozen
class Moved:
    """What a process read and wrote by system calls, everything that it read to begin with included."""

    read_bytes: int
    written_bytes: int


@attrs.frozen
class Finished:
    """A pipeline that has ended well.

    Attributes:
        seconds: from before its first process to after its last.
        moved: by its last process.
        output: of its last process, where it was asked for.
    """

    seconds: float
    moved: Moved
    output: bytes


class Command:
    """A process that runs; killed and reaped at the end of the context at the latest."""

    def __init__(self, argv: Argv, *, stdin: int | IO[bytes], stdout: int | IO[bytes]) -> None:
        self._name = " ".join(map(str, argv))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        try:
            self.process = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=self._errors, env=_ENVIRONMENT
            )
        except BaseException as error:
            self._errors.close()
            if isinstance(error, FileNotFoundError):
                raise CommandFailed(f"there is no {argv[0]} here") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()

    def wait(self, deadline: float) -> None:
        """Wait until it has ended; it is not reaped yet.

        Raises:
            CommandFailed: it still runs at *deadline*, of the monotonic clock.
        """
        ended = os.pidfd_open(self.process.pid)
        try:
            if not select.select([ended], [], [], max(0, deadline - time.monotonic()))[0]:
                raise CommandFailed(f"{self._name}: does not end")
        finally:
            os.close(ended)

    def moved(self) -> Moved:
        """What it moved: ask between its end and `check`."""
        text = Path(f"/proc/{self.process.pid}/io").read_text()
        fields = dict(line.split(": ") for line in text.splitlines())
        return Moved(int(fields["rchar"]), int(fields["wchar"]))

    def check(self, *, forgiven: re.Pattern[str] | None = None) -> None:
        """Reap it.

        Args:
            forgiven: complaints that may make its status 1.

        Raises:
            CommandFailed: its status is not 0.
        """
        if status := self.process.wait():
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            if status == 1 and forgiven is not None:
                said = [line for line in said if not forgiven.search(line)]
                if not said:
                    return
            raise CommandFailed(f"{self._name}: status {status}: {said[-1] if said else 'no word'}")


def run(
    *stages: Argv,
    stdin: Path | None = None,
    capture: bool = False,
    forgiven: re.Pattern[str] | None = None,
) -> Finished:
    """Run a pipeline, and see that each of its processes ends with status 0.

    Args:
        stdin: what its first process reads; opened after the clock has started.
        capture: keep what its last process writes; else that goes to /dev/null.
        forgiven: complaints that may make a status 1.

    Raises:
        CommandFailed: one did not.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryFile()) if capture else None
        commands: list[Command] = []
        begun = time.perf_counter()
        source: int | IO[bytes] = open(stdin, "rb") if stdin is not None else subprocess.DEVNULL  # noqa: SIM115
        for number, argv in enumerate(stages, start=1):
            sink = subprocess.PIPE if number < len(stages) else output or subprocess.DEVNULL
            try:
                command = stack.enter_context(Command(argv, stdin=source, stdout=sink))
            finally:
                if not isinstance(source, int):
                    source.close()  # the process has it
            commands.append(command)
            source = command.process.stdout or subprocess.DEVNULL
        deadline = time.monotonic() + _LONGEST_S
        for command in commands:
            command.wait(deadline)
        seconds = time.perf_counter() - begun
        moved = commands[-1].moved()
        for command in commands:
            command.check(forgiven=forgiven)
        if output is not None:
            output.seek(0)
        return Finished(seconds, moved, output.read() if output is not None else b"")


def run_together(argvs: Sequence[Argv]) -> float:
    """Run commands at once, each to /dev/null; returns the seconds until the last has ended.

    Raises:
        CommandFailed: one ended with another status than 0.
    """
    with contextlib.ExitStack() as stack:
        begun = time.perf_counter()
        commands = [
            stack.enter_context(Command(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
            for argv in argvs
        ]
        for command in commands:
            command.wait(time.monotonic() + _LONGEST_S)
        seconds = time.perf_counter() - begun
        for command in commands:
            command.check()
        return seconds


def expect(what: str, found: int, lowest: int, highest: int | None = None) -> None:
    """See that *found* is *lowest*, or lies between the two.

    Raises:
        CommandFailed: it does not.
    """
    highest = lowest if highest is None else highest
    if not lowest <= found <= highest:
        raise CommandFailed(f"{what}: {found}, expected {lowest}" + (f" to {highest}" * (highest != lowest)))
