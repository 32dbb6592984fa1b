"""Priority inheritance, futex(2): a thread that waits for another one lends it its real-time priority.

The owner of a futex is whoever's number stands in it, be it a thread of another process that knows nothing
of it. It has the priority of the first who waits for it in the kernel, no longer than that one waits: its own
policy, nice value and timer slack are not touched, and its children inherit nothing (``sched_fork``,
kernel/sched/core.c). Whatever ends the thread that lends ends the loan.
"""

import collections
import contextlib
import ctypes
import mmap
import os
import signal
import threading
import time

from memfs.linux.syscalls import send_to_thread

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_long,
]
_libc.syscall.restype = ctypes.c_long
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine, -1)
_WAIT_REQUEUE_PI = 11  # <linux/futex.h>; without FUTEX_PRIVATE_FLAG, since the owner is of another process
_CMP_REQUEUE_PI = 12
_SIGNAL = signal.SIGUSR1
_TRIES = 16
_YIELD_S = 20e-6
_LOWEST = os.sched_param(1)


def prepare_to_lend() -> None:
    """Once for each process that lends, by its main thread: the signal that ends a loan does nothing else."""
    signal.signal(_SIGNAL, _do_nothing)


def _do_nothing(number: int, frame: object) -> None:
    """A signal without a handler would not interrupt a system call."""


class Lenders:
    """Threads of ours, to lend a real-time priority to as many others at a time: the lowest that there is.

    Where the kernel refuses, nothing is lent, and it is no error. Used by one thread.
    """

    def __init__(self, count: int) -> None:
        """Start them; they live until :meth:`close`, or as long as this process."""
        self._free = collections.deque(_Lender() for _ in range(count))
        self._lent: collections.OrderedDict[int, _Lender] = collections.OrderedDict()

    def lend(self, tid: int) -> None:
        """Have thread *tid* come before all others, until as many after it needed that, or :meth:`take_back`.

        *tid* must be a thread of another process that cannot have been reaped: a tracee.
        """
        if tid in self._lent:
            return
        if self._free:
            lender = self._free.popleft()
        elif self._lent:
            _, lender = self._lent.popitem(last=False)
            lender.wake()
        else:
            return
        lender.lend(tid)
        self._lent[tid] = lender

    def take_back(self) -> None:
        """End all loans. When this returns each thread has its own priority."""
        while self._lent:
            _, lender = self._lent.popitem()
            lender.take_back()
            self._free.append(lender)

    def close(self) -> None:
        """The same, and the threads end."""
        self.take_back()
        while self._free:
            self._free.popleft().close()


class _Lender:
    """A thread that waits to be handed over to the one that is to be lent to.

    It waits at a first futex. Lending it moves it from there to a second one, whose owner is the borrower:
    that is one system call, and no thread has to run for it. Nor does one to take it back: as soon as it has
    no priority to lend, the borrower has none of it (``rt_mutex_adjust_pi``, kernel/locking/rtmutex_api.c).
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)  # shared: the owner of a private one is of this process
        self._first = ctypes.c_uint32.from_buffer(self._memory, 0)
        self._second = ctypes.c_uint32.from_buffer(self._memory, ctypes.sizeof(ctypes.c_uint32))
        self._ends = False
        self._thread = threading.Thread(target=self._live, name="lend", daemon=True)
        self._thread.start()

    @property
    def _tid(self) -> int:
        assert self._thread.native_id is not None
        return self._thread.native_id

    def lend(self, tid: int) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self._tid, os.SCHED_RR, _LOWEST)
            self._second.value = tid
            for _ in range(_TRIES):
                if _futex(self._first, _CMP_REQUEUE_PI, 1, self._second) != 0:
                    return
                time.sleep(_YIELD_S)  # it does not wait yet

    def take_back(self) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self._tid, os.SCHED_OTHER, os.sched_param(0))
        self.wake()

    def close(self) -> None:
        self._ends = True
        self._first.value = 1  # should it be about to wait, it does not
        self.wake()

    def wake(self) -> None:
        """Have it wait at the first futex again, soon."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            send_to_thread(os.getpid(), self._tid, _SIGNAL)

    def _live(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_SIGNAL})
        while not self._ends:
            _futex(self._first, _WAIT_REQUEUE_PI, 0, self._second)


def _futex(first: ctypes.c_uint32, operation: int, value: int, second: ctypes.c_uint32) -> int:
    """futex(2) with two of them; to wait at one without a limit, or to move the one that waits there."""
    done: int = _libc.syscall(
        _SYS_FUTEX, ctypes.addressof(first), operation, value, None, ctypes.addressof(second), 0
    )
    return done
