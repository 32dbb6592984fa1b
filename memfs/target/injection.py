"""System calls run by a stopped thread of another process, without a byte written into it.

The thread is set to an instruction that enters the kernel, in its vDSO, with the call in its registers;
afterwards it gets its own registers back. While it runs it takes no signal: all are blocked, and a
SIGSTOP, which cannot be, is kept and sent again.
"""

import contextlib
import os
import signal

from memfs.linux import ptrace
from memfs.linux.arch import Architecture, Call, Registers
from memfs.linux.ptrace import Event, Option, Status
from memfs.linux.syscalls import send_to_thread

_ALL_SIGNALS = (1 << 64) - 1
_NOT_BEGUN = frozenset((-4, -512, -513, -514, -516))
"""EINTR and the kernel's ERESTART* (``include/linux/errno.h``): something else was to be done first."""
_TRIES = 16
_OPTIONS = Option.TRACE_SYSGOOD | Option.TRACE_CLONE


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
        deadline: float,
        *,
        extra: Option = Option.NONE,
    ) -> None:
        """Use *tid*, whose registers are *registers*; its children inherit the *extra* options too.

        Args:
            call_address: of an instruction that enters the kernel.
            deadline: by ``time.monotonic()``, when to give a call up.
        """
        self.tid = tid
        self.seccomp_suspended = True
        self._registers = registers
        self._architecture = architecture
        self._call_address = call_address
        self._deadline = deadline
        self._stopped_late = False
        self._mask = ptrace.get_signal_mask(tid)
        try:
            ptrace.set_options(tid, _OPTIONS | extra | Option.SUSPEND_SECCOMP)
        except OSError:
            self.seccomp_suspended = False
            ptrace.set_options(tid, _OPTIONS | extra)
        ptrace.set_signal_mask(tid, _ALL_SIGNALS)

    def restore(self, pid: int) -> None:
        """Give the thread of process *pid* its registers and signals back. It still stands still."""
        with contextlib.suppress(ProcessLookupError):  # killed meanwhile
            ptrace.set_registers(self.tid, self._registers)
            ptrace.set_signal_mask(self.tid, self._mask)
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

    def _run(self) -> Status:
        """Let the thread run to its next stop that means something to us."""
        while True:
            ptrace.run_to_call(self.tid)
            status = ptrace.wait(self.tid, self._deadline)
            if not status.alive:
                raise Killed
            if status.signal == ptrace.SYSCALL_STOP or status.event == Event.CLONE:
                return status
            if status.signal == signal.SIGSTOP and not status.event:
                self._stopped_late = True


def _checked(call: Call, result: int) -> int:
    if result < 0:
        raise OSError(-result, f"{call.name.lower()}: {os.strerror(-result)}")
    return result
