"""Interrupts: requests whose caller got a signal while it waits for the reply.

The kernel sends INTERRUPT once, for the first signal, whatever it is, and a caller that is killed goes on
waiting until there is a reply (``request_wait_answer``, fs/fuse/dev.c). So each such request is remembered
until it has been answered, and what waits for its caller is looked up again and again: a fatal signal ends
the request at once, another one when it has waited for a while. Signals by which programs keep time or
learn of their children, of windows and of goroutines end nothing: such programs do not expect EINTR.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from memfs.linux.status import read_thread_status

log = logging.getLogger(__name__)

_GRACE_S = 0.5
"""How long a request goes on after a signal that does not kill; most are answered long before."""
_TRAP_S = 0.02
"""How long a read goes on that its tracer wants to stop."""
_UNKNOWN_S = 0.1
"""How long INTERRUPT may overtake the request that it is about: another thread may still be parsing it."""


def _mask(*numbers: int) -> int:
    return sum(1 << number - 1 for number in numbers)


_KILL = _mask(signal.SIGKILL)
"""The kernel adds it to all threads of a process that a signal ends (``complete_signal``)."""
_PATIENT = _mask(
    signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGCONT,
    signal.SIGPROF, signal.SIGVTALRM, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


class Waiting(NamedTuple):
    """Who waits for a request.

    Attributes:
        caller: its thread; 0 where it is not known.
        reads: whether it reads: a tracer that stops it can have it enter such a call again after EINTR.
    """

    caller: int
    reads: bool


class Interrupts:
    """The requests that were interrupted and have no reply yet."""

    def __init__(self, find_caller: Callable[[int], Waiting | None], end: Callable[[int], None]) -> None:
        """Watch over requests, by their number.

        Args:
            find_caller: tells who waits for a request; None where none does.
            end: answers a request with EINTR.
        """
        self._find_caller = find_caller
        self._end = end
        self._lock = threading.Lock()
        self._since: dict[int, float] = {}

    @property
    def pending(self) -> bool:
        """Whether there is any."""
        return bool(self._since)

    def add(self, unique: int) -> None:
        """Remember that request *unique* was interrupted."""
        with self._lock:
            self._since[unique] = time.monotonic()

    def look(self) -> None:
        """End the requests whose time has come, and forget those that have been answered."""
        if not self._since:
            return
        now = time.monotonic()
        with self._lock:
            since = list(self._since.items())
        for unique, begun in since:
            waiting = self._find_caller(unique)
            if waiting is None:
                done = now - begun >= _UNKNOWN_S
            else:
                done = _must_end(waiting, now - begun)
                if done:
                    log.debug("request %d is interrupted", unique)
                    self._end(unique)
            if done:
                with self._lock:
                    del self._since[unique]


def _must_end(waiting: Waiting, waited_s: float) -> bool:
    """Whether a thread that was interrupted *waited_s* ago is to wait no longer."""
    try:
        status = read_thread_status(waiting.caller, waiting.caller)
    except (OSError, KeyError):  # it is in another pid namespace, or hidden (hidepid, proc(5))
        return waited_s >= _GRACE_S
    if status.pending & _KILL:
        return True
    if waiting.reads and status.tracer and waited_s >= _TRAP_S:  # it is to stop, for a snapshot say
        return True
    pending = (status.pending | status.shared_pending) & ~status.blocked
    return waited_s >= _GRACE_S and bool(pending & ~_PATIENT)
