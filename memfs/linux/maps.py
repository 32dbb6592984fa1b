"""``/proc/PID/maps`` as values: by parsing its text, or by PROCMAP_QUERY for one VMA.

Paths stay bytes. ``fs/proc/task_mmu.c`` prints the text; proc_pid_maps(5) describes it.
"""

import ctypes
import enum
import fcntl
import re
import struct
from collections.abc import Iterator

import attrs

from memfs.linux.span import Span


class Access(enum.IntFlag):
    """The permissions of a VMA, as the four letters of a maps line."""

    EXEC = 1
    WRITE = 2
    READ = 4
    SHARED = 8

    def __str__(self) -> str:
        return _LETTERS[self]


def _letters(access: Access) -> str:
    letters = "r" if access & Access.READ else "-"
    letters += "w" if access & Access.WRITE else "-"
    letters += "x" if access & Access.EXEC else "-"
    return letters + ("s" if access & Access.SHARED else "p")


_LETTERS = tuple(_letters(Access(bits)) for bits in range(16))
_ACCESS = {letters.encode(): Access(bits) for bits, letters in enumerate(_LETTERS)}
_SHARED = int(Access.SHARED)
_NO_DEVICE = (0, 0)


def parse_access(letters: bytes) -> Access:
    """Parse the four letters of a maps line.

    Raises:
        KeyError: they are none.
    """
    return _ACCESS[letters]


@attrs.frozen
class Mapping:
    """One VMA: a line of ``/proc/PID/maps``.

    Attributes:
        offset: where in the file the mapping begins, in bytes.
        device: major and minor number of the file system's device; 0 and 0 where no file is mapped.
        inode: the inode number; 0 is valid: the first System V segment has it, a FUSE server may choose it.
        path: as the kernel prints it, with ``\\012`` turned back into a newline; it may end in
            `` (deleted)`` or be a name in brackets; empty for plain anonymous memory.
    """

    span: Span
    access: Access
    offset: int
    device: tuple[int, int]
    inode: int
    path: bytes

    @property
    def shared(self) -> bool:
        """MAP_SHARED."""
        return self.access.value & _SHARED != 0

    @property
    def backed(self) -> bool:
        """Whether a file is mapped, or another object with an inode: a memfd, a device.

        No file system has the device 0:0 (``get_anon_bdev`` of fs/super.c).
        """
        return self.device != _NO_DEVICE

    def same_memory(self, other: "Mapping") -> bool:
        """Whether both VMAs map the same object at the same addresses.

        Bounds and protection may differ: VMAs grow, split and merge.
        """
        return (
            self.device == other.device
            and self.inode == other.inode
            and self.shared == other.shared
            and (not self.backed or self.offset - self.span.start == other.offset - other.span.start)
        )


_MAPS_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)"
    rb"(?: +([^\n]*))?$",
    re.MULTILINE,
)


def parse_maps(text: bytes) -> tuple[Mapping, ...]:
    """Parse a maps text; returns its VMAs in order of address."""
    return tuple(
        Mapping(
            Span(int(start, 16), int(end, 16)),
            _ACCESS[letters],
            int(offset, 16),
            (int(major, 16), int(minor, 16)),
            int(inode),
            path.replace(b"\\012", b"\n"),
        )
        for start, end, letters, offset, major, minor, inode, path in _maps_lines(text)
    )


def _maps_lines(text: bytes) -> Iterator[tuple[bytes, ...]]:
    """Yield the fields of each line, one line at a time: those of 60,000 lines take 30 MiB together."""
    return (line.groups(b"") for line in _MAPS_LINE.finditer(text))


_PROCMAP_QUERY = 0xC068_6611  # _IOWR('f', 17, struct procmap_query); Linux 6.11
_QUERY = struct.Struct("=9Q4I2Q")
_COVERING_OR_NEXT = 0x10
_PATH_BYTES = 4096 + 16  # PATH_MAX, and " (deleted)"
_QUERY_LETTERS = {1: Access.READ, 2: Access.WRITE, 4: Access.EXEC, 8: Access.SHARED}
_QUERY_ACCESS = tuple(
    Access(sum(letter for bit, letter in _QUERY_LETTERS.items() if flags & bit)) for flags in range(16)
)


class MappingQuery:
    """PROCMAP_QUERY on a descriptor of ``/proc/PID/maps``: asks for one VMA without formatting text."""

    def __init__(self, maps: int, *, paths: bool) -> None:
        """Query the descriptor *maps*; without *paths* they stay empty, which is cheaper for the kernel."""
        self._maps = maps
        self._path = ctypes.create_string_buffer(_PATH_BYTES) if paths else None
        self._path_address = ctypes.addressof(self._path) if self._path is not None else 0

    def at(self, address: int) -> Mapping | None:
        """Return the VMA that covers *address*, or else the next one; None behind the last one.

        Raises:
            ProcessLookupError: the address space is gone.
            OSError: ENOTTY before Linux 6.11.
        """
        room = _PATH_BYTES if self._path is not None else 0
        argument = bytearray(
            _QUERY.pack(
                _QUERY.size, _COVERING_OR_NEXT, address, 0, 0, 0, 0, 0, 0, 0, 0, room, 0,
                self._path_address, 0,
            )
        )  # fmt: skip
        try:
            fcntl.ioctl(self._maps, _PROCMAP_QUERY, argument, True)
        except FileNotFoundError:
            return None
        _, _, _, start, end, flags, _, offset, inode, major, minor, size, *_ = _QUERY.unpack(argument)
        path = self._path.raw[: size - 1] if self._path is not None and size else b""
        return Mapping(Span(start, end), _QUERY_ACCESS[flags & 15], offset, (major, minor), inode, path)
