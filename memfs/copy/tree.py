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

from memfs.copy.files import Tools, fill
from memfs.copy.mark import MARK_NAME
from memfs.copy.newfile import (
    PRIVATE_DIRECTORY,
    NewFile,
    cannot_write,
    clear_leftovers,
    remove,
    sync_directory,
    temporary_name,
)
from memfs.copy.reading import Reading, cannot_read
from memfs.errors import CannotCopy
from memfs.linux.syscalls import exchange, sync_file_system

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


def list_items(directory: Path, parts: tuple[str, ...]) -> list[Item]:
    """What is copied of *directory*, which is *parts* below a process or a snapshot.

    Raises:
        CannotCopy: it cannot be listed, or is no directory that has memory in it.
    """
    if parts not in ((), ("vmas",)):
        raise CannotCopy(f"{directory} is not of one process", "name the directory or a file of a process")
    found = list(_items(directory, ""))
    return [item for item in found if parts or item.name not in _LEFT_OUT]


def _items(directory: Path, prefix: str) -> Iterator[Item]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise cannot_read(directory, error) from None
    for entry in entries:
        if entry.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                yield Item(prefix + entry.name, os.readlink(entry.path))
        elif entry.is_dir(follow_symlinks=False):
            if prefix + entry.name not in _LEFT_OUT:
                yield from _items(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield Item(prefix + entry.name)


class NewDirectory:
    """A directory in the making, beside its place. The owner closes it, whether or not it was installed."""

    def __init__(self, target: Path) -> None:
        """Make one that is to become *target*.

        Raises:
            CannotCopy: it cannot be made, or *target* is something that must not be replaced.
        """
        self.target = target
        self.path = temporary_name(target)
        ensure_replaceable(target)
        try:
            clear_leftovers(target)
            self.path.mkdir(mode=PRIVATE_DIRECTORY)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            raise cannot_write(target, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove(self.path)
        os.close(self._fd)

    def install(self) -> None:
        """Put it in its place; what was there goes.

        Raises:
            CannotCopy: it cannot be.
        """
        try:
            sync_file_system(self._fd)
            try:
                os.rename(self.path, self.target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                exchange(os.fsencode(self.path), os.fsencode(self.target))
            sync_directory(self.target.parent)
        except OSError as error:
            raise cannot_write(self.target, error) from None


def ensure_replaceable(target: Path) -> None:
    """Make sure that nothing of the user's is lost with *target*.

    Raises:
        CannotCopy: it is a file, or a directory with something in it that is no image.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise CannotCopy(f"{target} is not a directory", "a directory is copied to a directory")
    if any(target.iterdir()) and not (target / MARK_NAME).is_file():
        raise CannotCopy(f"{target} is not empty and no image of memfs copy", "name a new directory")


def copy_tree(
    source: Path,
    items: list[Item],
    new: NewDirectory,
    tools: Tools,
    note: Callable[[str, str, str], None],
    *,
    live: bool,
) -> None:
    """Copy *items* of *source* into *new*, which is not installed.

    *note* is told of each file: its name, its digest, why it was buffered. Of a *live* process, mappings
    come and go: one that has gone is no failure.

    Raises:
        CannotCopy: something could not be copied.
    """
    for item in items:
        path = new.path / item.name
        try:
            path.parent.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
            if item.link is not None:
                path.symlink_to(item.link)
        except OSError as error:
            raise cannot_write(new.target / item.name, error) from None
        if item.link is None:
            _copy_item(source / item.name, path, item.name, tools, note, live=live)


def _copy_item(
    source: Path, path: Path, name: str, tools: Tools, note: Callable[[str, str, str], None], *, live: bool
) -> None:
    try:
        reading = Reading(source)
    except CannotCopy:
        if live and not source.exists():
            return
        raise
    with reading:
        new = NewFile(path, direct=reading.size_bytes >= _SMALL_BYTES, named=True)
        try:
            digest = fill(reading, new, tools, sync=tools.checks.verify)
            note(name, digest, new.buffered)
        finally:
            new.close()
