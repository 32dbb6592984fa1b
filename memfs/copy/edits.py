"""Edits of an image, one after the other: as values, as bytes in a journal, and as they are carried out.

An edit can be carried out twice: a journal that was being carried out when its process was killed is
carried out again from its beginning, and the image is the same in the end.
"""

import contextlib
import enum
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import attrs

from memfs.copy.newfile import PRIVATE_DIRECTORY, PRIVATE_FILE, remove, write_all
from memfs.linux.syscalls import punch_hole


class Kind(enum.IntEnum):
    """What is done; the value stands in journals."""

    FILE = 1
    """What follows is done to this file, which gets that size; *offset* 1 makes it anew."""
    DATA = 2
    """Bytes at an offset."""
    HOLE = 3
    """Nothing there any more."""
    MOVE = 4
    """A file gets the name that follows as bytes."""
    REMOVE = 5
    LINK = 6
    """A symbolic link that leads where the bytes say."""
    END = 7


@attrs.frozen
class Edit:
    """One edit.

    Attributes:
        name: of the file, in the image; "" for an image that is a file itself.
        content: the bytes of DATA, the other name of MOVE, the target of LINK.
    """

    kind: Kind
    name: str = ""
    offset: int = 0
    size: int = 0
    content: bytes | memoryview = b""


_HEAD = struct.Struct("<BxHIQQ")


def pack_head(edit: Edit) -> bytes:
    """The bytes that stand before the content of *edit* in a journal."""
    name = os.fsencode(edit.name)
    return _HEAD.pack(edit.kind, len(name), len(edit.content), edit.offset, edit.size) + name


def unpack(journal: memoryview) -> Iterator[Edit]:
    """The edits of a journal up to its END.

    Raises:
        ValueError: it has no end.
    """
    at = 0
    while at + _HEAD.size <= len(journal):
        kind, name_bytes, content_bytes, offset, size = _HEAD.unpack_from(journal, at)
        at += _HEAD.size
        name = os.fsdecode(bytes(journal[at : at + name_bytes]))
        at += name_bytes
        if kind == Kind.END:
            return
        yield Edit(Kind(kind), name, offset, size, journal[at : at + content_bytes])
        at += content_bytes
    raise ValueError("the journal has no end")


class Editor:
    """Carries edits out on an image in place. The owner closes it.

    Attributes:
        root: the image, a file or a directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = -1

    def do(self, edit: Edit) -> None:
        """Carry out one edit.

        Raises:
            OSError: the file system refuses.
        """
        path = self.root / edit.name if edit.name else self.root
        if edit.kind is Kind.FILE:
            self._open(path, edit)
        elif edit.kind is Kind.DATA:
            write_all(self._fd, edit.offset, memoryview(edit.content))
        elif edit.kind is Kind.HOLE:
            make_hole(self._fd, edit.offset, edit.size)
        elif edit.kind is Kind.MOVE:
            with contextlib.suppress(FileNotFoundError):  # it has been done before
                os.rename(path, self.root / os.fsdecode(bytes(edit.content)))
        elif edit.kind is Kind.REMOVE:
            with contextlib.suppress(FileNotFoundError):
                remove(path)
        elif edit.kind is Kind.LINK:
            with contextlib.suppress(FileNotFoundError):
                remove(path)
            path.symlink_to(os.fsdecode(bytes(edit.content)))

    def _open(self, path: Path, edit: Edit) -> None:
        self.close()
        path.parent.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        if edit.offset:
            os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, edit.size)

    def close(self) -> None:
        """Sync the file at hand, and let it go."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.fsync(fd)
            os.close(fd)


_ZEROS = bytes(1 << 20)


def make_hole(fd: int, offset: int, size: int) -> None:
    """Have zeros there, and no blocks where the file system can."""
    try:
        punch_hole(fd, offset, size)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        end = offset + size
        for at in range(offset, end, len(_ZEROS)):
            write_all(fd, at, memoryview(_ZEROS)[: min(len(_ZEROS), end - at)])
