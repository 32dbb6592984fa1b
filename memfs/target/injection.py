"""System calls run by a stopped thread of another process, without a byte written into it.

The thread is set to an instruction that enters the kernel, with the call in its registers; afterwards it
gets its own registers back. While it runs it takes no signal: all are blocked, and a SIGSTOP, which cannot
be, is kept and sent again. Nor do its own guards see these calls: a seccomp filter is suspended where we
may, and the dispatch of its calls to itself is off meanwhile.

What the thread does is not believed, since the process decides which code stands at that instruction, and
another process that shares the memory may change it at any moment. Where the thread enters the kernel it
stands still, and the kernel says which call that is (PTRACE_GET_SYSCALL_INFO). Any other than the one that
was set is cancelled before it begins, and :class:`Diverted` is raised.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from memfs.linux import ptrace
from memfs.linux.arch import Architecture, Call
from memfs.linux.ptrace import CallInfo, CallStop, Event, Option, WaitStatus
from memfs.linux.registers import Registers
from memfs.linux.syscalls import send_to_thread
from memfs.target.tracee import Killed, Tracee

_ALL_SIGNALS = (1 << 64) - 1
_NOT_BEGUN = frozenset((-4, -512, -513, -514, -516))
"""EINTR and the kernel's ERESTART* (``include/linux/errno.h``): something else was to be done first."""
_TRIES = 16
_OPTIONS = Option.TRACE_SYSGOOD | Option.TRACE_CLONE
_DISPATCH_OFF = bytes(32)


class Diverted(Exception):
    """The thread did something else than the call that it was set up for."""


@contextlib.contextmanager
def _killed_if_gone() -> Iterator[None]:
    """To ptrace(2) a thread that was killed is no thread any more."""
    try:
        yield
    except ProcessLookupError:
        raise Killed from None


