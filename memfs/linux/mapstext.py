"""What the text of ``/proc/PID/maps`` takes to answer what PROCMAP_QUERY answers, before Linux 6.11.

The kernel writes all of the text whatever part of it is wanted; only what is wanted is parsed. Values, but
for :func:`with_exact_path`, which asks the kernel for a path that the text does not tell.
"""

import contextlib
import os

import attrs

from memfs.linux.maps import Mapping
from memfs.linux.span import Span


def lines_over(text: bytes, span: Span) -> bytes:
    """The lines of a maps text whose VMAs meet *span*: a binary search, since they are in order."""
    first = _find_line(text, span.start + 1, of_end=True)
    return text[first : max(first, _find_line(text, span.end, of_end=False))]


def _find_line(text: bytes, address: int, *, of_end: bool) -> int:
    """Where in *text* the first line begins whose VMA starts, or ends, at *address* or above."""
    low, high = 0, len(text)
    while low < high:
        begin = text.rfind(b"\n", low, (low + high) // 2) + 1 or low
        start, _, rest = text[begin : begin + _BOUNDS_BYTES].partition(b"-")
        if int(rest.partition(b" ")[0] if of_end else start, 16) >= address:
            high = begin
        else:
            low = text.find(b"\n", begin) + 1 or len(text)
    return low


_BOUNDS_BYTES = 2 * 16 + 2
"""Two addresses, and what parts them from each other and from the rest."""


def with_exact_path(pid: int, mapping: Mapping) -> Mapping:
    """*mapping* of process *pid*, parsed from text, with the path that it has.

    The text shows a newline as ``\\012``, and those four bytes too, which stand for a newline in *mapping*.
    The link in map_files has the path as it is (``proc_pid_readlink`` of fs/proc/base.c), and takes no more
    to read than maps does. The pid may be another program's now: only a path that would be shown so counts.
    """
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/{pid}/map_files/{mapping.span}".encode())
        if path.replace(b"\\012", b"\n") == mapping.path:
            return attrs.evolve(mapping, path=path)
    return mapping
