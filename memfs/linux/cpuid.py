"""The instruction cpuid of x86, which tells what a processor has; Python has no function for it.

Linux offers it as a file only where a module is loaded, and to root. So a few bytes of code run it.
"""

import ctypes
import functools
import mmap
import os
from collections.abc import Callable

_CODE = bytes.fromhex(
    "53 4989d0"  # push rbx; mov r8, rdx: cpuid writes to both
    "89f8 89f1 0fa2"  # mov eax, edi; mov ecx, esi; cpuid
    "418900 41895804 41894808 4189500c"  # mov [r8], eax; [r8+4], ebx; [r8+8], ecx; [r8+12], edx
    "5b c3"  # pop rbx; ret
)
_Call = Callable[[int, int, int], None]


@functools.cache
def _code() -> tuple[_Call, mmap.mmap] | None:
    """The function, and the memory that it lies in; None where none may be made executable (SELinux)."""
    if os.uname().machine != "x86_64":
        return None
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, protection)
    except OSError:
        return None
    memory.write(_CODE)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    return kind(ctypes.addressof(ctypes.c_char.from_buffer(memory))), memory


def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int] | None:
    """The registers eax, ebx, ecx and edx after it; None where it cannot be run."""
    found = _code()
    if found is None:
        return None
    registers = (ctypes.c_uint32 * 4)()
    found[0](leaf, subleaf, ctypes.addressof(registers))
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx
