"""Inode numbers, made so that they need no table of what the kernel remembers.

A number is a serial in the upper bits, and in the lower ones what it is of the process or snapshot that has
the serial: a fixed number for each fixed name, and the page at which a VMA begins. Serials are not used
twice while the mount lives, so no two things ever share a number, and a number that the kernel kept of
something that is gone leads nowhere. They are forgotten when what they stand for has ended.
"""

import threading
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from memfs.errors import NoSuchEntry
from memfs.linux.span import PAGE_BYTES
from memfs.snapshot.snapshot import SnapshotId
from memfs.tree.nodes import CommDir, Fixed, Name, Node, Owner, ProcessNode, SinceNode, VmaNode

ROOT_NUMBER = 1  # FUSE_ROOT_ID

_WITHIN_BITS = 37
_VMA_BIT = 1 << 36
_FAR_BIT = 1 << 35
"""Set for the few VMAs above 2**47, which x86-64 gives only to those who ask for them: their page number has
more bits than there is room for."""
_NEAR_BITS = 35
_SINCE_BIT = 1 << 34
_FIRST_PRUNE = 1024


_Key = Owner | bytes
"""What has a serial."""

_PAGES_BITS = 44
_EXTENT_BITS = 64
_EXTENT_MASK = (1 << _EXTENT_BITS) - 1
_LEAST_KEPT = 4096
_KEPT_UNLISTED = 1 << 16
"""As many VMAs as a process can have, unless vm.max_map_count is raised."""


class _Vmas:
    """The VMAs of one process that have numbers: of each its place, its extent, and its serial.

    The place is what its number has of where it begins, the extent all else: its length, and what there
    was no room for. Two of one place and other extents need serials of their own.

    A VMA that is asked for is put into the newer of two tables. When that is full, it becomes the older
    one, which is forgotten; so a VMA is forgotten when as many others as a table holds have been asked for
    since. What gets a number from then on gets it under a new serial.
    """

    def __init__(self, new_serial: Callable[[], int]) -> None:
        self._new_serial = new_serial
        self._limit = _KEPT_UNLISTED
        # Serial and extent by place, packed into an int: 60,000 tuples would take 8 MiB more.
        self._newer: dict[int, int | list[int]] = {}
        self._older: dict[int, int | list[int]] = {}
        self._serials: list[int] = []
        self._count = 0

    def expect(self, count: int) -> None:
        """The process has *count* VMAs now: a table must hold them all, or their numbers would change."""
        self._limit = max(_LEAST_KEPT, 2 * count)

    def find_extent(self, serial: int, place: int) -> int | None:
        """The extent of the VMA at *place* with that *serial*; None for one that is forgotten."""
        for table in (self._newer, self._older):
            for packed in _several(table.get(place)):
                if packed >> _EXTENT_BITS == serial:
                    return packed & _EXTENT_MASK
        return None

    def known_serial(self, place: int, extent: int) -> int | None:
        """The serial of a VMA that is in the newer table; None for any other. Needs no lock."""
        packed = self._newer.get(place)
        if isinstance(packed, int) and packed & _EXTENT_MASK == extent:
            return packed >> _EXTENT_BITS
        return None

    def add(self, place: int, extent: int) -> tuple[int, list[int]]:
        """The serial of a VMA, which is in the newer table from now on; and serials of no use any more."""
        both = [packed for table in (self._newer, self._older) for packed in _several(table.get(place))]
        found = next((packed for packed in both if packed & _EXTENT_MASK == extent), None)
        if found is None:
            taken = {packed >> _EXTENT_BITS for packed in both}
            serial = next((serial for serial in self._serials if serial not in taken), None)
            if serial is None:
                serial = self._new_serial()
                self._serials.append(serial)
            found = serial << _EXTENT_BITS | extent
        mine = _several(self._newer.get(place))
        if found in mine:
            return found >> _EXTENT_BITS, []
        unused = self._turn() if self._count >= self._limit else []
        mine = _several(self._newer.get(place))
        self._newer[place] = [*mine, found] if mine else found
        self._count += 1
        return found >> _EXTENT_BITS, unused

    def _turn(self) -> list[int]:
        """Forget the older table, and all serials but those that the other one still has."""
        before = {packed >> _EXTENT_BITS for packed in _all(self._older)} | set(self._serials)
        self._older, self._newer, self._count = self._newer, {}, 0
        self._serials = []
        return list(before - {packed >> _EXTENT_BITS for packed in _all(self._older)})


def _several(packed: int | list[int] | None) -> list[int]:
    return packed if isinstance(packed, list) else [] if packed is None else [packed]


def _all(table: dict[int, int | list[int]]) -> Iterator[int]:
    for packed in table.values():
        yield from _several(packed)


def _name(within: int) -> Name:
    try:
        return Name(within)
    except ValueError:
        raise NoSuchEntry("no file has that number") from None


