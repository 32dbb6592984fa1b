"""The journal of an update in place: edits that are all on the disk before the first is carried out.

It has its name, beside the image, only when it is whole; so whoever finds one can finish the update. That
is what every copy onto the image does first. First in it stand the bytes of all edits, on page starts;
then the new mark of the image and the edits; then where these begin and how long they are.
"""

import contextlib
import fcntl
import os
import struct
import threading
from pathlib import Path

from memfs.copy.crew import Crew
from memfs.copy.edits import Edit, Editor, pack, unpack
from memfs.copy.mark import Mark, describe_files, parse_mark, write_mark
from memfs.copy.newfile import NewFile, cannot_write, sync_directory, write_all
from memfs.errors import CannotCopy
from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import sync_file_system

_TRAILER = struct.Struct("<QQQ")
"""Where the mark begins, its length, and that of the edits behind it."""


def journal_of(image: Path) -> Path:
    """Where the journal of *image* is, if there is one."""
    return image.parent / f".{image.name}.memfs-journal"


class Journal:
    """A journal in the making; threads add to it. The owner closes it."""

    def __init__(self, image: Path) -> None:
        """Begin the journal of an update of *image*.

        Raises:
            CannotCopy: there is no room, or no right to make it.
        """
        self.image = image
        self._file = NewFile(journal_of(image))
        self._lock = threading.Lock()
        self._edits: list[Edit] = []
        self._end = 0

    def add(self, edit: Edit) -> None:
        """Add an edit that has no bytes."""
        with self._lock:
            self._edits.append(edit)

    def add_data(self, edits: list[Edit], view: memoryview) -> None:
        """Add DATA, whose bytes stand in *view*, each on a page's start in it, as its *at* says."""
        with self._lock:
            begin = self._end
            self._end += len(view)
        try:
            write_all(self._file.fd, begin, view)
        except OSError as error:
            raise cannot_write(self.image, error) from None
        with self._lock:
            self._edits += (
                Edit(edit.kind, edit.name, edit.offset, edit.size, begin + edit.at) for edit in edits
            )

    def commit(self, mark: Mark) -> None:
        """Have it on the disk, under its name: from now on the update will be done, sooner or later."""
        text, edits = mark.format(), pack(self._edits)
        tail = text + edits + _TRAILER.pack(self._end, len(text), len(edits))
        size = self._end + len(tail)
        padded = bytearray(-(-len(tail) // PAGE_BYTES) * PAGE_BYTES)
        padded[: len(tail)] = tail
        self._file.write(self._end, memoryview(padded))
        self._file.finish(size)
        self._file.install()

    def close(self) -> None:
        """Let go of it; what was not committed is gone then."""
        self._file.close()


def finish(image: Path, crew: Crew) -> bool:
    """Carry out the journal of *image*, if it has one; returns whether it had.

    Raises:
        CannotCopy: it cannot be: then the image is not whole until it is.
    """
    path = journal_of(image)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise cannot_write(image, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise CannotCopy(
                f"{path} was written by uid {found.st_uid}, and would be carried out as you",
                "remove it, or let that user finish his copy",
            )
        if found.st_nlink:
            _carry_out(image, fd, crew)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            sync_directory(path.parent)
    except (OSError, ValueError, struct.error) as error:
        raise CannotCopy(
            f"the update of {image} that was begun cannot be finished ({error})",
            "mend that, and copy again: until then the image is not whole",
        ) from None
    finally:
        os.close(fd)
    return True


def _carry_out(image: Path, journal: int, crew: Crew) -> None:
    size = os.fstat(journal).st_size
    begin, mark_bytes, edits_bytes = _TRAILER.unpack(os.pread(journal, _TRAILER.size, size - _TRAILER.size))
    mark = parse_mark(os.pread(journal, mark_bytes, begin))
    Editor(image, journal, crew).run(unpack(os.pread(journal, edits_bytes, begin + mark_bytes)))
    if image.is_dir():
        fd = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    write_mark(image, Mark(mark.snapshot, mark.part, describe_files(image, list(mark.files))))
