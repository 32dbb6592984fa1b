"""A process that stands still: every thread stopped by ptrace, and let go as it was found.

It knows nothing of why the process was stopped. All of it happens in the one thread that seized; when
that thread ends before it has let go, the kernel lets go for it, even of threads that never stopped.

What a thread must not notice: a system call that it waits in was interrupted. Most calls the kernel
enters again by itself. A few, epoll_wait(2) among them, would return EINTR, for which there was no
signal: these are entered again too, with their timeout from the beginning.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterable, Iterator

from memfs.errors import AccessDenied, TargetExited, TargetStuck
from memfs.linux import ptrace
from memfs.linux.arch import Architecture, Machine, RegisterSet
from memfs.linux.inheritance import Lenders
from memfs.linux.ptrace import Event, WaitStatus
from memfs.linux.registers import Registers
from memfs.linux.stat import read_stat
from memfs.linux.status import read_thread_status
from memfs.target.access import why_denied
from memfs.target.record import ThreadRecord

_S_PER_THREAD = 0.0003
"""How much longer it takes for each thread that there is: ten times what it took where it was measured."""
_ENDED = frozenset((b"Z", b"X", b"x"))
_STOP_SIGNALS = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))


class StoppedProcess:
    """The threads of one process, from :meth:`stop` to :meth:`release`.

    Attributes:
        registers: of each thread, by its number, as they were found.
        unreaped: children that it was made to have, which have ended, by the numbers that it knows them by.
    """

    def __init__(self, pid: int, machine: Machine, deadline: float, lenders: Lenders | None = None) -> None:
        """Nothing is stopped yet.

        Args:
            deadline: when to give up waiting for a thread, by ``time.monotonic()``; that there are many is
                allowed for.
            lenders: of the priority that a thread of it needs to stop, or to run a call of ours, at once.
        """
        self.pid = pid
        self.machine = machine
        self.registers: dict[int, Registers] = {}
        self.unreaped: list[int] = []
        self._stop_signals: dict[int, int] = {}
        self._kept: dict[int, Callable[[int], None]] = {}
        self._stopping: set[int] = set()
        self._seized: set[int] = set()
        self._deadline = deadline
        self._lenders = lenders

    # Stopping

    def stop(self, only: int | None = None) -> None:
        """Stop every thread, those too that are started meanwhile; or *only* one.

        Raises:
            TargetExited: the process has ended.
            TargetStuck: someone else traces it, or a thread does not stop.
            AccessDenied: it may not be traced.
        """
        seen: set[int] = set()
        while new := ({only} if only is not None else self._tids()) - seen:
            seen |= new
            self._deadline += len(new) * _S_PER_THREAD
            seized = [tid for tid in sorted(new) if self._seize(tid)]
            for tid in seized:
                self._await_stop(tid)
        if not self.registers:
            raise TargetExited(f"process {self.pid} has ended")

    def _tids(self) -> set[int]:
        try:
            return {int(name) for name in os.listdir(f"/proc/{self.pid}/task")}
        except (FileNotFoundError, ProcessLookupError):
            raise TargetExited(f"process {self.pid} has ended") from None

    def _seize(self, tid: int) -> bool:
        """Begin to stop a thread; False where it has ended."""
        try:
            ptrace.seize(tid)
            self._seized.add(tid)
            self._stopping.add(tid)
            ptrace.interrupt(tid)
        except ProcessLookupError:
            return False
        except PermissionError:
            return self._explain_refusal(tid)
        return True

    def _explain_refusal(self, tid: int) -> bool:
        """Why *tid* cannot be seized; False where it has ended."""
        try:
            status = read_thread_status(self.pid, tid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        if status.state in _ENDED:
            return False
        if status.tracer and _is_copy(self.pid, status.tracer):
            raise TargetExited(f"process {self.pid} is a frozen copy of another one")
        if status.tracer:
            raise TargetStuck(
                f"process {self.pid} is traced by process {status.tracer} already",
                "let the debugger detach, and try again",
            )
        reason = why_denied(self.pid)
        raise AccessDenied(f"process {self.pid} may not be traced: {reason.cause}", reason.mend)

    def _await_stop(self, tid: int) -> None:
        while (status := self._wait(tid)).alive and status.event != Event.STOP:
            # A signal was about to be delivered: it is, and then the thread stops.
            ptrace.resume(tid, status.signal if status.event == Event.SIGNAL else 0)
        self._stopping.discard(tid)
        if status.alive:
            if status.signal in _STOP_SIGNALS:
                self._stop_signals[tid] = status.signal
            self.registers[tid] = ptrace.get_registers(tid, self.machine.registers)

    def _wait(self, tid: int) -> WaitStatus:
        with contextlib.suppress(TimeoutError):
            return ptrace.wait(tid, 0.0)
        self.hurry(tid)
        try:
            return ptrace.wait(tid, self._deadline)
        except TimeoutError:
            raise TargetStuck(
                f"thread {tid} of process {self.pid} does not come out of the kernel to stop",
                "it waits for a device, a server or a child of vfork: try again later",
            ) from None

    def hurry(self, tid: int) -> None:
        """Have *tid*, a tracee of ours, have a CPU before all others when it runs."""
        if self._lenders is not None:
            self._lenders.lend(tid)

    # Looking

    def architecture_of(self, tid: int) -> Architecture | None:
        """The mode that a thread is in; None for one in which it cannot be made to run calls."""
        return self.machine.architecture_of(self.registers[tid])

    def record(
        self, sets: Iterable[RegisterSet], number_of: Callable[[int], int]
    ) -> tuple[ThreadRecord, ...]:
        """All that is to be known of each thread, of its register sets *sets*.

        *number_of* gives the number by which the process itself knows a thread.
        """
        records: list[ThreadRecord] = []
        missing: set[int] = set()  # what the first thread has not
        for tid in sorted(self.registers):
            wanted = [one for one in sets if one.kind not in missing]
            found = dict(_read_sets(tid, wanted))
            if not records:
                missing = {one.kind for one in wanted if one.rare and one.kind not in found}
            records.append(self._record(tid, number_of(tid), found))
        return tuple(records)

    def _record(self, tid: int, number: int, sets: dict[int, bytes]) -> ThreadRecord:
        return ThreadRecord(
            tid=tid,
            number=number,
            general=bytes(self.registers[tid]),
            sets=sets,
            stop_signal=self._stop_signals.get(tid, 0),
            pending=ptrace.read_pending(tid),
            blocked=ptrace.get_signal_mask(tid),
        )

    # Letting go

    def keep(self, tid: int, restore: Callable[[int], None]) -> None:
        """Do not let *tid* go before *restore* has succeeded: it runs in the kernel, with registers of ours.

        *restore* is called with the number of the process, and raises TimeoutError until then.
        """
        self._kept[tid] = restore

    @property
    def keeps(self) -> bool:
        """Whether some thread has not been let go."""
        return bool(self._kept)

    def release(self) -> None:
        """Let every thread go on as if nothing had been; those that are kept as soon as they can.

        Call it again for these, from the thread that seized them: should it end before, they would go on
        with registers that are not theirs.
        """
        if self._lenders is not None:
            self._lenders.take_back()  # a thread that goes on with it would hold up whoever takes it back
            self._lenders = None
        for tid, restore in tuple(self._kept.items()):
            with contextlib.suppress(TimeoutError):
                restore(self.pid)
                del self._kept[tid]
        self._deadline = 0.0
        for tid in tuple(self._stopping):  # some may have stopped since we gave up
            with contextlib.suppress(TargetStuck):
                self._await_stop(tid)
        kept = {tid: found for tid, found in self.registers.items() if tid in self._kept}
        for tid, registers in self.registers.items():
            if tid in kept:
                continue
            try:
                mode = self.architecture_of(tid)
                if mode is not None and mode.was_cut_short(registers) and not self._has_signal(tid):
                    mode.rewind(registers)
                    ptrace.set_registers(tid, registers)
                ptrace.detach(tid)
            except ProcessLookupError:
                continue  # killed meanwhile
        self.registers = kept
        self.take_ends()

    def take_ends(self) -> bool:
        """Take the ends of threads that were killed while they were traced; returns whether none is left.

        Until then nobody else is told of them. That of the main thread can be taken only after all others.
        """
        for tid in sorted(self._seized - self._kept.keys() - self._stopping, key=lambda tid: tid == self.pid):
            with contextlib.suppress(TimeoutError):
                try:
                    while ptrace.wait(tid, 0.0).alive:
                        pass
                except ChildProcessError:
                    pass  # it was let go
                self._seized.discard(tid)
        return self._seized <= self._kept.keys() | self._stopping

    def _has_signal(self, tid: int) -> bool:
        """Whether a signal is about to be delivered: then EINTR is what the thread must see."""
        try:
            status = read_thread_status(self.pid, tid)
        except (FileNotFoundError, ProcessLookupError):
            return True
        return bool((status.pending | status.shared_pending) & ~status.blocked)


def _is_copy(pid: int, tracer: int) -> bool:
    """Whether *pid* is a frozen copy that another worker of the same mount holds, or is just making.

    Such a worker has the parent that we have, and a copy no exit signal.
    """
    try:
        return read_stat(tracer).parent == os.getppid() and not read_stat(pid).exit_signal
    except (FileNotFoundError, ProcessLookupError):
        return False


def _read_sets(tid: int, sets: Iterable[RegisterSet]) -> Iterator[tuple[int, bytes]]:
    for one in sets:
        try:
            content = ptrace.read_register_set(tid, one.kind)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL, errno.ENXIO, errno.EIO):
                raise
        else:
            if not one.size_bytes or len(content) == one.size_bytes:
                yield one.kind, content
