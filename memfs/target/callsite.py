"""Where a process has an instruction that enters the kernel: what can run a system call in it.

What is found is a hint and no more, since the process may change its code at any moment: see
:mod:`memfs.target.injection`.
"""

import contextlib
import errno
from collections.abc import Iterable, Iterator

from memfs.errors import CannotFreeze
from memfs.linux.arch import Architecture
from memfs.linux.maps import Access, Mapping
from memfs.linux.registers import Registers
from memfs.linux.span import Span
from memfs.linux.syscalls import peek

_PIECE_BYTES = 1 << 18
_MOST_BYTES = 64 << 20
_VDSO = b"[vdso]"


def find_call_address(
    pid: int,
    architecture: Architecture,
    registers: Iterable[Registers],
    mappings: Iterable[Mapping],
) -> int:
    """The address of a call instruction of *pid*, all of whose threads stand still.

    It is one of *architecture*, the mode of the thread that is to run it. A thread that waits in a system
    call has entered it by one. Else there is one in the vDSO; a process without it, under valgrind say, has
    one somewhere in its code. Reading that may wait without end.

    Raises:
        CannotFreeze: it has none.
    """
    wanted = architecture.call_instruction
    for address in _entered_by(architecture, registers):
        with contextlib.suppress(OSError):
            if peek(pid, address, len(wanted)) == wanted:
                return address
    left_bytes = _MOST_BYTES
    for span in _code(mappings, architecture.reach):
        for piece in _pieces(span, len(wanted), left_bytes):
            with contextlib.suppress(OSError):
                at = peek(pid, piece.start, piece.size).find(wanted)
                if at >= 0:
                    return piece.start + at
        left_bytes -= min(left_bytes, span.size)
    raise CannotFreeze(
        f"process {pid} has no code with a system call in it",
        "mount with -o snapshot_fallback=copy",
        cause=errno.EOPNOTSUPP,
    )


def _entered_by(architecture: Architecture, registers: Iterable[Registers]) -> Iterator[int]:
    for found in registers:
        if architecture.is_mode_of(found) and architecture.call_number(found) >= 0:
            yield architecture.program_counter(found) - len(architecture.call_instruction)


def _code(mappings: Iterable[Mapping], reach: int) -> Iterator[Span]:
    """What can be executed, below the address *reach*: the vDSO first."""
    wanted = Access.READ | Access.EXEC
    found = [m for m in mappings if m.access & wanted == wanted and m.span.end <= reach]
    found.sort(key=lambda mapping: bool(mapping.inode) or mapping.path != _VDSO)
    return (mapping.span for mapping in found)


def _pieces(span: Span, overlap: int, most_bytes: int) -> Iterator[Span]:
    """*span* in pieces that overlap by an instruction."""
    end = min(span.end, span.start + most_bytes)
    for start in range(span.start, end, _PIECE_BYTES):
        yield Span(start, min(start + _PIECE_BYTES + overlap, end))
