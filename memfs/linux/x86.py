"""x86-64, and i386 programs on it: registers, system calls, core files.

A thread of either mode is seen and set by ptrace(2) through the 64-bit layout (PTRACE_GETREGS of a 64-bit
tracer, ``arch/x86/kernel/ptrace.c``). One in 32-bit mode enters the kernel by ``int $0x80``, with the numbers
of i386, as the vDSO of its programs does.
"""

import struct
from collections.abc import Callable, Sequence
from collections.abc import Mapping as ReadOnlyDict

from memfs.linux.arch import Architecture, Call, CoreFormat, Machine, RegisterSet
from memfs.linux.cpuid import cpuid
from memfs.linux.registers import Registers, X86Registers

_WORD = (1 << 64) - 1
_HALF_WORD = (1 << 32) - 1


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _is_in_segment(selector: int) -> Callable[[Registers], bool]:
    return lambda registers: bool(registers.cs == selector)


def _prepare_with(names: Sequence[str], mask: int) -> Callable[[Registers, int, int, Sequence[int]], None]:
    def prepare(registers: Registers, at: int, number: int, arguments: Sequence[int]) -> None:
        registers.rip = at
        registers.rax = number
        registers.orig_rax = _WORD
        for name, value in zip(names, arguments, strict=False):
            setattr(registers, name, value & mask)

    return prepare


def _arguments_in(names: Sequence[str]) -> Callable[[Registers], tuple[int, ...]]:
    return lambda registers: tuple(getattr(registers, name) for name in names)


def _cancel(registers: Registers) -> None:
    registers.orig_rax = _WORD  # syscall_trace_enter, arch/x86 and kernel/entry/common.c: no such call


def _result(registers: Registers) -> int:
    return _signed(registers.rax)


def _call_number(registers: Registers) -> int:
    return _signed(registers.orig_rax)


def _rewind(registers: Registers) -> None:
    registers.rax = registers.orig_rax
    registers.rip -= 2  # as long as each instruction is that enters the kernel


def _program_counter(registers: Registers) -> int:
    return int(registers.rip)


def _jump(registers: Registers, to: int) -> None:
    registers.rip = to


_ARGUMENTS_64 = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_ARGUMENTS_32 = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")

X86_64 = Architecture(
    machine=0xC000_003E,  # AUDIT_ARCH_X86_64
    reach=1 << 56,
    call_instruction=b"\x0f\x05",  # syscall
    # arch/x86/entry/syscalls/syscall_64.tbl
    numbers={
        Call.MMAP: 9, Call.MADVISE: 28, Call.CLONE: 56, Call.WAIT4: 61, Call.SHMDT: 67, Call.CHDIR: 80,
        Call.SETSID: 112, Call.PRCTL: 157, Call.USERFAULTFD: 323, Call.CLOSE_RANGE: 436,
    },
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
    multiplexed={},
    is_mode_of=_is_in_segment(0x33),  # __USER_CS, arch/x86/include/asm/segment.h
    prepare=_prepare_with(_ARGUMENTS_64, _WORD),
    arguments=_arguments_in(_ARGUMENTS_64),
    cancel=_cancel,
    result=_result,
    call_number=_call_number,
    rewind=_rewind,
    program_counter=_program_counter,
    jump=_jump,
)  # fmt: skip

I386 = Architecture(
    machine=0x4000_0003,  # AUDIT_ARCH_I386
    reach=1 << 32,
    call_instruction=b"\xcd\x80",  # int $0x80
    # arch/x86/entry/syscalls/syscall_32.tbl
    numbers={
        Call.CHDIR: 12, Call.SETSID: 66, Call.WAIT4: 114, Call.CLONE: 120, Call.PRCTL: 172, Call.MMAP: 192,
        Call.MADVISE: 219, Call.USERFAULTFD: 374, Call.SHMDT: 398, Call.CLOSE_RANGE: 436,
    },
    resumable=frozenset(
        (
            3, 4, 145, 146, 180, 181, 333, 334, 378, 379,  # read, write, and their vectors and offsets
            337, 345, 364, 369, 370, 371, 372, 417,  # accept, send and receive, where a socket has a timeout
            420,  # semtimedop_time64
            177, 421,  # rt_sigtimedwait, rt_sigtimedwait_time64
            247, 385, 416, 426,  # io_getevents, io_pgetevents, io_pgetevents_time64, io_uring_enter
            256, 319, 441,  # epoll_wait, epoll_pwait, epoll_pwait2
        )
    ),
    multiplexed={
        102: frozenset((5, 9, 10, 11, 12, 16, 17, 18, 19, 20)),  # socketcall: accept, send and receive
        117: frozenset((1, 4)),  # ipc: semop, semtimedop
    },
    is_mode_of=_is_in_segment(0x23),  # __USER32_CS
    prepare=_prepare_with(_ARGUMENTS_32, _HALF_WORD),
    arguments=_arguments_in(_ARGUMENTS_32),
    cancel=_cancel,
    result=_result,
    call_number=_call_number,
    rewind=_rewind,
    program_counter=_program_counter,
    jump=_jump,
)  # fmt: skip


