"""The program `witness.c` as a test sees it."""

import attrs

from support.child import Program
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


class Witness(Program):
    """It runs until the end of the ``with`` block."""

    def __init__(self, mode: str, *, bits: int = 64) -> None:
        """Start it in *mode*: ``calls`` or ``counters``; with 32 *bits* as a program for i386."""
        super().__init__(build("witness", bits=bits), mode)

    def report(self) -> Report:
        """What it has to say of system calls; of counters that is :meth:`ask`."""
        answer = self.ask()
        jobs = answer["jobs"].items()
        return Report(
            answer["sigchld"],
            answer["alarms"],
            {name: done for name, (done, _, _) in jobs},
            {name: what for name, (_, count, what) in jobs if count},
        )
