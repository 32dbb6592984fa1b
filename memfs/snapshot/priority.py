"""Priorities while a process is stopped: the CPU scheduler's, and the OOM killer's.

The worker that must resume the process has a real-time priority for that time, where it is permitted, and so
have the threads of the process that are made to run. The worker changes its own policy. The threads
borrow the priority, so that nothing is left of it if the worker is killed (:mod:`memfs.linux.inheritance`).
"""

import contextlib
import os
import resource
from collections.abc import Iterator

from memfs.linux.inheritance import Lenders

_FIRST = os.sched_param(2)  # before the threads that borrow one
_NEVER_KILLED = b"-1000"  # OOM_SCORE_ADJ_MIN, <linux/oom.h>
_AT_A_TIME = 5
"""Borrowers: the thread that runs our calls, the helper, two copies; and one that is slow to stop."""


def take_first_place(tid: int = 0) -> bool:
    """Give the calling thread, or *tid*, a real-time priority; returns False where that is not permitted."""
    try:
        os.sched_setscheduler(tid, os.SCHED_RR, _FIRST)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def first_place(pid: int) -> Iterator[Lenders | None]:
    """Give the calling thread a real-time priority for a time; yields what lends it to threads of *pid*."""
    lenders = Lenders(_AT_A_TIME) if take_first_place() and _may_be_lent_to(pid) else None
    try:
        yield lenders
    finally:
        if lenders is not None:
            lenders.close()
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _may_be_lent_to(pid: int) -> bool:
    """Whether *pid* may have a real-time priority for as long as a fork takes: RLIMIT_RTTIME limits that."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0] == resource.RLIM_INFINITY
    except OSError:
        return False


@contextlib.contextmanager
def spared_when_memory_is_short() -> Iterator[None]:
    """Keep the OOM killer from this process for a time: the process that it has stopped would die with it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(open("/proc/self/oom_score_adj", "r+b", buffering=0))
            before = file.read()
            file.write(_NEVER_KILLED)
            stack.callback(file.write, before)
        yield
