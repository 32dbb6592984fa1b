"""process_madvise(2): what a process is advised to do with its memory, by someone else. Linux 5.10.

Only advice that changes no byte can be given so. The caller needs ptrace access (PTRACE_MODE_READ) and
CAP_SYS_NICE in the first user namespace (``SYSCALL_DEFINE5(process_madvise)`` of mm/madvise.c, the same from
5.10 to 6.18).
"""

import ctypes
import enum
import os
import struct
from collections.abc import Sequence

from memfs.linux.span import Span

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long] * 6
_PROCESS_MADVISE = 440  # the same on every architecture
_MOST_SPANS = 1024  # UIO_MAXIOV, <linux/uio.h>


class PagingAdvice(enum.IntEnum):
    """``<asm-generic/mman-common.h>``."""

    WILLNEED = 3
    """Swap it in; of a mapped file, read it ahead."""
    PAGEOUT = 21
    """Reclaim it now. The kernel leaves alone what other processes map too."""


def advise_process(pidfd: int, advice: PagingAdvice, spans: Sequence[Span]) -> None:
    """Give *advice* about *spans*, which are page-aligned. Without any it is asked only whether that may be.

    Raises:
        PermissionError: CAP_SYS_NICE or ptrace access is missing.
        OSError: ESRCH, the process has ended; EINVAL, the kernel does not know this advice, or a span lies in
            locked memory; ENOMEM, a part of it is not mapped; ENOSYS. Some spans may have been advised.
    """
    for at in range(0, len(spans) or 1, _MOST_SPANS):
        some = spans[at : at + _MOST_SPANS]
        words = [word for span in some for word in (span.start, span.size)]
        vector = ctypes.create_string_buffer(struct.pack(f"={len(words)}Q", *words))
        done: int = _libc.syscall(
            _PROCESS_MADVISE, pidfd, ctypes.addressof(vector), len(some), int(advice), 0
        )
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"process_madvise: {os.strerror(number)}")
