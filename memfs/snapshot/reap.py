"""The end of a frozen copy: its process, which is its parent, is made to take its status.

Else it would stay a zombie for as long as the process lives.
"""

import functools
import os
import threading
import time

from memfs.errors import MemfsError
from memfs.linux import procfs
from memfs.linux.arch import Architecture
from memfs.snapshot.values import Reaping
from memfs.target import fork, restartable
from memfs.target.bounded import BoundedLooks
from memfs.target.callsite import find_call_address
from memfs.target.identity import ProcessHandle
from memfs.target.injection import Diverted
from memfs.target.stopped import StoppedProcess
from memfs.target.tracee import Killed

_STOP_S = 0.05
_STEP_S = 1.0


def reap(reaping: Reaping, process: ProcessHandle, architecture: Architecture, looks: BoundedLooks) -> bool:
    """Have some thread of the process reap its child; returns whether nothing of that is left.

    The child has ended, so its number cannot come to mean another one before it is reaped.
    """
    for tid in _thread_ids(reaping.identity.pid):
        # A thread that does not stop in time cannot be let go but by the end of the thread that seized it.
        done: list[bool] = []
        attempt = functools.partial(_reap_by, tid, reaping, process, architecture, looks)
        tracer = threading.Thread(target=lambda attempt=attempt, done=done: done.append(attempt()))
        tracer.start()
        tracer.join()
        if done == [True]:
            return True
    return process.exited  # then it goes to init, as every orphan does


def _reap_by(
    tid: int, reaping: Reaping, process: ProcessHandle, architecture: Architecture, looks: BoundedLooks
) -> bool:
    stopped = StoppedProcess(reaping.identity.pid, architecture, time.monotonic() + _STOP_S)
    try:
        process.ensure_same()
        stopped.stop(tid)
        process.ensure_same()
        fork.choose_thread(stopped)
        area = restartable.read_area(tid)
        call_address = looks.run(functools.partial(_find_call, stopped, tid, area), _STEP_S)
        fork.reap_child(stopped, fork.Means(tid, call_address, _STEP_S), reaping.number)
    except ChildProcessError:
        return True
    except (MemfsError, OSError, Killed, Diverted):
        return False
    finally:
        stopped.release()
        while stopped.keeps:  # it must not go on with registers that are not its own
            stopped.release()
    return True


def _find_call(stopped: StoppedProcess, tid: int, area: int) -> int:
    pid, architecture = stopped.pid, stopped.architecture
    restartable.leave(pid, area, stopped.registers[tid], architecture)
    mappings = procfs.parse_maps(procfs.read_file(f"/proc/{pid}/maps"))
    return find_call_address(pid, architecture, stopped.registers.values(), mappings)


def _thread_ids(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []
