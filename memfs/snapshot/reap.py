"""The end of a frozen copy: its process, which is its parent, is made to take its status.

Else it would stay a zombie for as long as the process lives.
"""

import functools
import threading
import time
from collections.abc import Callable

from memfs.errors import MemfsError
from memfs.linux import procfs
from memfs.linux.arch import Machine
from memfs.linux.maps import parse_maps
from memfs.snapshot.priority import first_place, take_first_place
from memfs.snapshot.values import Reaping
from memfs.target import fork, restartable
from memfs.target.bounded import BoundedLooks
from memfs.target.callsite import find_call_address
from memfs.target.identity import ProcessHandle, path_of
from memfs.target.injection import Diverted
from memfs.target.stopped import StoppedProcess
from memfs.target.tracee import Killed, Tracee

_STOP_S = 0.05
_STEP_S = 1.0


def reap(reaping: Reaping, process: ProcessHandle, machine: Machine, looks: BoundedLooks) -> bool:
    """Have some thread of the process reap its child; returns whether nothing of that is left.

    The child has ended, so its number cannot come to mean another one before it is reaped.
    """
    for tid in _thread_ids(reaping.identity.pid):
        if _in_a_thread(functools.partial(_reap_by, tid, None, reaping, process, machine, looks)):
            return True
    return process.exited  # then it goes to init, as every orphan does


def end_quietly(
    copy: Tracee, reaping: Reaping, process: ProcessHandle, machine: Machine, looks: BoundedLooks
) -> bool:
    """End *copy*, a child of the process, and reap it, while all threads of that stand still.

    So the process is not told by a SIGCHLD. Returns whether it came to that; if not, the copy may have ended.
    """
    return _in_a_thread(functools.partial(_reap_by, None, copy, reaping, process, machine, looks))


def _in_a_thread(attempt: Callable[[], bool]) -> bool:
    """Run *attempt*: a thread that it cannot stop in time is let go by the end of the one that seized it."""
    done: list[bool] = []
    tracer = threading.Thread(target=lambda: done.append(attempt()))
    tracer.start()
    tracer.join()
    return done == [True]


def _reap_by(
    only: int | None,
    copy: Tracee | None,
    reaping: Reaping,
    process: ProcessHandle,
    machine: Machine,
    looks: BoundedLooks,
) -> bool:
    """Stop a process, or *only* one thread of it, end *copy* if there is one, and have it reaped."""
    with first_place(reaping.identity.pid) as lenders:
        deadline = time.monotonic() + _STOP_S
        stopped = StoppedProcess(reaping.identity.pid, machine, deadline, lenders)
        return _reap_stopped(stopped, only, copy, reaping, process, looks)


def _reap_stopped(
    stopped: StoppedProcess,
    only: int | None,
    copy: Tracee | None,
    reaping: Reaping,
    process: ProcessHandle,
    looks: BoundedLooks,
) -> bool:
    try:
        process.ensure_same()
        stopped.stop(only)
        process.ensure_same()
        thread = fork.choose_thread(stopped)
        area = restartable.read_area(thread)
        call_address = looks.run(functools.partial(find_call, stopped, thread, area), _STEP_S)
        if copy is not None:
            take_first_place(copy.pid)
            copy.end()
        fork.reap_child(stopped, fork.Means(thread, call_address, _STEP_S), reaping.number)
    except ChildProcessError:
        return True
    except (MemfsError, OSError, Killed, Diverted):
        return False
    finally:
        stopped.release()
        while stopped.keeps:  # it must not go on with registers that are not its own
            stopped.release()
    return True


def find_call(stopped: StoppedProcess, tid: int, area: int) -> int:
    """Where thread *tid* of *stopped* can be made to run a call; it leaves its restartable sequence."""
    pid, architecture = stopped.pid, fork.architecture_of(stopped, tid)
    restartable.leave(tid, area, stopped.registers[tid], architecture)
    mappings = parse_maps(procfs.read_file(path_of(pid, tid, "maps")))
    return find_call_address(tid, architecture, stopped.registers.values(), mappings)


def _thread_ids(pid: int) -> list[int]:
    try:
        return procfs.thread_ids(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []
