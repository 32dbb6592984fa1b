"""``/proc/PID/status`` of processes and threads as values. proc_pid_status(5) describes the fields."""

import re

import attrs

from memfs.linux.procfs import read_small


@attrs.frozen
class Status:
    """The fields of ``/proc/PID/status`` that memfs uses; sizes are in bytes, and 0 without an mm."""

    process: int
    uid: int
    gid: int
    resident_bytes: int
    swapped_bytes: int


_STATUS_LINE = re.compile(rb"^(Tgid|Uid|Gid|VmRSS|VmSwap):\t *(?:\d+\t(?=\d))?(\d+)", re.MULTILINE)


def parse_status(text: bytes) -> Status:
    """Parse ``/proc/PID/status``; the user and group are the effective ids."""
    fields = {name: int(value) for name, value in _STATUS_LINE.findall(text)}
    return Status(
        process=fields[b"Tgid"],
        uid=fields[b"Uid"],
        gid=fields[b"Gid"],
        resident_bytes=1024 * fields.get(b"VmRSS", 0),
        swapped_bytes=1024 * fields.get(b"VmSwap", 0),
    )


def read_status(pid: int) -> Status:
    """Read ``/proc/PID/status``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return parse_status(read_small(f"/proc/{pid}/status"))


@attrs.frozen
class ThreadStatus:
    """The fields of ``/proc/PID/task/TID/status`` that memfs uses.

    Attributes:
        tracer: the pid of its tracer; 0 for none.
        inner_number: its tid in its own (the innermost) pid namespace.
        seccomp: SECCOMP_MODE_*; 0 for none.
        pending, shared_pending, blocked: signal sets, bit 0 for signal 1: pending for the thread,
            pending for the process, and blocked by the thread.
    """

    state: bytes
    tracer: int
    inner_number: int
    seccomp: int
    pending: int
    shared_pending: int
    blocked: int


_THREAD_STATUS_LINE = re.compile(
    rb"^(State|TracerPid|NSpid|Seccomp|SigPnd|ShdPnd|SigBlk):\t(?:\d+\t(?=\d))*([0-9A-Za-z]+)", re.MULTILINE
)


def parse_thread_status(text: bytes) -> ThreadStatus:
    """Parse ``/proc/PID/task/TID/status``."""
    fields = dict(_THREAD_STATUS_LINE.findall(text))
    return ThreadStatus(
        state=fields[b"State"],
        tracer=int(fields[b"TracerPid"]),
        inner_number=int(fields[b"NSpid"]),
        seccomp=int(fields.get(b"Seccomp", 0)),
        pending=int(fields[b"SigPnd"], 16),
        shared_pending=int(fields[b"ShdPnd"], 16),
        blocked=int(fields[b"SigBlk"], 16),
    )


def read_thread_status(pid: int, tid: int) -> ThreadStatus:
    """Read ``/proc/PID/task/TID/status``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return parse_thread_status(read_small(f"/proc/{pid}/task/{tid}/status"))
