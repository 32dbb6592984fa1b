"""System V segments that a snapshot shows: read by descriptors, for a segment counts those attached to it.

PostgreSQL does not start as long as a process is attached to what an earlier server has left (shmctl(2),
``shm_nattch``). The copy of one would be.
"""

import contextlib
import os
from collections.abc import Iterable

import attrs

from memfs.errors import MemfsError
from memfs.linux.span import PAGE_BYTES
from memfs.snapshot.values import Fate, Part
from memfs.target.process import AddressSpace

_MOST_HELD = 64
_PATH = b"/SYSV"


@attrs.frozen
class Segments:
    """What of them the copy can let go of.

    Attributes:
        attached_at: where they are attached, as shmdt(2) wants to know it.
        held: descriptors of those that are not copied, by the start of each VMA that shows one.
    """

    attached_at: tuple[int, ...]
    held: dict[int, int]


def hold_segments(parts: Iterable[Part], space: AddressSpace) -> Segments:
    """Open what must be read of the segments that *space*, a copy, has attached.

    One that cannot be opened stays attached: it is read through the copy. So does one whose last page is
    none of the file's, since what is behind its end is in memory only.
    """
    by_address: dict[int, list[Part]] = {}
    for part in parts:
        mapping = part.region.mapping
        if mapping.shared and mapping.path.startswith(_PATH) and part.fate in (Fate.COPIED, Fate.LIVE):
            by_address.setdefault(mapping.span.start - mapping.offset, []).append(part)
    held: dict[int, int] = {}
    attached_at = []
    for address, pieces in by_address.items():
        live = [part for part in pieces if part.fate is Fate.LIVE]
        if len(held) + len(live) > _MOST_HELD:
            continue
        opened = _open_all(live, space)
        if len(opened) == len(live):
            held |= opened
            attached_at.append(address)
    return Segments(tuple(attached_at), held)


def _open_all(pieces: list[Part], space: AddressSpace) -> dict[int, int]:
    """Descriptors by address; none at all where one of them cannot be had."""
    opened: dict[int, int] = {}
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, MemfsError):
        for part in pieces:
            fd = space.open_backing(part.region.mapping)
            stack.callback(os.close, fd)
            if os.fstat(fd).st_size % PAGE_BYTES:
                return {}
            opened[part.region.span.start] = fd
        stack.pop_all()
        return opened
    return {}
