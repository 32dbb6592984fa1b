"""Who has a CPU before all others while a process stands still.

That is whoever is to let it go on, and those of its threads that are made to run. They have a real-time
priority for that time, where it may be had. The worker takes it by its own policy. The threads of the process
get it lent, since nothing must be left of it, though the worker be killed (:mod:`memfs.linux.inheritance`).
"""

import contextlib
import os
import resource
from collections.abc import Iterator

from memfs.linux.inheritance import Lenders

_FIRST = os.sched_param(2)  # before those to whom one is lent
_AT_A_TIME = 4
"""The thread that runs our calls, the helper, the copy; and one that has been slow to stop."""


def take_first_place(tid: int = 0) -> bool:
    """Have the calling thread, or *tid*, come before all others from now on; returns whether it may."""
    try:
        os.sched_setscheduler(tid, os.SCHED_RR, _FIRST)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def first_place(pid: int) -> Iterator[Lenders | None]:
    """For a time the calling thread comes first, and what it lends to threads of process *pid*."""
    lenders = Lenders(_AT_A_TIME) if take_first_place() and _may_be_lent_to(pid) else None
    try:
        yield lenders
    finally:
        if lenders is not None:
            lenders.close()
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _may_be_lent_to(pid: int) -> bool:
    """Whether *pid* may have a real-time priority for as long as a fork takes, see RLIMIT_RTTIME."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0] == resource.RLIM_INFINITY
    except OSError:
        return False
