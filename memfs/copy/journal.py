"""The journal of an update in place: edits that are all on the disk before the first is carried out.

It has its name, beside the image, only when it is whole; so whoever finds one can finish the update. That
is what every copy onto the image does first.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path

from memfs.copy.edits import Edit, Editor, Kind, pack_head, unpack
from memfs.copy.mark import Mark, describe_files, parse_mark, write_mark
from memfs.copy.newfile import NewFile, cannot_write, sync_directory
from memfs.errors import CannotCopy
from memfs.linux.syscalls import sync_file_system


def journal_of(image: Path) -> Path:
    """Where the journal of *image* is, if there is one."""
    return image.parent / f".{image.name}.memfs-journal"


class Journal:
    """A journal in the making; threads add to it. The owner closes it."""

    def __init__(self, image: Path, mark: Mark) -> None:
        """Begin the journal of an update of *image*, which will have *mark*.

        Raises:
            CannotCopy: there is no room, or no right to make it.
        """
        self.image = image
        self._file = NewFile(journal_of(image), direct=False)
        self._lock = threading.Lock()
        text = mark.format()
        self._put(len(text).to_bytes(8, "little") + text)

    def _put(self, *parts: bytes | memoryview) -> None:
        size = sum(map(len, parts))
        try:
            if os.writev(self._file.fd, parts) != size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # nothing else takes less
        except OSError as error:
            raise cannot_write(self.image, error) from None

    def add(self, *edits: Edit) -> None:
        """Add edits that stay together."""
        with self._lock:
            for edit in edits:
                self._put(pack_head(edit), edit.content)

    def commit(self) -> None:
        """Have it on the disk, under its name: from now on the update will be done, sooner or later."""
        self.add(Edit(Kind.END))
        self._file.finish(os.lseek(self._file.fd, 0, os.SEEK_CUR))
        self._file.install()

    def close(self) -> None:
        """Let go of it; what was not committed is gone then."""
        self._file.close()


def finish(image: Path) -> bool:
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
        if os.fstat(fd).st_nlink:
            _carry_out(image, fd)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            sync_directory(path.parent)
    except (OSError, ValueError) as error:
        raise CannotCopy(
            f"the update of {image} that was begun cannot be finished ({error})",
            "mend that, and copy again: until then the image is not whole",
        ) from None
    finally:
        os.close(fd)
    return True


def _carry_out(image: Path, journal: int) -> None:
    size = os.fstat(journal).st_size
    editor = Editor(image)
    with mmap.mmap(journal, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        mark_bytes = int.from_bytes(view[:8], "little")
        mark = parse_mark(bytes(view[8 : 8 + mark_bytes]))
        with view[8 + mark_bytes :] as rest:
            for edit in unpack(rest):
                editor.do(edit)
                content = edit.content
                if isinstance(content, memoryview):
                    content.release()
    editor.close()
    if image.is_dir():
        fd = os.open(image, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    write_mark(image, Mark(mark.snapshot, mark.part, describe_files(image, list(mark.files))))
