"""Inode numbers, made so that they need no table of what the kernel remembers.

A number is the serial of a process or a snapshot in the upper bits, and what it is of that one in the
lower ones: a fixed number for each fixed name, and the page at which a VMA begins. Serials are not
used twice while the mount lives, so no two things ever share a number, and a number that the kernel
kept of a dead process leads nowhere. They are forgotten when what they stand for has ended.
"""

import enum
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import attrs

from memfs.errors import NoSuchEntry
from memfs.linux.span import PAGE_BYTES
from memfs.snapshot.snapshot import SnapshotId
from memfs.target.identity import Identity

ROOT_NUMBER = 1  # FUSE_ROOT_ID

_WITHIN_BITS = 37
_VMA_BIT = 1 << 36
_FAR_BIT = 1 << 35
"""Set for the few VMAs above 2**47, which x86-64 gives only to those who ask for them: these are counted."""
_SINCE_BIT = 1 << 34
_FIRST_PRUNE = 1024


class Name(enum.IntEnum):
    """What has one place in its directory; the value is part of its inode number."""

    ROOT = 1
    BY_NAME = 2
    SELF = 3
    PROCESS = 4
    MEM = 5
    VMAS = 6
    MAPS = 7
    HEAP = 8
    STACK = 9
    TEXT = 10
    PROC = 11
    NAME_LINK = 12
    COMM = 13
    CORE = 14
    SNAPSHOTS = 15
    INFO = 16
    SINCE = 17


@attrs.frozen
class Fixed:
    """Something that the mount has once: the root, ``by-name``, ``self``."""

    name: Name


@attrs.frozen
class CommDir:
    """``by-name/COMM``."""

    comm: bytes


Owner = Identity | SnapshotId
"""Whose memory it is: a process that runs, or a frozen one."""


def identity_of(owner: Owner) -> Identity:
    """The process that it is, or was when it was frozen."""
    return owner.identity if isinstance(owner, SnapshotId) else owner


@attrs.frozen
class ProcessNode:
    """Something that a process has once, running or frozen."""

    owner: Owner
    name: Name


@attrs.frozen
class VmaNode:
    """The file of the VMA from address *start* to *end*.

    With other bounds it is another file: what the kernel keeps of a file, its size and cached pages,
    must never be shown for memory of another extent.
    """

    owner: Owner
    start: int
    end: int


@attrs.frozen
class SinceNode:
    """What changed in a snapshot since the earlier one of the same process that has the number *serial*."""

    owner: SnapshotId
    serial: int


Node = Fixed | CommDir | ProcessNode | VmaNode | SinceNode

_Variant = tuple[Owner, int]
"""Stands for the VMAs of an owner that begin where others began before, which ended elsewhere: the first
such ones, the second, and so on."""

_Key = Owner | bytes | _Variant
"""What has a serial."""


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
        # Lengths of VMAs by where they begin, both in pages: new numbers, and small ones. The addresses
        # themselves would keep what lies around them there in memory: 14 MiB after a list of 60,000.
        self._pages: dict[Owner, dict[int, int]] = {}
        self._later_pages: dict[tuple[Owner, int], list[int]] = {}
        self._next_serial = 1
        self._prune_at = _FIRST_PRUNE
        self._far: list[int] = []
        self._far_numbers: dict[int, int] = {}
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
        variant = self._variant_of(node.owner, page, node.end // PAGE_BYTES - page)
        serial = self._serial((node.owner, variant) if variant else node.owner)
        within = page if page < _FAR_BIT else self._far_number(page)
        return serial << _WITHIN_BITS | _VMA_BIT | within

    def _variant_of(self, owner: Owner, page: int, pages: int) -> int:
        """0 for the first VMA that was seen to begin at *page*, 1 for the next with another length …"""
        first = self._pages.setdefault(owner, {}).setdefault(page, pages)
        if first == pages:
            return 0
        with self._lock:
            later = self._later_pages.setdefault((owner, page), [])
            if pages not in later:
                later.append(pages)
            return later.index(pages) + 1

    def _vma_node(self, owner: Owner, variant: int, page: int) -> VmaNode:
        try:
            pages = self._later_pages[owner, page][variant - 1] if variant else self._pages[owner][page]
        except KeyError:
            raise NoSuchEntry("the process of this file has ended") from None
        return VmaNode(owner, PAGE_BYTES * page, PAGE_BYTES * (page + pages))

    def _far_number(self, page: int) -> int:
        with self._lock:
            if page not in self._far_numbers:
                self._far_numbers[page] = len(self._far)
                self._far.append(page)
            return _FAR_BIT | self._far_numbers[page]

    def node_of(self, number: int) -> Node:
        """The node that got *number*.

        Raises:
            NoSuchEntry: it belonged to a process that has been forgotten since it ended.
        """
        serial, within = divmod(number, 1 << _WITHIN_BITS)
        if not serial:
            return Fixed(Name(within))
        key = self._key_of.get(serial)
        if key is None:
            raise NoSuchEntry("the process of this file has ended")
        if isinstance(key, bytes):
            return CommDir(key)
        owner, variant = key if isinstance(key, tuple) else (key, 0)
        if within & _VMA_BIT:
            page = within & ~_VMA_BIT
            page = self._far[page & ~_FAR_BIT] if page & _FAR_BIT else page
            return self._vma_node(owner, variant, page)
        if within & _SINCE_BIT and isinstance(owner, SnapshotId):
            return SinceNode(owner, within & ~_SINCE_BIT)
        return ProcessNode(owner, Name(within))

    def _serial(self, key: _Key) -> int:
        serial = self._serial_of.get(key)
        if serial is None:
            with self._lock:
                serial = self._serial_of.get(key)
                if serial is None:
                    if len(self._key_of) >= self._prune_at:
                        self._prune()
                    serial = self._next_serial
                    self._next_serial += 1
                    self._key_of[serial] = key
                    self._serial_of[key] = serial
        return serial

    def _prune(self) -> None:
        """Forget who has ended; as many again as there are now may gather until the next time.

        All processes are looked at for it, those too that have no serial yet: so these count as well.
        """
        living = self._living()
        self._key_of = {
            serial: key
            for serial, key in self._key_of.items()
            if (key[0] if isinstance(key, tuple) else key) in living
        }
        self._serial_of = {key: serial for serial, key in self._key_of.items()}
        self._pages = {owner: pages for owner, pages in self._pages.items() if owner in living}
        self._later_pages = {place: pages for place, pages in self._later_pages.items() if place[0] in living}
        self._prune_at = max(_FIRST_PRUNE, 2 * len(self._key_of), 2 * len(living))