def is_vma(number: int) -> bool:
    """Whether an inode number is that of the file of a VMA."""
    return number & _VMA_BIT != 0


class Inodes:
    """Numbers for nodes, and nodes for numbers. Many threads ask at once."""

    def __init__(self, living: Callable[[], AbstractSet[Owner | bytes]]) -> None:
        """*living* tells the processes and snapshots there are, and their names: these serials are kept."""
        self._living = living
        self._serial_of: dict[_Key, int] = {}
        self._key_of: dict[int, _Key] = {}
        self._vmas: dict[Owner, _Vmas] = {}
        self._next_serial = 1
        self._prune_at = _FIRST_PRUNE
        self._lock = threading.Lock()

    def number_of(self, node: Node) -> int:
        """The node's inode number."""
        if isinstance(node, Fixed):
            return int(node.name)
        if isinstance(node, CommDir):
            return self._serial(node.comm) << _WITHIN_BITS | Name.COMM
        if isinstance(node, ProcessNode):
            return self._serial(node.owner) << _WITHIN_BITS | node.name
        if isinstance(node, SinceNode):
            return self._serial(node.owner) << _WITHIN_BITS | _SINCE_BIT | node.serial
        page = node.start // PAGE_BYTES
        place = page if page < _FAR_BIT else page & _FAR_BIT - 1 | _FAR_BIT
        extent = page >> _NEAR_BITS << _PAGES_BITS | node.end // PAGE_BYTES - page
        return self._vma_serial(node.owner, place, extent) << _WITHIN_BITS | _VMA_BIT | place

    def expect_vmas(self, owner: Owner, count: int) -> None:
        """*owner* has *count* VMAs now, which shall all keep their numbers."""
        with self._lock:
            self._vmas_of(owner).expect(count)

    def _vma_serial(self, owner: Owner, place: int, extent: int) -> int:
        vmas = self._vmas.get(owner)
        serial = vmas.known_serial(place, extent) if vmas is not None else None
        if serial is not None:
            return serial
        with self._lock:
            serial, unused = self._vmas_of(owner).add(place, extent)
            for other in unused:
                self._key_of.pop(other, None)
            return serial

    def _vmas_of(self, owner: Owner) -> _Vmas:
        vmas = self._vmas.get(owner)
        if vmas is None:
            vmas = self._vmas[owner] = _Vmas(lambda: self._new_serial(owner))
        return vmas

    def node_of(self, number: int) -> Node:
        """The node that got *number*.

        Raises:
            NoSuchEntry: it belonged to a process that has been forgotten since it ended, or to nothing.
        """
        serial, within = divmod(number, 1 << _WITHIN_BITS)
        if not serial:
            return Fixed(_name(within))
        key = self._key_of.get(serial)
        if key is None:
            raise NoSuchEntry("the process of this file has ended")
        if isinstance(key, bytes):
            return CommDir(key)
        if within & _VMA_BIT:
            return self._vma_node(key, serial, within & ~_VMA_BIT)
        if within & _SINCE_BIT and isinstance(key, SnapshotId):
            return SinceNode(key, within & ~_SINCE_BIT)
        return ProcessNode(key, _name(within))

    def _vma_node(self, owner: Owner, serial: int, place: int) -> VmaNode:
        vmas = self._vmas.get(owner)
        extent = vmas.find_extent(serial, place) if vmas is not None else None
        if extent is None:
            raise NoSuchEntry("the mapping of this file is gone")
        page = place & _FAR_BIT - 1 | extent >> _PAGES_BITS << _NEAR_BITS
        pages = extent & (1 << _PAGES_BITS) - 1
        return VmaNode(owner, PAGE_BYTES * page, PAGE_BYTES * (page + pages))

    def _serial(self, key: _Key) -> int:
        serial = self._serial_of.get(key)
        if serial is None:
            with self._lock:
                serial = self._serial_of.get(key)
                if serial is None:
                    serial = self._serial_of[key] = self._new_serial(key)
        return serial

    def _new_serial(self, key: _Key) -> int:
        if len(self._key_of) >= self._prune_at:
            self._prune()
        serial = self._next_serial
        self._next_serial += 1
        self._key_of[serial] = key
        return serial

    def _prune(self) -> None:
        """Forget who has ended; as many again as there are now may gather until the next time.

        All processes are looked at for it, those too that have no serial yet: so these count as well.
        """
        living = self._living()
        self._key_of = {serial: key for serial, key in self._key_of.items() if key in living}
        self._serial_of = {key: serial for key, serial in self._serial_of.items() if key in living}
        self._vmas = {owner: vmas for owner, vmas in self._vmas.items() if owner in living}
        self._prune_at = max(_FIRST_PRUNE, 2 * len(self._key_of), 2 * len(living))
