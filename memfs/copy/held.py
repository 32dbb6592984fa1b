"""An image that stands, held by its descriptors: what is read of it and written to it is all of one image.

Who brings an image up to date writes into files that it opens by their names. So the image must be one that
no other user can have put there, or can change meanwhile.
"""

import errno
import os
from pathlib import Path
from typing import Self

from memfs.copy.destination import ensure_ours
from memfs.copy.newfile import PRIVATE_DIRECTORY, PRIVATE_FILE
from memfs.copy.sourcefile import SourceFile, cannot_read
from memfs.errors import CannotCopy
from memfs.linux.folder import Folder, FolderEntry, reopen, room_bytes


class Image:
    """A file, or a directory of files. The owner closes it.

    Attributes:
        entry: where it is.
        fd: a descriptor, open for reading.
        folder: the directory; None for a file.
    """

    def __init__(self, entry: FolderEntry) -> None:
        """Hold what *entry* is.

        Raises:
            OSError: there is no file and no directory.
            CannotCopy: others may write to it, or have put it there.
        """
        self.entry = entry
        self.folder: Folder | None = None
        try:
            self.folder = entry.open_folder()
            self.fd = self.folder.fd
        except NotADirectoryError:
            self.fd = entry.open_file()
        try:
            self._ensure_ours()
        except BaseException:
            self.close()
            raise

    def _ensure_ours(self) -> None:
        stat = os.fstat(self.fd)
        if self.folder is not None and not self.folder.is_private:
            raise CannotCopy(
                f"{self} is a directory that others may write to",
                "make it yours (chown -R, chmod -R go-w), or remove it",
            )
        ensure_ours(self.entry, stat)
        if not self.entry.folder.is_private and self.folder is None and stat.st_nlink != 1:
            raise CannotCopy(
                f"{self} has other names, in a directory that others may write to",
                "copy to a directory of your own",
            )

    def __str__(self) -> str:
        """Its path, for messages."""
        return str(self.entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        if self.folder is not None:
            self.folder.close()
        else:
            os.close(self.fd)

    def at(self, name: str, *, make: bool = False) -> FolderEntry:
        """The file *name* of a directory; with *make*, directories on the way are made.

        Raises:
            OSError: it is no directory, or has none on the way; EPERM for one that others may write to.
        """
        if self.folder is None:
            raise NotADirectoryError(errno.ENOTDIR, f"{self} is no directory")
        entry = self.folder.at(name, make=PRIVATE_DIRECTORY if make else None)
        if not entry.folder.is_private:
            raise PermissionError(errno.EPERM, f"others may write to {entry.folder.path}")
        return entry

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open the file *name* of it, or itself where that is "".

        Raises:
            OSError: it cannot be, or is no ordinary file.
        """
        if not name and self.folder is None:
            return reopen(self.fd, flags & ~os.O_CREAT)
        return self.at(name, make=bool(flags & os.O_CREAT)).open_file(flags, PRIVATE_FILE)

    def reading(self, name: str) -> SourceFile:
        """The file *name* of it, or itself where that is "", to be compared.

        Raises:
            CannotCopy: it cannot be read.
        """
        path = Path(str(self), name)
        try:
            return SourceFile(path, self.open(name))
        except OSError as error:
            raise cannot_read(path, error) from None

    def stat(self, name: str) -> os.stat_result:
        """What the file *name* of it is, or itself where that is "".

        Raises:
            FileNotFoundError: there is none.
        """
        if not name and self.folder is None:
            return os.fstat(self.fd)
        found = self.at(name).stat()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no {name} in {self}")
        return found

    def links(self) -> list[str]:
        """The names of its symbolic links, which all are at the top of a directory."""
        if self.folder is None:
            return []
        with os.scandir(self.folder.fd) as entries:
            return [entry.name for entry in entries if entry.is_symlink()]

    def room_bytes(self) -> int:
        """How much can be written to its file system."""
        return room_bytes(self.fd)
