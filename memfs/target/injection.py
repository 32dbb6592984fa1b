"""System calls run by a stopped thread of another process, without a byte written into it.

The thread is set to an instruction that enters the kernel, in its vDSO, with the call in its registers;
afterwards it gets its own registers back. While it runs it takes no signal: all are blocked, and a
SIGSTOP, which cannot be, is kept and sent again. Nor do its own guards see these calls: a seccomp
filter is suspended where we may, and the dispatch of its calls to itself is off meanwhile.
"""

import contextlib
import os
import signal
import struct
import time

from memfs.linux import ptrace
from memfs.linux.arch import Architecture, Call, Registers
from memfs.linux.ptrace import Event, Option, Status
from memfs.linux.span import Span
from memfs.linux.syscalls import read_process, send_to_thread

_ALL_SIGNALS = (1 << 64) - 1
_NOT_BEGUN = frozenset((-4, -512, -513, -514, -516))
"""EINTR and the kernel's ERESTART* (``include/linux/errno.h``): something else was to be done first."""
_TRIES = 16
_OPTIONS = Option.TRACE_SYSGOOD | Option.TRACE_CLONE
_DISPATCH_OFF = bytes(32)


class Killed(Exception):
    """The thread was killed while it ran for us."""


class Injection:
    """A stopped thread that runs calls for us.

    Attributes:
        seccomp_suspended: whether its seccomp filter, if it has one, does not see these calls.
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
        """Use *tid*, whose registers are *registers*; its children inherit the *extra* options too.

        Args:
            call_address: of an instruction that enters the kernel.
            patience_s: how long to wait for each of its steps.
        """
        self.tid = tid
        self.seccomp_suspended = True
        self._registers = registers
        self._architecture = architecture
        self._call_address = call_address
        self._patience_s = patience_s
        self._stopped_late = False
        self._mask = ptrace.get_signal_mask(tid)
        try:
            ptrace.set_options(tid, _OPTIONS | extra | Option.SUSPEND_SECCOMP)
        except OSError:
            self.seccomp_suspended = False
            ptrace.set_options(tid, _OPTIONS | extra)
        self._dispatch = _switch_dispatch_off(tid)
        _leave_critical_section(tid, registers, architecture)
        ptrace.set_signal_mask(tid, _ALL_SIGNALS)

    def beside(self, tid: int, *, extra: Option) -> "Injection":
        """The same for another thread, which stands still, with the registers that it has now."""
        registers = ptrace.get_registers(tid, self._architecture.registers)
        return Injection(
            tid, registers, self._architecture, self._call_address, self._patience_s, extra=extra
        )

    def restore(self, pid: int) -> None:
        """Give the thread of process *pid* its registers and signals back. It still stands still.

        It stands at the end of a call, where the kernel would not look whether the call that we found
        it in has to be entered again. So it goes on to a stop like the one in which we found it.
        """
        with contextlib.suppress(ProcessLookupError, Killed):  # killed meanwhile
            ptrace.interrupt(self.tid)
            self._run(to=(Event.STOP,))
            ptrace.set_registers(self.tid, self._registers)
            ptrace.set_signal_mask(self.tid, self._mask)
            if self._dispatch != _DISPATCH_OFF:
                ptrace.set_call_dispatch(self.tid, self._dispatch)
            if self._stopped_late:
                send_to_thread(pid, self.tid, signal.SIGSTOP)

    def call(self, call: Call, *arguments: int) -> int:
        """Run one call to its end and return its result.

        Raises:
            OSError: the call failed.
            Killed: the thread was killed meanwhile.
            TimeoutError: it does not come back.
        """
        for _ in range(_TRIES):
            self._enter(call, arguments)
            result = self._leave()
            if result not in _NOT_BEGUN:
                break
        return _checked(call, result)

    def clone(self, flags: int) -> int:
        """Run clone(2) until the child is there, stopped before its first step.

        The thread is still inside the call; :meth:`finish_clone` takes it out.

        Returns:
            The child's number as we see it.
        Raises:
            OSError, Killed, TimeoutError: as :meth:`call`.
        """
        for _ in range(_TRIES):
            self._enter(Call.CLONE, (flags, 0, 0, 0, 0))
            if self._run().event == Event.CLONE:
                return ptrace.event_message(self.tid)
            result = self._result()
            if result not in _NOT_BEGUN:
                break
        return _checked(Call.CLONE, result)

    def finish_clone(self) -> int:
        """Bring :meth:`clone` to its end; returns the child's number as the process itself sees it."""
        return self._leave()

    def _enter(self, call: Call, arguments: tuple[int, ...]) -> None:
        architecture = self._architecture
        registers = type(self._registers).from_buffer_copy(self._registers)
        architecture.prepare(registers, self._call_address, architecture.numbers[call], arguments)
        ptrace.set_registers(self.tid, registers)
        self._run()

    def _leave(self) -> int:
        self._run()
        return self._result()

    def _result(self) -> int:
        return self._architecture.result(ptrace.get_registers(self.tid, self._architecture.registers))

    def _run(self, *, to: tuple[Event, ...] = (Event.CALL, Event.CLONE)) -> Status:
        """Let the thread run to its next stop of a kind in *to*."""
        while True:
            ptrace.run_to_call(self.tid)
            status = ptrace.wait(self.tid, time.monotonic() + self._patience_s)
            if not status.alive:
                raise Killed
            if status.event in to:
                return status
            if status.signal == signal.SIGSTOP and status.event == Event.SIGNAL:
                self._stopped_late = True


def _checked(call: Call, result: int) -> int:
    if result < 0:
        raise OSError(-result, f"{call.name.lower()}: {os.strerror(-result)}")
    return result


def _switch_dispatch_off(tid: int) -> bytes:
    """Have the thread's calls go to the kernel; returns what to put back."""
    try:
        config = ptrace.get_call_dispatch(tid)
    except OSError:
        return _DISPATCH_OFF
    if config != _DISPATCH_OFF:
        ptrace.set_call_dispatch(tid, _DISPATCH_OFF)
    return config


_RSEQ_CS_OFFSET = 8  # in struct rseq (<linux/rseq.h>), the address of a struct rseq_cs
_CRITICAL_SECTION = struct.Struct("=IIQQQ")


def _leave_critical_section(tid: int, registers: Registers, architecture: Architecture) -> None:
    """Send a thread that was stopped in a restartable sequence to where it begins anew.

    The kernel does so when the thread goes on (rseq(2)). But it would look at the thread when it runs
    for us, elsewhere, and forget the sequence, whose rest would then run as if nothing had been.
    """
    try:
        area = ptrace.read_rseq_address(tid)
        if not area:
            return
        at = int.from_bytes(_peek(tid, area + _RSEQ_CS_OFFSET, 8), "little")
        if at:
            _, _, start, length, abort = _CRITICAL_SECTION.unpack(_peek(tid, at, _CRITICAL_SECTION.size))
            if architecture.program_counter(registers) in Span(start, start + length):
                architecture.jump(registers, abort)
    except OSError:
        return  # a kernel that does not tell, or a thread whose area is not mapped: it would be killed


def _peek(tid: int, address: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_process(tid, (address, memoryview(buffer)))
    return bytes(buffer)
