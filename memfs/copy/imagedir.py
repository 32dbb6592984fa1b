"""The directory of a process or of a snapshot into a new directory, which takes its place when it is whole.

``mem`` and ``core`` show the bytes of ``vmas/`` once more, and are left out; so are the link to /proc and
the snapshots of a process.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import attrs

from memfs.copy.destination import ensure_ours
from memfs.copy.files import Tools, fill
from memfs.copy.mark import MARK_NAME, Mark, mark_directory, size_and_time
from memfs.copy.newfile import (
    PRIVATE_DIRECTORY,
    NewFile,
    cannot_write,
    clear_leftovers,
    temporary_of,
)
from memfs.copy.place import Place
from memfs.copy.sourcefile import cannot_read, open_in, open_source
from memfs.errors import CannotCopy
from memfs.linux.folder import Folder, FolderEntry
from memfs.linux.syscalls import sync_file_system

_SMALL_BYTES = 1 << 20
_LEFT_OUT = frozenset(("mem", "core", "proc", "snapshots"))


@attrs.frozen
class Item:
    """Something in a directory that is copied.

    Attributes:
        name: its path in there.
        link: where it leads; None for a file.
    """

    name: str
    link: str | None = None


def list_items(place: Place) -> list[Item]:
    """What is copied of the directory *place*.

    Raises:
        CannotCopy: it cannot be listed, or is no directory that has memory in it.
    """
    if place.parts not in ((), ("vmas",)):
        raise CannotCopy(f"{place.path} is not of one process", "name the directory or a file of a process")
    found = list(_items(place.path, place.device, ""))
    return [item for item in found if place.parts or item.name not in _LEFT_OUT]


def _items(directory: Path, device: int, prefix: str) -> Iterator[Item]:
    try:
        fd = open_in(directory, device, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                if entry.is_symlink():
                    with contextlib.suppress(FileNotFoundError):
                        yield Item(prefix + entry.name, os.readlink(entry.name, dir_fd=fd))
                elif entry.is_dir(follow_symlinks=False):
                    if prefix + entry.name not in _LEFT_OUT:
                        yield from _items(directory / entry.name, device, f"{prefix}{entry.name}/")
                else:
                    yield Item(prefix + entry.name)
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_read(directory, error) from None


class NewDirectory:
    """A directory in the making, beside its place. The owner closes it, whether or not it was installed.

    Attributes:
        folder: it, held.
    """

    def __init__(self, target: FolderEntry) -> None:
        """Make one that is to become *target*.

        Raises:
            CannotCopy: it cannot be made, or *target* is something that must not be replaced.
        """
        self.target = target
        self._temporary = temporary_of(target)
        self._old = hold_replaceable(target)
        try:
            clear_leftovers(target)
            self.folder = self._temporary.make_folder(PRIVATE_DIRECTORY)
        except OSError as error:
            if self._old is not None:
                self._old.close()
            raise cannot_write(target, error) from None
        self.folder.path = str(target)  # for messages
        with contextlib.suppress(OSError):  # not all file systems have it
            fcntl.flock(self.folder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._left: Folder | None = self.folder
        """What has the temporary name, and has to go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._left is not None:
                self._left.clear()
                self._temporary.remove_directory()
        except OSError as error:
            if self._left is self._old:  # else the next copy clears it away
                raise CannotCopy(
                    f"{self.target} is whole, and what it replaces cannot be removed ({error.strerror})",
                    f"rm -r {self._temporary}",
                ) from None
        finally:
            self.folder.close()
            if self._old is not None:
                self._old.close()

    def install(self, mark: Mark, names: list[str]) -> None:
        """Put it in its place, with a mark that describes the files *names*; what was there goes.

        Raises:
            CannotCopy: it cannot be.
        """
        stats = {name: self.folder.at(name).stat() for name in names}
        # Of a live process, what was listed may not have been there any more.
        files = {name: size_and_time(stat) for name, stat in stats.items() if stat is not None}
        mark_directory(self.folder, attrs.evolve(mark, files=files))
        try:
            sync_file_system(self.folder.fd)
            try:
                self._temporary.rename_to(self.target)
                self._left = None
            except OSError as error:
                if self._old is None or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                self._temporary.exchange_with(self.target)
                self._left = self._old
            self.target.folder.sync()
        except OSError as error:
            raise cannot_write(self.target, error) from None


def hold_replaceable(target: FolderEntry) -> Folder | None:
    """Make sure that nothing of the user's is lost with *target*; returns the image that it is, if it is one.

    Raises:
        CannotCopy: it is a file, or a directory with something in it that is no image.
    """
    try:
        folder = target.open_folder()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise CannotCopy(f"{target} is not a directory", "a directory is copied to a directory") from None
    except OSError as error:
        raise cannot_write(target, error) from None
    try:
        ensure_ours(target, folder.stat)
        if names := folder.names():
            if MARK_NAME not in names:
                raise CannotCopy(f"{target} is not empty and no image of memfs copy", "name a new directory")
            return folder
    except BaseException:
        folder.close()
        raise
    folder.close()
    return None


def copy_tree(
    place: Place,
    items: list[Item],
    new: NewDirectory,
    tools: Tools,
    note: Callable[[str, str, str], None],
) -> None:
    """Copy *items* of *place* into *new*, which is not installed.

    *note* is told of each file: its name, its digest, why it was buffered. Of a live process, mappings
    come and go: one that has gone is no failure.

    Raises:
        CannotCopy: something could not be copied.
    """
    make_links(new, items)
    for item in items:
        if item.link is None:
            try:
                entry = new.folder.at(item.name, make=PRIVATE_DIRECTORY)
            except OSError as error:
                raise cannot_write(f"{new.target}/{item.name}", error) from None
            _copy_item(place, item.name, entry, tools, note)


def make_links(new: NewDirectory, items: list[Item]) -> None:
    """Make the symbolic links among *items*.

    Raises:
        CannotCopy: they cannot be made.
    """
    for item in items:
        if item.link is not None:
            try:
                new.folder.at(item.name, make=PRIVATE_DIRECTORY).link_to(item.link)
            except OSError as error:
                raise cannot_write(f"{new.target}/{item.name}", error) from None


def _copy_item(
    place: Place, name: str, entry: FolderEntry, tools: Tools, note: Callable[[str, str, str], None]
) -> None:
    source = place.path / name
    try:
        reading = open_source(source, place.device)
    except CannotCopy:
        if place.snapshot is None and not source.exists():
            return
        raise
    with reading:
        new = NewFile(entry, direct=reading.size_bytes >= _SMALL_BYTES, named=True)
        try:
            digest = fill(reading, new, tools, sync=tools.checks.verify)
            note(name, digest, new.buffered)
        finally:
            new.close()
