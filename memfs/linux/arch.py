"""What differs from one processor to the next when a thread is made to run a system call: one table each.

Everything else in memfs that touches registers goes through an :class:`Architecture`. memfs knows
x86-64; another one needs another table here, and nothing more.
"""

import ctypes
import enum
import os
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import attrs

_WORD = (1 << 64) - 1
_EINTR = -4


class Call(enum.Enum):
    """The system calls that a stopped thread is made to run."""

    CLONE = enum.auto()
    CLOSE_RANGE = enum.auto()
    PRCTL = enum.auto()
    SETSID = enum.auto()
    WAIT4 = enum.auto()


class X86Registers(ctypes.Structure):
    """``struct user_regs_struct`` (``<sys/user.h>``), as NT_PRSTATUS moves it."""

    _fields_: ClassVar[list[tuple[str, type]]] = [
        (name, ctypes.c_uint64)
        for name in (
            "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8",
            "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs",
            "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
        )
    ]  # fmt: skip


Registers: TypeAlias = X86Registers
"""Of the architectures that there are: a union, once there are more."""


@attrs.frozen
class Architecture:
    """One processor's table.

    Attributes:
        name: as uname(2) has it.
        machine: its AUDIT_ARCH_* (``<linux/audit.h>``): how its native system calls are entered.
        call_instruction: the bytes of the instruction that enters the kernel.
        numbers: of the system calls.
        resumable: numbers of the calls that fail with EINTR when a thread was stopped and no signal
            came (signal(7), "Interruption of system calls … by stop signals"), have done nothing by
            then, and so can be entered again. Others the kernel enters again by itself.
        registers: their layout.
        is_native: whether the registers are those of a thread in 64-bit mode.
        prepare: set the registers up for a call, given the address of a call instruction, the number
            and up to six arguments. The kernel must not take it for one that it should restart.
        arguments: the six that a call would have with these registers.
        cancel: turn a call whose entry the thread stands at into none; it returns ENOSYS.
        result: what a call returned, an errno as a negative number.
        call_number: of the call that the thread was in when it was stopped; -1 for none.
        rewind: back to the instruction by which the thread entered the call.
        program_counter, jump: where the thread is, and to set it elsewhere.
    """

    name: str
    machine: int
    call_instruction: bytes
    numbers: dict[Call, int]
    resumable: frozenset[int]
    registers: type[Registers]
    is_native: Callable[[Registers], bool]
    prepare: Callable[[Registers, int, int, Sequence[int]], None]
    arguments: Callable[[Registers], tuple[int, ...]]
    cancel: Callable[[Registers], None]
    result: Callable[[Registers], int]
    call_number: Callable[[Registers], int]
    rewind: Callable[[Registers], None]
    program_counter: Callable[[Registers], int]
    jump: Callable[[Registers, int], None]

    def was_cut_short(self, registers: Registers) -> bool:
        """Whether the thread is about to see EINTR from a call that can as well be entered again."""
        return self.result(registers) == _EINTR and self.call_number(registers) in self.resumable


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_X86_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_X86_USER_CS = 0x33  # __USER_CS; a 32-bit thread has 0x23


def _x86_is_native(registers: Registers) -> bool:
    return bool(registers.cs == _X86_USER_CS)


def _x86_prepare(registers: Registers, at: int, number: int, arguments: Sequence[int]) -> None:
    registers.rip = at
    registers.rax = number
    registers.orig_rax = _WORD
    for name, value in zip(_X86_ARGUMENTS, arguments, strict=False):
        setattr(registers, name, value & _WORD)


def _x86_arguments(registers: Registers) -> tuple[int, ...]:
    return tuple(getattr(registers, name) for name in _X86_ARGUMENTS)


def _x86_cancel(registers: Registers) -> None:
    registers.orig_rax = _WORD  # syscall_trace_enter, arch/x86 and kernel/entry/common.c: no such call


def _x86_result(registers: Registers) -> int:
    return _signed(registers.rax)


def _x86_call_number(registers: Registers) -> int:
    return _signed(registers.orig_rax)


def _x86_rewind(registers: Registers) -> None:
    registers.rax = registers.orig_rax
    registers.rip -= len(X86_64.call_instruction)


def _x86_program_counter(registers: Registers) -> int:
    return int(registers.rip)


def _x86_jump(registers: Registers, to: int) -> None:
    registers.rip = to


X86_64 = Architecture(
    name="x86_64",
    machine=0xC000_003E,  # AUDIT_ARCH_X86_64
    call_instruction=b"\x0f\x05",
    # arch/x86/entry/syscalls/syscall_64.tbl
    numbers={Call.CLONE: 56, Call.WAIT4: 61, Call.SETSID: 112, Call.PRCTL: 157, Call.CLOSE_RANGE: 436},
    resumable=frozenset(
        (
            0, 1, 17, 18, 19, 20, 295, 296, 327, 328,  # read, write, and their vectors and offsets
            43, 44, 45, 46, 47, 288, 299, 307,  # accept, send and receive, where a socket has a timeout
            65, 220,  # semop, semtimedop
            128,  # rt_sigtimedwait
            208, 333, 426,  # io_getevents, io_pgetevents, io_uring_enter
            232, 281, 441,  # epoll_wait, epoll_pwait, epoll_pwait2
        )
    ),
    registers=X86Registers,
    is_native=_x86_is_native,
    prepare=_x86_prepare,
    arguments=_x86_arguments,
    cancel=_x86_cancel,
    result=_x86_result,
    call_number=_x86_call_number,
    rewind=_x86_rewind,
    program_counter=_x86_program_counter,
    jump=_x86_jump,
)  # fmt: skip

_KNOWN = {table.name: table for table in (X86_64,)}


def this_architecture() -> Architecture | None:
    """The table of the machine that we run on; None where there is none yet."""
    return _KNOWN.get(os.uname().machine)
