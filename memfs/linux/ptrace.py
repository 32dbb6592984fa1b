"""ptrace(2) and the waiting that belongs to it, typed; each call raises OSError.

No policy here. All calls for one tracee must come from the thread that seized it. What that thread has
seized when it ends, the kernel lets go, in whatever state it is; with Option.EXIT_KILL it kills it.
"""

import ctypes
import enum
import os
import signal
import struct
import time
from typing import NamedTuple

from memfs.linux.registers import Registers
from memfs.linux.syscalls import IoVec


class _Request(enum.IntEnum):
    """``enum __ptrace_request`` (``<linux/ptrace.h>``)."""

    CONT = 7
    GETREGS = 12
    SETREGS = 13
    DETACH = 17
    SYSCALL = 24
    SETOPTIONS = 0x4200
    GETEVENTMSG = 0x4201
    GETSIGINFO = 0x4202
    GETREGSET = 0x4204
    SEIZE = 0x4206
    INTERRUPT = 0x4207
    PEEKSIGINFO = 0x4209
    GETSIGMASK = 0x420A
    SETSIGMASK = 0x420B
    GET_SYSCALL_INFO = 0x420E
    GET_RSEQ_CONFIGURATION = 0x420F
    SET_SYSCALL_USER_DISPATCH_CONFIG = 0x4210
    GET_SYSCALL_USER_DISPATCH_CONFIG = 0x4211


class Option(enum.IntFlag):
    """``PTRACE_O_*``."""

    NONE = 0
    TRACE_SYSGOOD = 1
    TRACE_CLONE = 1 << 3
    EXIT_KILL = 1 << 20
    SUSPEND_SECCOMP = 1 << 21
    """Needs CAP_SYS_ADMIN, and a tracer that is under no seccomp filter itself."""


class Event(enum.IntEnum):
    """What a stop is about: ``PTRACE_EVENT_*``, and two that have no such number."""

    CALL = -1
    """A system call begins or ends, under Option.TRACE_SYSGOOD."""
    SIGNAL = 0
    """A signal is about to be delivered."""
    CLONE = 3
    STOP = 128


class CallStop(enum.IntEnum):
    """Where in a system call a thread stands: ``PTRACE_SYSCALL_INFO_*``."""

    NONE = 0
    ENTRY = 1
    EXIT = 2
    SECCOMP = 3


class CallInfo(NamedTuple):
    """What the kernel says of the system call that a thread stands in.

    Attributes:
        machine: ``AUDIT_ARCH_*`` (``<linux/audit.h>``): by which of the machine's entries it came.
        program_counter: the address behind the instruction that entered the kernel.
        number, arguments: of the call, at its entry; six arguments.
        result: of the call, at its exit; an errno as a negative number.
    """

    stop: CallStop
    machine: int
    program_counter: int
    number: int = -1
    arguments: tuple[int, ...] = ()
    result: int = 0


class WaitStatus(NamedTuple):
    """The status of a tracee, as waitpid(2) reports it.

    Attributes:
        alive: False where it has ended.
        signal: by which it stopped.
        event: one of :class:`Event`, or another number.
    """

    alive: bool
    signal: int
    event: int


_CALL_STOP = signal.SIGTRAP | 0x80
WAIT_ALL = 0x4000_0000
"""``__WALL``: children too that were made by clone(2) with another exit signal than SIGCHLD."""
_REGISTER_SET_ROOM = 1 << 14  # an XSAVE area with AMX tiles takes 11 KiB
_SIGNAL_SET_BYTES = 8
_SIGINFO_BYTES = 128
_MOST_PEEKED = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _PeekArguments(ctypes.Structure):
    """``struct ptrace_peeksiginfo_args``."""

    _fields_ = (("offset", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("count", ctypes.c_int32))


def _ptrace(request: _Request, tid: int, address: int = 0, data: int = 0) -> int:
    done: int = _libc.ptrace(request, tid, address, data)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request.name} of {tid}: {os.strerror(number)}")
    return done


def seize(tid: int, options: Option = Option.NONE) -> None:
    """Begin to trace a thread, which goes on running.

    Raises:
        ProcessLookupError: there is no such thread.
        PermissionError: it may not be traced, is traced by someone else, or is a zombie.
    """
    _ptrace(_Request.SEIZE, tid, 0, options)


