"""The journal of an update in place: edits that are all on the disk before the first is carried out.

It has its name, beside the image, only when it is whole; so whoever finds one can finish the update. That
is what every copy onto the image does first. First in it stand the bytes of all edits, on page starts;
then the new mark of the image and the edits; then where these begin and how long they are.
"""

import contextlib
import fcntl
import os
import stat as stat_module
import struct
import threading
from collections.abc import Iterable, Iterator

import attrs

from memfs.copy.carry import Slot
from memfs.copy.crew import Crew, pages
from memfs.copy.edits import Bytes, Edit, Editor, pack, unpack
from memfs.copy.held import Image
from memfs.copy.mark import Mark, mark_image, parse_mark
from memfs.copy.newfile import NewFile, cannot_write, write_all
from memfs.errors import CannotCopy
from memfs.linux.folder import FolderEntry, is_ours
from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import sync_file_system

_TRAILER = struct.Struct("<QQQ")
"""Where the mark begins, its length, and that of the edits behind it."""


def journal_of(image: FolderEntry) -> FolderEntry:
    """Where the journal of *image* is, if there is one."""
    return image.beside(f".{image.name}.memfs-journal")


_KEPT_BYTES = 64 << 20
"""So much of a journal is kept in memory, where it is quicker to have back than from the disk."""


