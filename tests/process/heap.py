"""A program with a heap that grows by brk(2): blocks of 512 KiB with the pattern of seed 1 by address.

    heap.py

It prints one JSON line ({"block": [START, END]}) and obeys ``grow``, which answers the next block.
"""

import ctypes
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.lines import Answer, commands, obey, say
from support.pattern import fill

_BLOCK_BYTES = 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p
_libc.sbrk.argtypes = (ctypes.c_ssize_t,)


class Heap:
    """The blocks."""

    def do_grow(self) -> Answer:
        """One block more."""
        start = int(_libc.sbrk(_BLOCK_BYTES))
        kernel.poke(start, fill(start, _BLOCK_BYTES, 1))
        return {"block": [start, start + _BLOCK_BYTES]}


def main() -> None:
    """Grow once, say so, obey until stdin ends."""
    kernel.die_with_parent(os.getppid())
    heap = Heap()
    say(heap.do_grow())
    for line in commands():
        say(obey(heap, line))


if __name__ == "__main__":
    main()