def interrupt(tid: int) -> None:
    """Make a seized thread stop, with Event.STOP."""
    _ptrace(_Request.INTERRUPT, tid)


def set_options(tid: int, options: Option) -> None:
    """Replace the options; children that are traced from birth inherit them.

    Raises:
        PermissionError, OSError(EINVAL): one of them is not to be had.
    """
    _ptrace(_Request.SETOPTIONS, tid, 0, options)


def resume(tid: int, number: int) -> None:
    """Let a stopped thread go on; at a stop for the delivery of a signal, *number* is what it gets."""
    _ptrace(_Request.CONT, tid, 0, number)


def run_to_call(tid: int) -> None:
    """Let a stopped thread run to the beginning or the end of its next system call."""
    _ptrace(_Request.SYSCALL, tid)


def detach(tid: int) -> None:
    """Let a stopped thread go; it goes back into a group stop if it was in one."""
    _ptrace(_Request.DETACH, tid)


def event_message(tid: int) -> int:
    """At Event.CLONE: the number of the new thread or process."""
    message = ctypes.c_ulong()
    _ptrace(_Request.GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


# struct ptrace_syscall_info (<linux/ptrace.h>): op arch instruction_pointer stack_pointer; then, at an
# entry, nr args[6], and at an exit, rval is_error
_CALL_INFO_HEAD = struct.Struct("=B3xIQQ")
_CALL_INFO_ENTRY = struct.Struct("=7Q")
_CALL_INFO_EXIT = struct.Struct("=qB")
_CALL_INFO_BYTES = 128


def get_call_info(tid: int) -> CallInfo:
    """The system call that a thread stands in which stopped with Event.CALL (Linux 5.3).

    Raises:
        ProcessLookupError: it does not stand still, it was killed.
    """
    buffer = ctypes.create_string_buffer(_CALL_INFO_BYTES)
    _ptrace(_Request.GET_SYSCALL_INFO, tid, _CALL_INFO_BYTES, ctypes.addressof(buffer))
    stop, machine, program_counter, _ = _CALL_INFO_HEAD.unpack_from(buffer)
    if stop == CallStop.ENTRY:
        number, *arguments = _CALL_INFO_ENTRY.unpack_from(buffer, _CALL_INFO_HEAD.size)
        return CallInfo(CallStop.ENTRY, machine, program_counter, number, tuple(arguments))
    if stop == CallStop.EXIT:
        result, _ = _CALL_INFO_EXIT.unpack_from(buffer, _CALL_INFO_HEAD.size)
        return CallInfo(CallStop.EXIT, machine, program_counter, result=result)
    return CallInfo(CallStop(stop), machine, program_counter)


def get_registers(tid: int, layout: type[Registers]) -> Registers:
    """The general registers of a stopped thread: of a 32-bit one of x86 those of 64 bits, which hold all."""
    registers = layout()
    _ptrace(_Request.GETREGS, tid, 0, ctypes.addressof(registers))
    return registers


def set_registers(tid: int, registers: Registers) -> None:
    """Replace the general registers of a stopped thread."""
    _ptrace(_Request.SETREGS, tid, 0, ctypes.addressof(registers))


def read_register_set(tid: int, which: int) -> bytes:
    """A whole register set of a stopped thread, ``NT_*`` (``<elf.h>``).

    Raises:
        OSError: ENODEV where the thread has no such set, EINVAL where its processor or its mode has none.
    """
    buffer = ctypes.create_string_buffer(_REGISTER_SET_ROOM)
    vector = IoVec(ctypes.addressof(buffer), _REGISTER_SET_ROOM)
    _ptrace(_Request.GETREGSET, tid, which, ctypes.addressof(vector))
    return buffer.raw[: vector.length]


def get_signal_mask(tid: int) -> int:
    """The signals that a stopped thread blocks, bit 0 for signal 1."""
    mask = ctypes.c_uint64()
    _ptrace(_Request.GETSIGMASK, tid, _SIGNAL_SET_BYTES, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace them."""
    value = ctypes.c_uint64(mask)
    _ptrace(_Request.SETSIGMASK, tid, _SIGNAL_SET_BYTES, ctypes.addressof(value))


def read_pending(tid: int) -> int:
    """The signals that wait for a stopped thread alone, of those that carry information."""
    infos = (ctypes.c_int32 * (_SIGINFO_BYTES // 4 * _MOST_PEEKED))()
    arguments = _PeekArguments(0, 0, _MOST_PEEKED)
    count = _ptrace(_Request.PEEKSIGINFO, tid, ctypes.addressof(arguments), ctypes.addressof(infos))
    pending = 0
    for index in range(count):
        pending |= 1 << infos[index * (_SIGINFO_BYTES // 4)] - 1
    return pending


_PEEK_SHARED = 1  # PTRACE_PEEKSIGINFO_SHARED
_CHILD_INFO = struct.Struct("=3i4xi")  # siginfo_t of SIGCHLD: si_signo si_errno si_code si_pid


def read_pending_children(tid: int) -> set[int]:
    """The children of whose end the process of a stopped thread has not been told yet: SIGCHLD waits.

    Their numbers are those that the process knows them by.
    """
    infos = ctypes.create_string_buffer(_SIGINFO_BYTES * _MOST_PEEKED)
    arguments = _PeekArguments(0, _PEEK_SHARED, _MOST_PEEKED)
    count = _ptrace(_Request.PEEKSIGINFO, tid, ctypes.addressof(arguments), ctypes.addressof(infos))
    found = (_CHILD_INFO.unpack_from(infos, index * _SIGINFO_BYTES) for index in range(count))
    return {child for number, _, _, child in found if number == signal.SIGCHLD}


_RSEQ_CONFIGURATION = struct.Struct("=QIIII")  # struct ptrace_rseq_configuration
_DISPATCH_CONFIG = struct.Struct("=4Q")  # struct ptrace_sud_config


def read_rseq_address(tid: int) -> int:
    """Where a stopped thread has its ``struct rseq`` (``<linux/rseq.h>``); 0 for nowhere.

    Raises:
        OSError: EIO where the kernel has none (before Linux 5.13).
    """
    buffer = ctypes.create_string_buffer(_RSEQ_CONFIGURATION.size)
    _ptrace(_Request.GET_RSEQ_CONFIGURATION, tid, _RSEQ_CONFIGURATION.size, ctypes.addressof(buffer))
    address: int = _RSEQ_CONFIGURATION.unpack(buffer)[0]
    return address


def get_call_dispatch(tid: int) -> bytes:
    """How a stopped thread has its system calls sent back to it, prctl(2) PR_SET_SYSCALL_USER_DISPATCH.

    Raises:
        OSError: EIO where the kernel does not tell (before Linux 6.4).
    """
    buffer = ctypes.create_string_buffer(_DISPATCH_CONFIG.size)
    _ptrace(_Request.GET_SYSCALL_USER_DISPATCH_CONFIG, tid, _DISPATCH_CONFIG.size, ctypes.addressof(buffer))
    return buffer.raw


def set_call_dispatch(tid: int, config: bytes) -> None:
    """Put back what :func:`get_call_dispatch` returned; all zeros turn it off."""
    buffer = ctypes.create_string_buffer(config, _DISPATCH_CONFIG.size)
    _ptrace(_Request.SET_SYSCALL_USER_DISPATCH_CONFIG, tid, _DISPATCH_CONFIG.size, ctypes.addressof(buffer))


def prepare_to_wait() -> None:
    """Once for each thread that waits: SIGCHLD is kept for :func:`wait` to take."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})


def wait(tid: int, deadline: float) -> WaitStatus:
    """Wait until a tracee stops or ends.

    Args:
        deadline: by ``time.monotonic()``.
    Raises:
        TimeoutError: it did neither by then.
        ChildProcessError: it is no tracee of ours.
    """
    while True:
        found, status = os.waitpid(tid, WAIT_ALL | os.WNOHANG)
        if found:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"thread {tid} does not stop")
        signal.sigtimedwait({signal.SIGCHLD}, left)
    if os.WIFSTOPPED(status):
        number = os.WSTOPSIG(status)
        return WaitStatus(True, number, Event.CALL if number == _CALL_STOP else status >> 16)
    return WaitStatus(False, 0, 0)
