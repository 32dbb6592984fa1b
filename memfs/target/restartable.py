"""Restartable sequences, rseq(2): where a thread goes that was stopped in the middle of one.

The kernel sends it to where the sequence begins anew when it goes on. But it would look at the thread when
that runs a call for us, elsewhere, and forget the sequence, whose rest would then run as if nothing had been.
"""

import struct

from memfs.linux import ptrace
from memfs.linux.arch import Architecture
from memfs.linux.registers import Registers
from memfs.linux.span import Span
from memfs.linux.syscalls import peek

_CS_OFFSET = 8  # in struct rseq (<linux/rseq.h>), the address of a struct rseq_cs
_CRITICAL_SECTION = struct.Struct(
    "=IIQQQ"
)  # struct rseq_cs: version flags start_ip post_commit_offset abort_ip


def read_area(tid: int) -> int:
    """Where a stopped thread of ours has its ``struct rseq``; 0 where it has none, or no kernel tells."""
    try:
        return ptrace.read_rseq_address(tid)
    except OSError:
        return 0


def leave(pid: int, area: int, registers: Registers, architecture: Architecture) -> None:
    """Set *registers* of a thread of *pid*, which has its area there, to the way out of a sequence.

    Reading the area may wait without end.
    """
    if not area:
        return
    try:
        at = int.from_bytes(peek(pid, area + _CS_OFFSET, 8), "little")
        if at:
            _, _, start, length, abort = _CRITICAL_SECTION.unpack(peek(pid, at, _CRITICAL_SECTION.size))
            if architecture.program_counter(registers) in Span(start, start + length):
                architecture.jump(registers, abort)
    except (OSError, struct.error):
        return  # its area is not mapped: it would be killed
