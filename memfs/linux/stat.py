"""``/proc/PID/stat`` of processes and threads as values. proc_pid_stat(5) numbers the fields."""

import enum

import attrs

from memfs.linux.procfs import read_small


class TaskFlag(enum.IntFlag):
    """The ``PF_*`` flags of ``<linux/sched.h>`` that memfs uses, as stat prints them."""

    EXITING = 0x4
    FORKED_NO_EXEC = 0x40
    KERNEL_THREAD = 0x20_0000


@attrs.frozen
class Stat:
    """The fields of ``/proc/PID/stat`` that memfs uses.

    Attributes:
        comm: the name, at most 15 bytes, any of them.
        flags: ``PF_*``, all of them, and so a number: see :class:`TaskFlag`.
        parent, group, session: the numbers of the process's parent, process group and session.
        nice: -20 to 19.
        start_ticks: when the process began, in clock ticks since boot; exec does not change it.
        address_bytes: size of the address space; 0 where there is none (any more).
        code_start, stack_start, heap_start: addresses that exec chooses anew, as much at random as
            the machine is set to; 0 without ptrace access.
        exit_signal: the signal that its parent gets when it ends; 0 for none.
        threads: the number of threads, including those that have ended and are not reaped yet.
        thread: the tid to which flags, state and memory belong: the main thread, unless that has ended.
    """

    pid: int
    comm: bytes
    state: bytes
    parent: int
    group: int
    session: int
    flags: int
    nice: int
    start_ticks: int
    address_bytes: int
    code_start: int
    stack_start: int
    heap_start: int
    exit_signal: int
    threads: int
    thread: int

    @property
    def has_memory(self) -> bool:
        """False for kernel threads, zombies and the dead."""
        return self.address_bytes > 0 and self.state not in (b"Z", b"X", b"x")

    @property
    def main_ended(self) -> bool:
        """Whether the main thread has ended: it stays a zombie as long as other threads run."""
        return self.state == b"Z" and self.threads > 1

    def same_program(self, other: "Stat") -> bool:
        """Whether the process has run no exec between the two: it clears FORKED_NO_EXEC and moves addresses.

        The flag belongs to a thread: a cloned thread has it set (``copy_process``, kernel/fork.c).
        """
        return all(
            (
                self.thread != other.thread or not (self.flags ^ other.flags) & TaskFlag.FORKED_NO_EXEC,
                self.code_start == other.code_start,
                self.stack_start == other.stack_start,
                self.heap_start == other.heap_start,
            )
        )


def _fields_from_state(text: bytes) -> list[bytes]:
    """Split the line behind the name: field 3 (state) of proc_pid_stat(5) and all that follow."""
    return text[text.rindex(b")") + 2 :].split()


def parse_stat(text: bytes) -> Stat:
    """Parse the line of ``/proc/PID/stat``. The name may contain any byte, even brackets and newlines."""
    opening, closing = text.index(b"("), text.rindex(b")")
    fields = _fields_from_state(text)
    number = int(text[:opening])
    return Stat(
        pid=number,
        comm=text[opening + 1 : closing],
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        flags=int(fields[6]),
        nice=int(fields[16]),
        start_ticks=int(fields[19]),
        address_bytes=int(fields[20]),
        code_start=int(fields[23]),
        stack_start=int(fields[25]),
        heap_start=int(fields[44]),
        exit_signal=int(fields[35]),
        threads=int(fields[17]),
        thread=number,
    )


def read_stat(pid: int) -> Stat:
    """Read ``/proc/PID/stat``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return parse_stat(read_small(f"/proc/{pid}/stat"))


def read_thread_stat(pid: int, tid: int) -> Stat:
    """Read ``/proc/PID/task/TID/stat`` of a thread; ``pid`` of the result is the tid.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return parse_stat(read_small(f"/proc/{pid}/task/{tid}/stat"))


def read_last_cpu(tid: int) -> int:
    """Read the number of the CPU on which thread *tid* runs or has run last.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return int(_fields_from_state(read_small(f"/proc/{tid}/stat"))[36])
