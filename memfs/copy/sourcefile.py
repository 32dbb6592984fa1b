"""A file of the mount, open to be copied: its size, its extents, its bytes."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from memfs.copy.crew import CHUNK_BYTES
from memfs.errors import CannotCopy
from memfs.linux.folder import reopen
from memfs.linux.span import Span

_HINTS = {
    errno.EACCES: "the daemon's log says why",
    errno.EPERM: "the daemon's log says why",
    errno.ENOENT: "the process has ended, or the mapping changed: list again",
    errno.ESRCH: "the process has ended, a snapshot would have stayed",
    errno.ESTALE: "the process runs another program now, copy again for that one's memory",
    errno.EIO: "this range is not mapped any more, or not in the snapshot: see its info.json",
    errno.ENOTCONN: "the daemon of the mount has ended",
}


def cannot_read(path: Path, error: OSError) -> CannotCopy:
    """Return the error for a source that cannot be read."""
    hint = _HINTS.get(error.errno or 0, "")
    return CannotCopy(f"{path} cannot be read ({error.strerror or error})", hint)


def open_in(path: Path, device: int, flags: int) -> int:
    """Open *path*, which must be on *device* (``st_dev``): whatever else it leads to is not opened.

    A mount can lie below a directory of another user, who may replace it by another mount at any time.

    Raises:
        CannotCopy: it is not.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_dev != device:
            raise CannotCopy(f"{path} does not lead into the mount any more", "see who moved the mount")
        return reopen(fd, flags)
    finally:
        os.close(fd)


class SourceFile:
    """A file of the mount, open for reading. The owner closes it.

    Attributes:
        size_bytes: as it is now that the file is open: before, the size of a live core is a guess.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """Own *fd*; *path* is for messages."""
        self.path = path
        self.fd = fd
        self.size_bytes = os.fstat(fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def extents(self, span: Span | None = None) -> Iterator[Span]:
        """Yield the data extents in the file, or in *span*: page-aligned, except at the end of the file.

        Raises:
            CannotCopy: the file cannot be read any more.
        """
        within = Span(0, self.size_bytes) if span is None else span
        at = within.start
        while at < within.end:
            try:
                begin = os.lseek(self.fd, at, os.SEEK_DATA)
                at = os.lseek(self.fd, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                raise cannot_read(self.path, error) from None
            found = Span(begin, at).page_aligned()
            at = max(at, found.end)
            if part := found.clip(within):
                yield part

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill *view* from *offset* on.

        Raises:
            CannotCopy: not all of it can be read.
        """
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd, (view[done:],), offset + done)
            except OSError as error:
                raise cannot_read(self.path, error) from None
            if not got:
                raise CannotCopy(f"{self.path} ended before its end", "copy it again")
            done += got

    def try_into(self, offset: int, views: list[memoryview]) -> bool:
        """Fill all *views*, one after the other, from *offset* on; False where not all of it can be read."""
        try:
            return os.preadv(self.fd, views, offset) == sum(map(len, views))
        except OSError:
            return False


def open_source(path: Path, device: int, flags: int = os.O_DIRECT) -> SourceFile:
    """Open the file *path* of the mount *device*, past the page cache unless *flags* say otherwise.

    Raises:
        CannotCopy: it cannot be opened, or is no file of that mount.
    """
    try:
        return SourceFile(path, open_in(path, device, os.O_RDONLY | flags))
    except OSError as error:
        raise cannot_read(path, error) from None


def chunks(extents: list[Span]) -> Iterator[Span]:
    """Cut *extents* into pieces that fit into a buffer, in order."""
    for extent in extents:
        for start in range(extent.start, extent.end, CHUNK_BYTES):
            yield Span(start, min(start + CHUNK_BYTES, extent.end))


def data_extents(fd: int, size_bytes: int) -> Iterator[Span]:
    """Yield the data extents of an ordinary file; all of it where its file system has no SEEK_DATA."""
    at = 0
    while at < size_bytes:
        begin = size_bytes
        with contextlib.suppress(OSError):
            begin = os.lseek(fd, at, os.SEEK_DATA)
        if begin >= size_bytes:
            return
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size_bytes)
        yield Span(begin, at)
