"""Extended attributes of the files of VMAs: those of a whole process from one look at it, kept for a moment.

The kernel tells ``rss``, ``swap`` and ``flags`` of all VMAs or of none, and walks all page tables for it. And
getfattr(1) asks twice for each of ten attributes of a file: 40,000 questions about a process of 2,000 VMAs.
"""

from collections.abc import Callable
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.errors import NoSuchEntry
from memfs.linux.maps import Mapping, parse_maps
from memfs.linux.smaps import MemoryUse
from memfs.target.kept import Kept
from memfs.target.space import Space
from memfs.tree.names import XATTR_PREFIX
from memfs.tree.nodes import Node, Owner, VmaNode

KEPT_S = 0.5
"""For how long the attributes may be believed at least: as long as the kernel believes a name."""

_NAMES = b"start", b"end", b"perms", b"offset", b"device", b"inode", b"path", b"rss", b"swap", b"flags"
NAMES = tuple(XATTR_PREFIX + name for name in _NAMES)
USE_NAMES = frozenset(NAMES[-3:])
"""Those that only smaps tells."""


def attributes_of(mapping: Mapping, use: MemoryUse | None) -> dict[bytes, bytes]:
    """The attributes of the file of *mapping*, by name; those of USE_NAMES only where *use* is known."""
    values = [
        b"%012x" % mapping.span.start,
        b"%012x" % mapping.span.end,
        str(mapping.access).encode(),
        b"%08x" % mapping.offset,
        b"%02x:%02x" % mapping.device,
        b"%d" % mapping.inode,
        mapping.path,
    ]
    if use is not None:
        values += [b"%d" % use.resident_bytes, b"%d" % use.swapped_bytes, b" ".join(sorted(use.flags))]
    return dict(zip(NAMES, values, strict=False))


@attrs.frozen(eq=False)
class _Seen:
    """The VMAs of a process at one moment, by their start addresses."""

    mappings: ReadOnlyDict[int, Mapping]
    uses: ReadOnlyDict[int, MemoryUse]


class SeenVmas:
    """What was seen of the VMAs of processes and snapshots a moment ago."""

    def __init__(self) -> None:
        self._seen: Kept[Owner, _Seen] = Kept(least_s=KEPT_S)
        self._last: tuple[int, VmaNode, _Seen, dict[bytes, bytes]] | None = None

    def use_of(self, node: VmaNode, space: Space) -> MemoryUse | None:
        """What smaps says of the VMA of *node*, which *space* has now; this may read all of it."""

        def look() -> _Seen:
            mappings = parse_maps(space.maps_text())
            return _Seen({mapping.span.start: mapping for mapping in mappings}, space.uses())

        def suits(seen: _Seen) -> bool:
            return node.start in seen.uses

        return self._seen.get(node.owner, look, suits).uses.get(node.start)

    def value(self, number: int, name: bytes, node_of: Callable[[int], Node]) -> bytes | None:
        """The attribute *name* of the inode *number*, at once; None where it has to be looked for.

        *node_of* gives the node of a number.
        """
        last = self._last  # all of it at once: several threads may ask
        if last is None or last[0] != number or self._seen.peek(last[1].owner) is not last[2]:
            last = self._last = self._look_up(number, node_of)
        return last[3].get(name) if last is not None else None

    def _look_up(
        self, number: int, node_of: Callable[[int], Node]
    ) -> tuple[int, VmaNode, _Seen, dict[bytes, bytes]] | None:
        try:
            node = node_of(number)
        except NoSuchEntry:
            return None
        seen = self._seen.peek(node.owner) if isinstance(node, VmaNode) else None
        if seen is None or not isinstance(node, VmaNode):
            return None
        mapping = seen.mappings.get(node.start)
        # The text of maps does not tell a newline from the four characters by which it shows one.
        if mapping is None or mapping.span.end != node.end or b"\n" in mapping.path:
            return None
        return number, node, seen, attributes_of(mapping, seen.uses.get(node.start))