class Journal:
    """A journal in the making; threads add to it. The owner closes it."""

    def __init__(self, image: Image) -> None:
        """Begin the journal of an update of *image*.

        Raises:
            CannotCopy: there is no room, or no right to make it.
        """
        self.image = image
        self._file = NewFile(journal_of(image.entry))
        self._lock = threading.Lock()
        self._edits: list[Edit] = []
        self._end = 0
        self._kept = memoryview(pages(_KEPT_BYTES))
        self._kept_end = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be done."""
        return not self._edits

    def add(self, edit: Edit) -> None:
        """Add an edit that has no bytes."""
        with self._lock:
            self._edits.append(edit)

    def claim(self, buffer: memoryview) -> Slot:
        """A place in it for as many bytes as *buffer* holds, whole pages, and memory for them.

        That is kept, as far as there is room, or *buffer* itself.
        """
        with self._lock:
            begin = self._end
            self._end = end = begin + len(buffer)
            if self._kept_end < begin or end > _KEPT_BYTES:
                return Slot(begin, buffer)
            self._kept_end = end
        return Slot(begin, self._kept[begin:end])

    def add_data(self, edits: list[Edit], slot: Slot) -> None:
        """Add DATA, whose bytes stand in *slot*."""
        try:
            write_all(self._file.fd, slot.at, slot.view)
        except OSError as error:
            raise cannot_write(self.image.entry, error) from None
        with self._lock:
            self._edits += edits

    def commit(self, mark: Mark) -> None:
        """Have it on the disk, under its name: from now on the update will be done, sooner or later."""
        inode = os.fstat(self.image.fd).st_ino
        text, edits = attrs.evolve(mark, inode=inode).format(), pack(self._edits)
        tail = text + edits + _TRAILER.pack(self._end, len(text), len(edits))
        padded = pages(-(-len(tail) // PAGE_BYTES) * PAGE_BYTES)
        padded[: len(tail)] = tail
        self._file.write(self._end, memoryview(padded))
        self._file.finish(self._end + len(tail))
        self._file.install()

    def carry_out(self, mark: Mark, crew: Crew) -> None:
        """Do what was committed.

        Raises:
            CannotCopy: it cannot be done: then the image is not whole until it is.
        """
        # Who else finds it waits for the lock that its file has had since it was made.
        with _explained(self.image.entry):
            kept = self._kept[: self._kept_end]
            _carry_out(self.image, mark, self._edits, Bytes(self._file.fd, kept), crew)
            _remove(journal_of(self.image.entry))

    def close(self) -> None:
        """Let go of it; what was not committed is gone then."""
        self._file.close()


class Stay:
    """A journal that leaves an image as it is and gives it its mark again, should its times have moved.

    Who is killed while he makes room in an image leaves this one. The journal of the update takes its place.

    Attributes:
        is_over: whether it has.
    """

    def __init__(self, image: Image, mark: Mark) -> None:
        self._image = image
        self._mark = mark
        self._book: Journal | None = None
        self.is_over = False

    def begin(self) -> None:
        """From now on the times of the image may move; a second call does nothing.

        Raises:
            CannotCopy: there is no room for it.
        """
        if self._book is None:
            self._book = Journal(self._image)
            self._book.commit(self._mark)

    def close(self) -> None:
        """The times are as they were again, or the update is done."""
        book, self._book = self._book, None
        if book is not None:
            if not self.is_over:
                _remove(journal_of(self._image.entry))
            book.close()


@contextlib.contextmanager
def _explained(image: FolderEntry) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, struct.error) as error:
        raise CannotCopy(
            f"the update of {image} that was begun cannot be finished ({error})",
            "mend that, and copy again: until then the image is not whole",
        ) from None


def finish(image: FolderEntry, crew: Crew) -> None:
    """Carry out the journal of *image*, if it has one; without an image it is removed.

    Raises:
        CannotCopy: another user can have written it; or it cannot be carried out, and then the image is not
            whole until it is.
    """
    entry = journal_of(image)
    try:
        fd = entry.open()
    except FileNotFoundError:
        return
    except OSError as error:  # a symbolic link, a socket
        raise _no_journal(entry, os.strerror(error.errno or 0)) from None
    try:
        found = os.fstat(fd)
        if found.st_nlink:
            _ensure_ours(entry, found)
            with _explained(image):
                # A lock on what others can open may be held for ever.
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if is_ours(found) else fcntl.LOCK_NB))
                found = os.fstat(fd)
                if found.st_nlink:  # else it has been carried out meanwhile
                    _finish(image, fd, found.st_size, crew)
    finally:
        os.close(fd)


def _ensure_ours(journal: FolderEntry, found: os.stat_result) -> None:
    """Make sure that this user wrote a journal."""
    is_file = stat_module.S_ISREG(found.st_mode)
    if is_file and found.st_uid != os.geteuid():
        raise CannotCopy(
            f"{journal} was written by uid {found.st_uid}, and would be carried out as you",
            "remove it, or let that user finish his copy",
        )
    if not (is_ours(found) or (is_file and journal.folder.is_private)):  # vfat knows one mode for all files
        raise _no_journal(journal, "a journal is a file with one name and mode 0600")


def _no_journal(journal: FolderEntry, reason: str) -> CannotCopy:
    return CannotCopy(f"{journal} is no journal of memfs copy ({reason})", "remove it")


def _finish(image: FolderEntry, journal: int, size_bytes: int, crew: Crew) -> None:
    mark, edits = _read_tail(journal, size_bytes)
    try:
        held = Image(image)
    except FileNotFoundError:
        pass
    else:
        with held:
            if not image.folder.is_private and mark.inode != os.fstat(held.fd).st_ino:
                raise ValueError("it is the journal of another image")
            _carry_out(held, mark, edits, Bytes(journal), crew)
    _remove(journal_of(image))


def _remove(journal: FolderEntry) -> None:
    with contextlib.suppress(FileNotFoundError):
        journal.unlink()
    journal.folder.sync()


def _read_tail(journal: int, size: int) -> tuple[Mark, Iterator[Edit]]:
    begin, mark_bytes, edits_bytes = _TRAILER.unpack(os.pread(journal, _TRAILER.size, size - _TRAILER.size))
    mark = parse_mark(os.pread(journal, mark_bytes, begin))
    return mark, unpack(os.pread(journal, edits_bytes, begin + mark_bytes))


def _carry_out(image: Image, mark: Mark, edits: Iterable[Edit], data: Bytes, crew: Crew) -> None:
    Editor(image, data, crew).run(edits)
    if image.folder is not None:
        sync_file_system(image.fd)
    mark_image(image, mark)
