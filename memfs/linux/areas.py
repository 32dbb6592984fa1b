"""Where a process has its code, its arguments and the rest that prctl(2) PR_SET_MM sets, as one value."""

import struct

import attrs

from memfs.linux.procfs import read_file
from memfs.linux.span import Span

PR_SET_MM = 35  # <linux/prctl.h>
PR_SET_MM_MAP = 14
"""Sets all at once (Linux 3.18); without a capability, if the kernel has CONFIG_CHECKPOINT_RESTORE."""

_STRUCT = struct.Struct("=12QII")
"""struct prctl_mm_map: the addresses, auxv, auxv_size, exe_fd."""
_NO_FILE = 0xFFFF_FFFF
_FIRST_FIELD = 3  # of those behind the name, proc_pid_stat(5)


@attrs.frozen
class Areas:
    """The addresses that ``struct mm_struct`` keeps.

    Attributes:
        heap_start: where brk(2) begins; where it ends, no file tells.
    """

    code: Span
    data: Span
    heap_start: int
    stack_start: int
    arguments: Span
    environment: Span

    def pack(self, heap_end: int) -> bytes:
        """``struct prctl_mm_map``; auxv and the executable stay what they are."""
        return _STRUCT.pack(
            *(self.code.start, self.code.end, self.data.start, self.data.end),
            *(self.heap_start, heap_end, self.stack_start),
            *(self.arguments.start, self.arguments.end, self.environment.start, self.environment.end),
            *(0, 0, _NO_FILE),
        )


MAP_BYTES = _STRUCT.size


def read_areas(pid: int) -> Areas:
    """The areas of process *pid*, which we may trace.

    Raises:
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    fields = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()

    def field(number: int) -> int:
        return int(fields[number - _FIRST_FIELD])

    return Areas(
        code=Span(field(26), field(27)),
        data=Span(field(45), field(46)),
        heap_start=field(47),
        stack_start=field(28),
        arguments=Span(field(48), field(49)),
        environment=Span(field(50), field(51)),
    )
