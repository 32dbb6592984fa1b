"""Who a process is. A pid is no identity: the kernel gives it to another process later on."""

import os
import select
from collections.abc import Sequence

import attrs

from memfs.errors import NoSuchEntry, TargetExited
from memfs.linux import procfs
from memfs.linux.advice import Advice, advise_process
from memfs.linux.span import Span


@attrs.frozen
class Identity:
    """A process for all time: its pid, and when it began (clock ticks since boot).

    Pids go round in ascending order, so one does not come back within a tick of 10 ms.
    """

    pid: int
    start_ticks: int


def identify(pid: int) -> Identity:
    """The process that has *pid* now.

    Raises:
        NoSuchEntry: there is none, or it has no memory (a kernel thread, a zombie).
    """
    return describe(pid)[0]


def describe(pid: int) -> tuple[Identity, procfs.Stat]:
    """The same, with what ``/proc/PID/stat`` says of it."""
    try:
        stat = procfs.read_stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchEntry(f"there is no process {pid}") from None
    if not stat.has_memory:
        raise NoSuchEntry(f"process {pid} has no user memory")
    return Identity(pid, stat.start_ticks), stat


class ProcessHandle:
    """A pidfd: it names one process, and never another one, for as long as it is open."""

    def __init__(self, identity: Identity) -> None:
        """Take hold of *identity*.

        Raises:
            TargetExited: it has ended, though its pid may live on in another process.
        """
        self.identity = identity
        try:
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            raise TargetExited(f"process {identity.pid} has ended") from None
        except OSError as error:
            # EINVAL: the number belongs to a thread that leads no process.
            raise NoSuchEntry(f"{identity.pid} is no process: {error.strerror}") from None
        try:
            self.ensure_same()
        except BaseException:
            self.close()
            raise

    @property
    def exited(self) -> bool:
        """Whether the process has ended (a zombie has)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def ensure_same(self) -> procfs.Stat:
        """Make sure that the pid still means this process: what was opened by it before is its own.

        Raises:
            TargetExited: it has ended.
        """
        gone = TargetExited(f"process {self.identity.pid} has ended")
        try:
            stat = procfs.read_stat(self.identity.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise gone from None
        if stat.start_ticks != self.identity.start_ticks or self.exited:
            raise gone
        return stat

    def advise(self, advice: Advice, spans: Sequence[Span]) -> None:
        """Give the process *advice* about its memory, see :func:`advise_process`. It may have exec'ed."""
        advise_process(self._fd, advice, spans)

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
