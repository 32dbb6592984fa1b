"""A child that a target was made to have, which we trace from its birth on."""

import contextlib
import errno
import os
import signal
import time

from memfs.linux import ptrace
from memfs.linux.status import read_thread_status

_LOWEST = os.sched_param(1)


class Killed(Exception):
    """A thread that is traced was killed."""


class Tracee:
    """A process that PTRACE_EVENT_CLONE named, and that wait(2) knows as a tracee of this thread.

    Until it is waited for at its end its number belongs to no one else. It is killed by a pidfd.

    Attributes:
        pid: its number as we see it.
        inner_number: its number in its own pid namespace, by which its parent knows it.
    """

    def __init__(self, pid: int) -> None:
        """Take over *pid*, which PTRACE_EVENT_CLONE has just named: it stands still, or was killed.

        Raises:
            ProcessLookupError: the number means nothing here.
        """
        if pid <= 0:
            raise ProcessLookupError(errno.ESRCH, "the child is in a pid namespace that is not ours")
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        try:
            self.inner_number = read_thread_status(pid, pid).inner_number
        except BaseException:
            os.close(self._pidfd)
            raise

    def await_birth(self, patience_s: float) -> None:
        """Wait for its first stop.

        Raises:
            ChildProcessError: it is no tracee of this thread.
            Killed: it was killed before that.
            TimeoutError: it does not stop.
        """
        if not ptrace.wait(self.pid, time.monotonic() + patience_s).alive:
            raise Killed

    def hasten(self) -> None:
        """Have its end come before all else, where that may be had.

        What priority it was lent is gone before its memory is freed (``futex_exit_release``,
        kernel/futex/core.c).
        """
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self.pid, os.SCHED_RR, _LOWEST)

    def kill(self) -> None:
        """Kill it, and do not wait for its end: :meth:`end` does."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Kill it and wait until it has ended; its parent has to reap it then. A second call does nothing."""
        if self._pidfd < 0:
            return
        self.kill()
        with contextlib.suppress(ChildProcessError):
            while os.WIFSTOPPED(os.waitpid(self.pid, ptrace.WAIT_ALL)[1]):
                pass
        os.close(self._pidfd)
        self._pidfd = -1
