"""Whether a process still runs the program whose address space was opened, where no watch tells.

A process can set the addresses that ``/proc/PID/stat`` tells (PR_SET_MM, prctl(2)), and move its own vDSO.
But it cannot know where the kernel will map that of a set-uid program, whose addresses are always random.
"""

import re

from memfs.target.space import Space

# Where nothing is mapped, the kernel alone has written a name in brackets. The vDSO of a program of 64 bits
# may lie above its stack, or between its libraries (on Linux 6.18), as that of 32 bits does.
_MARK = re.compile(
    rb"^[0-9a-f]+-([0-9a-f]+) [r-][w-][x-]p [0-9a-f]+ 00:00 0 +(\[(?:vdso|stack)\])$", re.MULTILINE
)


def marks_of(space: Space) -> list[tuple[bytes, bytes]]:
    """Where the stack and the vDSO end that exec has mapped into *space*, and which is which.

    Raises:
        TargetExited, TargetReplaced: the mm is gone.
    """
    return _MARK.findall(space.maps_text())
