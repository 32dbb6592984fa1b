"""``/proc/PID/smaps`` as values: how much of each VMA is resident or swapped, and the VMA's flags.

proc_pid_smaps(5) describes the text. This module is pure: the caller reads the file.
"""

import re
from collections.abc import Iterator

import attrs


@attrs.frozen
class MemoryUse:
    """One VMA of ``/proc/PID/smaps``: resident and swapped bytes, and VmFlags.

    Attributes:
        flags: two letters each (``rd``, ``io``, ``um`` …), listed in proc_pid_smaps(5).
    """

    start: int
    resident_bytes: int
    swapped_bytes: int
    flags: frozenset[bytes]


_SMAPS_ENTRY = re.compile(
    rb"^([0-9a-f]+)-[0-9a-f]+ [r-][w-][x-][sp] .*\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"Rss: +(\d+) kB\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"Swap: +(\d+) kB\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"VmFlags:(.*)\n",
    re.MULTILINE,
)


def parse_smaps(text: bytes) -> Iterator[MemoryUse]:
    """Parse a smaps text; yields its VMAs in order of address."""
    # Of thousands of VMAs few differ in flags: one set for all that are alike, since each takes 700 bytes.
    sets: dict[bytes, frozenset[bytes]] = {}
    for entry in _SMAPS_ENTRY.finditer(text):
        start, resident, swapped, letters = entry.groups()
        flags = sets.get(letters)
        if flags is None:
            flags = sets[letters] = frozenset(letters.split())
        yield MemoryUse(int(start, 16), 1024 * int(resident), 1024 * int(swapped), flags)
