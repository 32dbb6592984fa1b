"""Whether a process still runs the program whose address space was opened, where no watch tells.

A process can set the addresses that ``/proc/PID/stat`` tells (PR_SET_MM, prctl(2)), and move its own vDSO.
But it cannot know where the kernel will map that of a set-uid program, whose addresses are always random.
"""

from memfs.linux.procfs import Mapping
from memfs.linux.span import Span
from memfs.target.layout import USER_END
from memfs.target.space import Space

_END_OF_32_BITS = 1 << 32
_NAMED_BY_KERNEL = (b"[vdso]", b"[vvar", b"[stack]")


def marks_of(space: Space) -> list[Mapping]:
    """What exec has mapped into *space* at addresses that it chose.

    A 64-bit program has it above its stack. A program of 32 bits has its vDSO between its libraries.
    """
    stack = space.stat.stack_start
    if stack >= _END_OF_32_BITS:
        above = space.mappings_over(Span(stack, USER_END), paths=True)
        return [mapping for mapping in above if mapping.span.start > stack]
    low = space.mappings_over(Span(0, _END_OF_32_BITS), paths=True)
    return [found for found in low if not found.backed and found.path.startswith(_NAMED_BY_KERNEL)]
