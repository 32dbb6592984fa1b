"""Run a program, and speak with it line by line.

`Program` starts it, reads its first line, sends commands, and ends it on leaving its `with` block. A command
waits for its answer, so no test needs to sleep. `Child` is one of the support programs in Python. These ask
to be killed when the *thread* that started them ends: start them from a thread that lives as long as they
shall (a trio test's own thread, not a worker's).

Processes that a program started itself are killed with it too, but by the kernel and a moment later: they may
still be seen after `close`. This file knows of no program in particular.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.ending import Ending

Json = dict[str, Any]  # what json.loads gives has no better type
TIMEOUT_SECONDS = 60.0
_HERE = Path(__file__).resolve().parent


class ChildError(Exception):
    """The program refused a command, ended too early, or did not answer in time."""


class Program(Ending):
    """A program as a child process; owns the process and its pipes.

    Attributes:
        hello: its first line, a JSON object.
    """

    def __init__(self, *argv: str | Path, user: int | None = None, directory: Path | None = None) -> None:
        """Start it, and read its first line.

        Args:
            user: the uid, and gid, it runs as; the present one when not given.
            directory: where it runs; here when not given.
        """
        self._received = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        groups: list[int] | None = None if user is None else []
        self._process = subprocess.Popen(
            argv,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            user=user,
            group=user,
            extra_groups=groups,
        )
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        try:
            self.hello: Json = self.answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's pid, here."""
        return self._process.pid

    @property
    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, line: str) -> None:
        """Send one line, and wait for nothing.

        Raises:
            ChildError: the child has ended.
        """
        assert self._process.stdin is not None
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except BrokenPipeError as error:
            raise ChildError(f"it has ended; it wrote: {self.errors()}") from error

    def line(self, timeout_seconds: float = TIMEOUT_SECONDS) -> bytes:
        """The next line the child writes, without its end.

        Raises:
            ChildError: it ended, or wrote no line in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._received:
            if not self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ChildError(f"no answer in {timeout_seconds} s; it wrote: {self.errors()}")
            data = os.read(self._output, 1 << 16)
            if not data:
                raise ChildError(f"it has ended; it wrote: {self.errors()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def answer(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Json:
        """The next line as a JSON object.

        Raises:
            ChildError: also where the object has an ``error``.
        """
        answer: Json = json.loads(self.line(timeout_seconds))
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def ask(self, *words: object) -> Json:
        """Send a command and return its answer."""
        self.send(" ".join(str(word) for word in words))
        return self.answer()

    def errors(self) -> str:
        """What the child has written to stderr."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL the child and reap it; its pid is free after this."""
        self._process.kill()
        self._process.wait()

    def reap(self) -> int:
        """Wait until the child has ended by itself; its status, negative for a signal."""
        return self._process.wait(TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the child, and close what belongs to it. May be called twice."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()


class Child(Program):
    """A support program of this directory, or a script that speaks as they do."""

    def __init__(
        self, script: str, *arguments: str, user: int | None = None, python: str = sys.executable
    ) -> None:
        """Start *script* by the interpreter *python*, which must be readable for *user*."""
        super().__init__(python, _HERE / script, *arguments, user=user)
