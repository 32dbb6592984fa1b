"""Edits of an image: as values, as they stand in a journal, and as they are carried out.

An edit can be carried out twice: a journal that was being carried out when its process was killed is
carried out again from its beginning, and the image is the same in the end.
"""

import contextlib
import enum
import errno
import functools
import os
import struct
from collections.abc import Iterable, Iterator

import attrs

from memfs.copy.crew import CHUNK_BYTES, Crew, Work, pages
from memfs.copy.held import Image
from memfs.copy.newfile import write_all
from memfs.linux.folder import reopen
from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import punch_hole, start_writing


class EditKind(enum.IntEnum):
    """What an edit does; journals contain the value."""

    FILE = 1
    """What follows is done to this file, which gets that size; *offset* 1 makes it anew."""
    DATA = 2
    """Bytes at an offset; they stand in the journal at *at*."""
    HOLE = 3
    """Nothing there any more."""
    MOVE = 4
    """A file gets the name *other*."""
    REMOVE = 5
    LINK = 6
    """A symbolic link that leads to *other*."""


@attrs.frozen
class Edit:
    """One edit.

    Attributes:
        name: of the file, in the image; "" for an image that is a file itself.
        at: where in the journal its bytes are, on a page's start.
    """

    kind: EditKind
    name: str = ""
    offset: int = 0
    size: int = 0
    at: int = 0
    other: str = ""


_HEAD = struct.Struct("<BxHHxxQQQ")


def pack(edits: Iterable[Edit]) -> bytes:
    """The bytes of *edits* in a journal."""
    parts: list[bytes] = []
    for edit in edits:
        name, other = os.fsencode(edit.name), os.fsencode(edit.other)
        parts += (_HEAD.pack(edit.kind, len(name), len(other), edit.offset, edit.size, edit.at), name, other)
    return b"".join(parts)


def unpack(text: bytes) -> Iterator[Edit]:
    """The edits of :func:`pack`."""
    at = 0
    while at < len(text):
        kind, name_bytes, other_bytes, offset, size, where = _HEAD.unpack_from(text, at)
        at += _HEAD.size
        name = text[at : at + name_bytes]
        at += name_bytes
        other = text[at : at + other_bytes]
        at += other_bytes
        yield Edit(EditKind(kind), os.fsdecode(name), offset, size, where, os.fsdecode(other))


@attrs.frozen
class Bytes:
    """The bytes of a journal.

    Attributes:
        fd: its file.
        kept: how it begins, as far as that is in memory.
    """

    fd: int
    kept: memoryview = attrs.field(factory=lambda: memoryview(b""))

    def get(self, start: int, size: int, buffer: memoryview) -> memoryview:
        """Bytes of it, read into *buffer* where they are not in memory.

        Raises:
            OSError: it ends before that.
        """
        if start + size <= len(self.kept):
            return self.kept[start : start + size]
        done = 0
        while done < size:
            got = os.preadv(self.fd, (buffer[done:size],), start + done)
            if not got:
                raise OSError(errno.EIO, "the journal ends before its end")
            done += got
        return buffer[:size]


class Editor:
    """Carries the edits of a journal out on an image in place."""

    def __init__(self, image: Image, data: Bytes, crew: Crew) -> None:
        """Edit *image*, a file or a directory."""
        self._image = image
        self._bytes = data
        self._crew = crew
        self._fd = -1
        self._direct = -1
        self._data: list[Edit] = []

    def run(self, edits: Iterable[Edit]) -> None:
        """Carry out all of *edits*, and sync what they are done to.

        Raises:
            OSError: the file system refuses.
        """
        try:
            for edit in edits:
                self._do(edit)
        finally:
            self._leave_file()

    def _do(self, edit: Edit) -> None:
        if edit.kind is EditKind.DATA:  # there may be one for each page
            self._data.append(edit)
            return
        if edit.kind is EditKind.FILE:
            self._leave_file()
            self._enter_file(edit)
        elif edit.kind is EditKind.HOLE:
            make_hole(self._fd, edit.offset, edit.size)
        elif edit.kind is EditKind.MOVE:
            with contextlib.suppress(FileNotFoundError):  # it has been done before
                self._image.at(edit.name).rename_to(self._image.at(edit.other))
        else:
            entry = self._image.at(edit.name)
            with contextlib.suppress(FileNotFoundError):
                entry.remove()
            if edit.kind is EditKind.LINK:
                entry.link_to(edit.other)

    def _enter_file(self, edit: Edit) -> None:
        self._fd = self._image.open(edit.name, os.O_RDWR | os.O_CREAT)
        if edit.offset:
            os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, edit.size)
        with contextlib.suppress(OSError):  # not all file systems have it
            self._direct = reopen(self._fd, os.O_RDWR | os.O_DIRECT)

    def _leave_file(self) -> None:
        data, self._data = self._data, []
        held = (self._direct, self._fd)
        try:
            if data:
                self._crew.run(self._works(data))
            if self._fd >= 0:
                os.fsync(self._fd)
                if sum(edit.size for edit in data) > _CACHED_BYTES:
                    os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            self._direct = self._fd = -1
            for fd in held:
                if fd >= 0:
                    os.close(fd)

    def _works(self, data: list[Edit]) -> Iterator[Work]:
        """Large edits are written by the crew; small ones by whoever comes for the next piece of work.

        Many small writes are put in order and gathered by the page cache. Threads that make them at once
        wait for each other, for the lock of the file and for that of the interpreter.
        """
        small: list[Edit] = []
        for edit in data:
            whole = not (edit.size | edit.offset) % PAGE_BYTES
            if self._direct >= 0 and edit.size >= _DIRECT_BYTES and whole:
                yield functools.partial(self._write_large, self._direct, edit)
            else:
                small.append(edit)
        buffer = memoryview(pages(CHUNK_BYTES))
        for batch in _batches(small):
            start = batch[0].at
            view = self._bytes.get(start, _end_of(batch[-1]) - start, buffer)
            for edit in batch:
                write_all(self._fd, edit.offset, view[edit.at - start : edit.at - start + edit.size])
            yield functools.partial(_begin_writing, self._fd, batch)

    def _write_large(self, direct: int, edit: Edit, buffer: memoryview) -> None:
        write_all(direct, edit.offset, self._bytes.get(edit.at, edit.size, buffer))


def _batches(edits: list[Edit]) -> Iterator[list[Edit]]:
    """Edits whose bytes lie near each other in the journal, and fit into a buffer."""
    batch: list[Edit] = []
    for edit in edits:
        if batch and (edit.at < _end_of(batch[-1]) or _end_of(edit) - batch[0].at > CHUNK_BYTES):
            yield batch
            batch = []
        batch.append(edit)
    if batch:
        yield batch


def _begin_writing(fd: int, edits: list[Edit], buffer: memoryview) -> None:
    """Have the disk begin with them while more are written: fsync has less to wait for then."""
    del buffer
    begin = min(edit.offset for edit in edits)
    with contextlib.suppress(OSError):
        start_writing(fd, begin, max(edit.offset + edit.size for edit in edits) - begin)


_DIRECT_BYTES = 128 << 10
_CACHED_BYTES = 48 << 20
"""No more than that is left in the page cache: to drop it page by page takes longer than it is worth."""


def _end_of(edit: Edit) -> int:
    return edit.at + -(-edit.size // PAGE_BYTES) * PAGE_BYTES


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