class Injection:
    """A stopped thread that runs calls for us.

    Attributes:
        seccomp_suspended: whether its seccomp filter, if it has one, does not see these calls.
        undone: calls that were deferred, and from which the thread was diverted all the time.
    """

    def __init__(
        self,
        tid: int,
        registers: Registers,
        architecture: Architecture,
        call_address: int,
        patience_s: float,
        *,
        extra: Option = Option.NONE,
    ) -> None:
        """Use *tid*, to which *registers* are given in the end; its children inherit the *extra* options too.

        Args:
            call_address: of an instruction that enters the kernel.
            patience_s: how long to wait for each of its steps.

        Raises:
            Killed: the thread was killed.
        """
        self.tid = tid
        self.seccomp_suspended = True
        self._registers = registers
        self._architecture = architecture
        self._call_address = call_address
        self._patience_s = patience_s
        self._stopped_late = False
        self._swallowed: int | None = None
        self._between_calls = True
        self._runs = False
        self._deferred: list[tuple[Call, tuple[int, ...]]] = []
        self.undone: list[tuple[Call, tuple[int, ...]]] = []
        with _killed_if_gone():
            self._mask = ptrace.get_signal_mask(tid)
            try:
                ptrace.set_options(tid, _OPTIONS | extra | Option.SUSPEND_SECCOMP)
            except ProcessLookupError:
                raise
            except OSError:
                self.seccomp_suspended = False
                ptrace.set_options(tid, _OPTIONS | extra)
            self._dispatch = _switch_dispatch_off(tid)
            ptrace.set_signal_mask(tid, _ALL_SIGNALS)

    @property
    def reach(self) -> int:
        """Where the addresses end that its calls can have."""
        return self._architecture.reach

    def beside(self, tid: int, *, extra: Option) -> "Injection":
        """The same for another thread, which stands still, with the registers that it has now."""
        with _killed_if_gone():
            registers = ptrace.get_registers(tid, type(self._registers))
        return Injection(
            tid, registers, self._architecture, self._call_address, self._patience_s, extra=extra
        )

    def swallow(self, number: signal.Signals) -> None:
        """Have the thread take signal *number*, which waits for it or its process, and nothing come of it."""
        self._swallowed = number
        with _killed_if_gone():
            ptrace.set_signal_mask(self.tid, _ALL_SIGNALS & ~(1 << number - 1))

    def defer(self, call: Call, *arguments: int) -> None:
        """Have *call* run before the thread gets its registers back, whatever happens until then.

        That it fails is no matter; if the thread is diverted, it is tried again. The one that was deferred
        last comes first.
        """
        self._deferred.append((call, arguments))

    def forget(self, call: Call, *arguments: int) -> None:
        """Do not run a call any more that was deferred."""
        self._deferred.remove((call, arguments))

    def give_up(self, child: Tracee) -> None:
        """End a child that the thread was made to have, and have the thread reap it in the end."""
        child.hasten()
        child.end()
        self.defer(Call.WAIT4, child.inner_number, 0, os.WNOHANG | ptrace.WAIT_ALL, 0)

    def restore(self, pid: int) -> None:
        """Give the thread of process *pid* its registers and signals back. It still stands still.

        It stands at the end of a call, where the kernel would not look whether the call that we found
        it in has to be entered again. So it goes on to a stop like the one in which we found it.

        Raises:
            TimeoutError: it does not come to that stop: call it again later.
        """
        with contextlib.suppress(Killed), _killed_if_gone():
            if not self._between_calls:
                self._come_to_rest()
            while self._deferred:
                if not self._try_again_and_again(*self._deferred[-1]):
                    self.undone.append(self._deferred[-1])
                self._deferred.pop()
            self._come_to_rest()
            ptrace.set_registers(self.tid, self._registers)
            ptrace.set_signal_mask(self.tid, self._mask)
            if self._dispatch != _DISPATCH_OFF:
                ptrace.set_call_dispatch(self.tid, self._dispatch)
            if self._stopped_late:
                send_to_thread(pid, self.tid, signal.SIGSTOP)

    def _try_again_and_again(self, call: Call, arguments: tuple[int, ...]) -> bool:
        for _ in range(_TRIES):
            try:
                self.call(call, *arguments)
            except Diverted:
                self._come_to_rest()
                continue
            except TimeoutError:
                raise
            except OSError:
                pass
            return True
        return False

    def call(self, call: Call, *arguments: int) -> int:
        """Run one call to its end and return its result.

        Raises:
            OSError: the call failed.
            Diverted: the thread did something else.
            Killed: the thread was killed meanwhile.
            TimeoutError: it does not come back.
        """
        with _killed_if_gone():
            for _ in range(_TRIES):
                self._enter(call, arguments)
                result = self._result_of(self._advance())
                if result not in _NOT_BEGUN:
                    break
        return _checked(call, result)

    def clone(self, flags: int) -> int:
        """Run clone(2) until the child is there, stopped before its first step.

        The thread is still inside the call, and comes out with :meth:`restore` or :meth:`leave_clone`.

        Returns:
            The child's number as we see it, which the kernel told.
        Raises:
            OSError, Diverted, Killed, TimeoutError: as :meth:`call`.
        """
        with _killed_if_gone():
            for _ in range(_TRIES):
                self._enter(Call.CLONE, (flags, 0, 0, 0, 0))
                status = self._advance()
                if status.event == Event.CLONE:
                    return ptrace.event_message(self.tid)
                result = self._result_of(status)
                if result not in _NOT_BEGUN:
                    break
        return _checked(Call.CLONE, result)

    def leave_clone(self) -> None:
        """Run clone(2) to its end, so that the thread can run other calls.

        Raises:
            Diverted, Killed, TimeoutError: as :meth:`call`.
        """
        with _killed_if_gone():
            self._result_of(self._advance())

    def _enter(self, call: Call, arguments: tuple[int, ...]) -> None:
        """Run the thread into *call*, up to where the kernel is about to begin with it."""
        architecture = self._architecture
        registers = type(self._registers).from_buffer_copy(self._registers)
        architecture.prepare(registers, self._call_address, architecture.numbers[call], arguments)
        ptrace.set_registers(self.tid, registers)
        self._between_calls = False
        status = self._advance()
        if status.event != Event.CALL:
            raise Diverted
        expected = CallInfo(
            CallStop.ENTRY,
            architecture.machine,
            self._call_address + len(architecture.call_instruction),
            architecture.numbers[call],
            architecture.arguments(registers),
        )
        if ptrace.get_call_info(self.tid) != expected:
            self._cancel_call()
            raise Diverted

    def _result_of(self, status: WaitStatus) -> int:
        """What the call returned at whose end the thread has stopped with *status*."""
        if status.event == Event.CALL:
            info = ptrace.get_call_info(self.tid)
            if info.stop is CallStop.EXIT:
                self._between_calls = True
                return info.result
            self._cancel_call()
        raise Diverted

    def _cancel_call(self) -> None:
        """Where the thread is about to begin a call, have it begin none."""
        if ptrace.get_call_info(self.tid).stop is not CallStop.EXIT:
            registers = ptrace.get_registers(self.tid, type(self._registers))
            self._architecture.cancel(registers)
            ptrace.set_registers(self.tid, registers)

    def _advance(self) -> WaitStatus:
        """Let the thread run to the next stop that is about a call.

        Raises:
            Diverted: it would be given a signal, which it cannot but have caused itself.
        """
        for status in self._stops():
            if status.event == Event.SIGNAL:
                raise Diverted
            if status.event != Event.STOP:  # an earlier request to stop
                return status
        raise Killed

    def _come_to_rest(self) -> None:
        """Let the thread run to a stop of Event.STOP; it begins no call on the way."""
        ptrace.interrupt(self.tid)
        for status in self._stops():
            if status.event == Event.STOP:
                self._between_calls = True
                return
            if status.event == Event.CALL:
                self._cancel_call()
            elif status.event == Event.CLONE:  # by a call that had been given up
                self.give_up(Tracee(ptrace.event_message(self.tid)))
            ptrace.interrupt(
                self.tid
            )  # any stop takes the request to stop away (ptrace_stop, kernel/signal.c)

    def _stops(self) -> Iterator[WaitStatus]:
        """The stops of the thread, which goes on after each; ended by its death.

        Raises:
            TimeoutError: it takes too long, or stops again and again.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            if not self._runs:
                ptrace.run_to_call(self.tid)
                self._runs = True
            status = ptrace.wait(self.tid, deadline)
            self._runs = False
            if not status.alive:
                raise Killed
            if status.event == Event.SIGNAL and status.signal == signal.SIGSTOP:
                self._stopped_late = True
            elif status.event == Event.SIGNAL and status.signal == self._swallowed:
                self._swallowed = None
                ptrace.set_signal_mask(self.tid, _ALL_SIGNALS)
            else:
                yield status
            if time.monotonic() > deadline:
                raise TimeoutError(f"thread {self.tid} stops again and again")


def _checked(call: Call, result: int) -> int:
    if result < 0:
        raise OSError(-result, f"{call.name.lower()}: {os.strerror(-result)}")
    return result


def _switch_dispatch_off(tid: int) -> bytes:
    """Have the thread's calls go to the kernel; returns what to put back."""
    try:
        config = ptrace.get_call_dispatch(tid)
    except ProcessLookupError:
        raise
    except OSError:
        return _DISPATCH_OFF
    if config != _DISPATCH_OFF:
        ptrace.set_call_dispatch(tid, _DISPATCH_OFF)
    return config
