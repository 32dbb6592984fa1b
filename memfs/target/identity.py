"""Who a process is. A pid is no identity: the kernel gives it to another process later on.

A process is there as long as one of its threads runs. If the main thread has ended, the files below
``/proc/PID`` are those of a zombie, which has no memory; the memory is below ``/proc/PID/task/TID`` of the
other threads, and calls that take the number of any thread (process_vm_readv(2), perf_event_open(2)) reach
it by theirs. An exec by one of them makes it the main thread, with the number and the start time of the one
that ended (``de_thread``, fs/exec.c).
"""

import contextlib
import os
import select
from collections.abc import Sequence

import attrs

from memfs.errors import NoSuchEntry, TargetExited
from memfs.linux import procfs
from memfs.linux.advice import PagingAdvice, advise_process
from memfs.linux.span import Span
from memfs.linux.stat import Stat, parse_stat, read_stat, read_thread_stat
from memfs.linux.status import Status, parse_status
from memfs.linux.status import read_status as read_status_of


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


def describe(pid: int) -> tuple[Identity, Stat]:
    """The same, with what ``/proc/PID/stat`` says of it, and of its memory."""
    try:
        stat = _with_memory(read_stat(pid))
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchEntry(f"there is no process {pid}") from None
    if not stat.has_memory:
        raise NoSuchEntry(f"process {pid} has no user memory")
    return Identity(pid, stat.start_ticks), stat


def _with_memory(stat: Stat) -> Stat:
    """*stat* of a process; where its main thread has ended, with the memory of a thread that runs.

    Raises:
        FileNotFoundError, ProcessLookupError: the process is gone.
    """
    if not stat.main_ended:
        return stat
    for tid in procfs.thread_ids(stat.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = read_thread_stat(stat.pid, tid)
            if found.has_memory:
                return attrs.evolve(
                    stat,
                    state=found.state,
                    flags=found.flags,
                    address_bytes=found.address_bytes,
                    code_start=found.code_start,
                    stack_start=found.stack_start,
                    heap_start=found.heap_start,
                    thread=tid,
                )
    return stat


def read_status(pid: int) -> Status:
    """What memory a process has, and whose it is.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    status = read_status_of(pid)
    if status.resident_bytes:
        return status
    thread = _with_memory(read_stat(pid)).thread
    return status if thread == pid else parse_status(procfs.read_small(path_of(pid, thread, "status")))


def read_text(pid: int, name: str) -> bytes:
    """The file *name* below ``/proc/PID`` of a process, one that is empty or ESRCH without memory.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
        PermissionError: ptrace access is denied.
    """
    with contextlib.suppress(ProcessLookupError):
        if text := procfs.read_file(path_of(pid, pid, name)):
            return text
    thread = _with_memory(read_stat(pid)).thread
    return procfs.read_file(path_of(pid, thread, name))


def read_timed(pid: int, name: str) -> tuple[bytes, int]:
    """The same, and how many nanoseconds its longest single read took.

    Raises: as :func:`read_text`.
    """
    with contextlib.suppress(ProcessLookupError):
        text, longest_ns = procfs.read_timed(path_of(pid, pid, name))
        if text:
            return text, longest_ns
    thread = _with_memory(read_stat(pid)).thread
    return procfs.read_timed(path_of(pid, thread, name))


def path_of(pid: int, thread: int, name: str) -> str:
    """The file *name* of a *thread* of process *pid*: if the thread has ended, it is no other process's."""
    return f"/proc/{pid}/{name}" if thread == pid else f"/proc/{pid}/task/{thread}/{name}"


class ProcessHandle:
    """A pidfd, and the open stat: they are of one process, and never of another one, while they are open."""

    def __init__(self, identity: Identity) -> None:
        """Take hold of *identity*.

        Raises:
            TargetExited: it has ended, though its pid may live on in another process.
        """
        self.identity = identity
        self._fd = self._stat = -1
        try:
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            raise TargetExited(f"process {identity.pid} has ended") from None
        except OSError as error:
            # EINVAL: the number belongs to a thread that leads no process.
            raise NoSuchEntry(f"{identity.pid} is no process: {error.strerror}") from None
        try:
            self._stat = os.open(f"/proc/{identity.pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            self.ensure_same()
        except (FileNotFoundError, ProcessLookupError):
            self.close()
            raise TargetExited(f"process {identity.pid} has ended") from None
        except BaseException:
            self.close()
            raise

    @property
    def exited(self) -> bool:
        """Whether the process has ended (a zombie has)."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def ensure_same(self) -> Stat:
        """Make sure that the pid still means this process: what was opened by it before is its own.

        Raises:
            TargetExited: it has ended.
        """
        gone = TargetExited(f"process {self.identity.pid} has ended")
        try:
            stat = _with_memory(parse_stat(procfs.read_small_at(self._stat)))
        except (FileNotFoundError, ProcessLookupError):
            raise gone from None
        if stat.start_ticks != self.identity.start_ticks or self.exited:
            raise gone
        return stat

    def advise(self, advice: PagingAdvice, spans: Sequence[Span]) -> None:
        """Give the process *advice* about its memory, see :func:`advise_process`. It may have exec'ed."""
        advise_process(self._fd, advice, spans)

    def close(self) -> None:
        """Give the descriptors back; a second call does nothing."""
        held, self._fd, self._stat = (self._fd, self._stat), -1, -1
        for fd in held:
            if fd >= 0:
                os.close(fd)