# Core files. Which notes there are, and in which order: x86_64_regsets and x86_32_regsets of
# arch/x86/kernel/ptrace.c; NT_PRFPREG alone is "CORE" (fill_thread_core_info, fs/binfmt_elf.c).

_PRFPREG = 2
_IOPERM = 0x201
_XSTATE = 0x202
_SHSTK = 0x204
_XSAVE_LAYOUT = 0x205
_TLS = 0x200
_PRXFPREG = 0x46E6_2B7F

_OTHER = b"LINUX"

_FEATURES_AT = 464
"""Where an NT_X86_XSTATE has the state components that it may hold, as in xcr0 (``<asm/user.h>``)."""
_COMPONENT = struct.Struct("<4I")  # struct x86_xfeat_component (<asm/elf.h>): type size offset flags
_FIRST_EXTENDED = 2  # after the x87 and SSE states, whose place never differs
_XSAVE_LEAF = 0xD


def _xsave_layout(sets: ReadOnlyDict[int, bytes]) -> tuple[int, bytes, bytes] | None:
    """Where in an NT_X86_XSTATE each component lies, which depends on the processor (Linux 6.12)."""
    state = sets.get(_XSTATE, b"")
    if len(state) < _FEATURES_AT + 8:
        return None
    features = int.from_bytes(state[_FEATURES_AT : _FEATURES_AT + 8], "little")
    components = []
    for number in range(_FIRST_EXTENDED, features.bit_length()):
        if features >> number & 1:
            found = cpuid(_XSAVE_LEAF, number)
            if found is None:
                return None
            size, offset, *_ = found
            components.append(_COMPONENT.pack(number, size, offset, 0))
    return _XSAVE_LAYOUT, _OTHER, b"".join(components)


def _general_64(registers: bytes) -> bytes:
    return registers


# struct user_regs_struct32 (arch/x86/include/asm/user32.h)
_GENERAL_32 = (
    "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rax", "ds", "es", "fs", "gs", "orig_rax", "rip", "cs",
    "eflags", "rsp", "ss",
)  # fmt: skip


def _general_32(registers: bytes) -> bytes:
    found = X86Registers.from_buffer_copy(registers)
    return struct.pack("<17I", *(getattr(found, name) & _HALF_WORD for name in _GENERAL_32))


FORMAT_64 = CoreFormat(
    word_bytes=8,
    machine=62,  # EM_X86_64
    id_bytes=4,
    general=_general_64,
    sets=(
        RegisterSet(_PRFPREG, b"CORE", 512),
        RegisterSet(_IOPERM, _OTHER, rare=True),
        RegisterSet(_XSTATE, _OTHER),
        RegisterSet(_SHSTK, _OTHER, rare=True),
    ),
    floating=_PRFPREG,
    extra=_xsave_layout,
)

FORMAT_32 = CoreFormat(
    word_bytes=4,
    machine=3,  # EM_386
    id_bytes=2,
    general=_general_32,
    sets=(
        RegisterSet(_PRFPREG, b"CORE", 108),
        RegisterSet(_PRXFPREG, _OTHER, 512),
        RegisterSet(_XSTATE, _OTHER),
        RegisterSet(_TLS, _OTHER),
        RegisterSet(_IOPERM, _OTHER, rare=True),
    ),
    floating=_PRFPREG,
    extra=_xsave_layout,
)


def _format_of(auxv: bytes, registers: Registers, end: int) -> CoreFormat | None:
    """By the words of the auxiliary vector, and that all can be told in so many bits.

    The type of an entry has few bits; two words of 32 bits make a large one of 64.
    """
    types = (word for word, _ in struct.iter_unpack("<QQ", auxv[: len(auxv) // 16 * 16]))
    if end > _HALF_WORD or all(word <= _HALF_WORD for word in types):
        return FORMAT_64
    # A program of the x32 ABI has words of 32 bits, and the registers of x86-64.
    return None if X86_64.is_mode_of(registers) else FORMAT_32


X86 = Machine(registers=X86Registers, architectures=(X86_64, I386), format_of=_format_of)
