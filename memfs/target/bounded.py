"""Looks into a process that end in time, whatever the process or a file server does.

A read of mapped memory may wait for a server that never answers, in a state in which no signal ends it; so
may the opening of a mapped file. A tracer that waited there would leave its target stopped. So a thread of
its own looks, and who needs the answer waits for it only so long.
"""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from memfs.errors import TargetBusy

T = TypeVar("T")


class BoundedLooks:
    """The thread that looks. Once it has been late it is of no use any more."""

    def __init__(self, pid: int) -> None:
        """Look into process *pid*. The thread runs until the process that has it ends."""
        self._pid = pid
        self._looks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._late = False
        threading.Thread(target=self._live, name="look", daemon=True).start()

    def run(self, look: Callable[[], T], patience_s: float) -> T:
        """What *look* returns or raises.

        Raises:
            TargetBusy: it takes longer than *patience_s*.
        """
        answers: list[T] = []
        error: BaseException | None = None
        if not self._late:
            self._looks.put(lambda: answers.append(look()))
            try:
                error = self._done.get(timeout=patience_s)
            except queue.Empty:
                self._late = True
        if self._late:
            raise TargetBusy(
                f"memory of process {self._pid} does not come in time",
                "a server of files that it has mapped does not answer: mend that, and try again",
            )
        if error is not None:
            raise error
        return answers[0]

    def _live(self) -> None:
        while True:
            look = self._looks.get()
            try:
                look()
            except BaseException as error:  # noqa: BLE001 - it is raised again where it was asked for
                self._done.put(error)
            else:
                self._done.put(None)
