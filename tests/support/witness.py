"""The program `witness.c` as a test sees it."""

import json
import subprocess
from types import TracebackType
from typing import Any, Self

import attrs

from support.compiled import build

COPY_OFFSET = 4096
"""From a counter to its copy; the next counter has as much again between."""


@attrs.frozen
class Report:
    """What a witness of system calls has seen since it started.

    Attributes:
        done: how often each job was done, by its name.
        surprises: the errno, or -1, of each job that saw something which no one should see.
    """

    sigchld: int
    alarms: int
    done: dict[str, int]
    surprises: dict[str, int]


class Witness:
    """It runs until the end of the ``with`` block."""

    def __init__(self, mode: str) -> None:
        """Start it in *mode*: ``calls`` or ``counters``."""
        self._process = subprocess.Popen(
            [build("witness"), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._answer()

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    def _answer(self) -> dict[str, Any]:  # what json.loads gives has no better type
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self) -> dict[str, Any]:
        """What it has to say."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        return self._answer()

    def report(self) -> Report:
        """The same of system calls."""
        answer = self.ask()
        jobs = answer["jobs"].items()
        return Report(
            answer["sigchld"],
            answer["alarms"],
            {name: done for name, (done, _, _) in jobs},
            {name: what for name, (_, count, what) in jobs if count},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
