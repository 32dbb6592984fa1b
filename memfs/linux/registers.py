"""The general registers of a stopped thread, as ptrace(2) moves them: their layout, and nothing more."""

import ctypes
from typing import ClassVar, TypeAlias


class X86Registers(ctypes.Structure):
    """``struct user_regs_struct`` (``<sys/user.h>``), as PTRACE_GETREGS moves it, in 32-bit mode too."""

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
