"""Which CPUs a reader's helpers run on: who answers it beside it, who reads ahead for it elsewhere.

A reader and the thread that answers it work by turns: one CPU is enough for both, and nowhere is it
quicker to change between them. But whoever reads ahead is often woken while the reader waits, so that its
CPU looks idle; put there, he makes it wait for every chunk that he reads. To move him away once does not
help for long, so this lasts for as long as the reader goes on.
"""

import contextlib
import logging
import os

from memfs.linux.stat import read_last_cpu

log = logging.getLogger(__name__)


class Placement:
    """Two threads of ours, kept where they serve one reader best; or left to the kernel."""

    def __init__(self) -> None:
        self._arranged: tuple[int, int, int] | None = None

    def arrange(self, reader: int, server: int, helper: int) -> None:
        """Keep thread *server* on the CPU where thread *reader* ran last, and *helper* on the others.

        They are left alone where we may use no CPU but that one, or may not use it, and where the reader
        has gone or cannot be seen (hidepid, proc(5)).
        """
        try:
            cpu = read_last_cpu(reader)
        except OSError:
            self.undo()
            return
        if self._arranged == (cpu, server, helper):
            return
        self.undo()
        allowed = os.sched_getaffinity(0)
        others = allowed - {cpu}
        if cpu not in allowed or not others:
            return
        self._arranged = cpu, server, helper
        try:
            os.sched_setaffinity(server, {cpu})
            os.sched_setaffinity(helper, others)
        except OSError as error:  # a CPU was taken from us meanwhile, or the thread has ended
            log.debug("threads stay where they are: %s", error)
            self.undo()

    def undo(self) -> None:
        """Let the kernel choose again; where nothing is arranged this does nothing."""
        if self._arranged is None:
            return
        _, *threads = self._arranged
        self._arranged = None
        allowed = os.sched_getaffinity(0)
        for thread in threads:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, allowed)
