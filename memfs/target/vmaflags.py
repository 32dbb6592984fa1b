"""Resident bytes and flags of the VMAs of a process, which only smaps tells; and a cache of them."""

from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.maps import parse_maps
from memfs.linux.smaps import MemoryUse, parse_smaps
from memfs.linux.span import Span
from memfs.target.identity import Identity, read_timed
from memfs.target.kept import Kept


@attrs.frozen
class VmaFlags:
    """The part of smaps that memfs uses.

    Attributes:
        uses: resident bytes, swapped bytes and flags of each VMA, by its start address.
        fetched: VMAs whose missing pages a userfaultfd supplies. A missing page may get any content, so it
            is no hole.
        longest_read_us: duration of the longest read(2) of smaps. A thread that wanted to map or
            unmap memory may have waited that long.
    """

    uses: ReadOnlyDict[int, MemoryUse]
    fetched: tuple[Span, ...]
    longest_read_us: int


class VmaFlagsCache:
    """A cache of what smaps says of processes.

    The kernel walks every page table of the process to print smaps: 13 ms for each GiB of small pages.
    """

    def __init__(self) -> None:
        self._kept: Kept[Identity, VmaFlags] = Kept()

    def get(self, identity: Identity, *, must_know: tuple[int, ...] = ()) -> VmaFlags:
        """Return the flags of the VMAs; read again if they are old or lack an address of *must_know*."""
        return self._kept.get(
            identity,
            lambda: read_flags(identity),
            lambda flags: all(map(flags.uses.__contains__, must_know)),
        )

    def pin(self, identity: Identity) -> VmaFlags:
        """Read the flags now and keep them: the process is about to be stopped, when nothing may be slow."""
        flags = read_flags(identity)
        self._kept.pin(identity, flags)
        return flags


def read_flags(identity: Identity) -> VmaFlags:
    text, longest_ns = read_timed(identity.pid, "smaps")
    uses = {use.start: use for use in parse_smaps(text)}
    fetching = [use.start for use in uses.values() if b"um" in use.flags]
    spans = {}
    if fetching:
        spans = {m.span.start: m.span for m in parse_maps(text)}
    return VmaFlags(uses, tuple(spans[start] for start in fetching), longest_ns // 1000)
