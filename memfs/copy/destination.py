"""Where a copy goes: what the path on the command line leads to, decided once and held from then on.

The last component is followed, if it is a symbolic link, and replaced, if it is a file, only where no other
user can have put it there. What comes before it is the kernel's business, as it is for cp(1).
"""

import contextlib
import errno
import os
import stat as stat_module
from collections.abc import Iterator

import attrs

from memfs.errors import CannotCopy
from memfs.linux.folder import Folder, FolderEntry

_MOST_LINKS = 40  # MAXSYMLINKS, <linux/namei.h>
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR)


@attrs.frozen
class Special:
    """A pipe, a socket or a device, which takes bytes one after the other.

    Attributes:
        fd: a descriptor of it for nothing but its identity (O_PATH).
    """

    fd: int
    is_socket: bool


@contextlib.contextmanager
def found(path: str, name: str | None) -> Iterator[FolderEntry | Special]:
    """What *path* is: an entry of a directory, with or without a file there, or something special.

    In a directory it is the entry *name*, unless that is None.

    Raises:
        CannotCopy: it cannot be reached, or another user has put it there.
    """
    with contextlib.ExitStack() as held:
        yield _find(path, name, held)


def _find(path: str, name: str | None, held: contextlib.ExitStack) -> FolderEntry | Special:
    folder: Folder | None = None
    for _ in range(_MOST_LINKS):
        parent, last = _split(path, folder)
        folder = _hold(parent, folder, held)
        entry = FolderEntry(folder, last)
        try:
            fd = os.open(last, _PATH_ONLY, dir_fd=folder.fd)
        except FileNotFoundError:
            return entry
        except OSError as error:
            raise CannotCopy(f"{entry} cannot be written ({error.strerror})") from None
        held.callback(os.close, fd)
        stat = os.fstat(fd)
        if stat_module.S_ISLNK(stat.st_mode):
            _ensure_followable(entry, stat)
            path = os.readlink("", dir_fd=fd)
            if not _is_magic(folder):
                continue
            # A link of /proc/PID/fd leads to what is open, whatever its text.
            fd = os.open(last, os.O_PATH | os.O_CLOEXEC, dir_fd=folder.fd)
            held.callback(os.close, fd)
            stat = os.fstat(fd)
            if _is_special(stat):
                return Special(fd, stat_module.S_ISSOCK(stat.st_mode))
        elif stat_module.S_ISDIR(stat.st_mode) and name is not None:
            path, name = os.path.join(last, name), None
        elif _is_special(stat):
            ensure_ours(entry, stat)
            return Special(fd, stat_module.S_ISSOCK(stat.st_mode))
        else:
            ensure_ours(entry, stat)
            return entry
    raise CannotCopy(f"{path} cannot be written ({os.strerror(errno.ELOOP)})", "name the file itself")


def _split(path: str, folder: Folder | None) -> tuple[str, str]:
    """The directory of *path*, which is relative to *folder*, and the last component."""
    parent, last = os.path.split(path.rstrip("/") or "/")
    if last in ("", ".", ".."):
        whole = path if folder is None else os.path.join(folder.path, path)
        parent, last = os.path.split(os.path.realpath(whole))
    return parent, last or "."


def _hold(parent: str, at: Folder | None, held: contextlib.ExitStack) -> Folder:
    try:
        return held.enter_context(Folder.open(parent, at))
    except OSError as error:
        path = os.path.abspath(parent if at is None else os.path.join(at.path, parent))
        if error.errno in _NO_DIRECTORY:
            raise CannotCopy(f"there is no directory {path}", f"mkdir -p {path}") from None
        raise CannotCopy(f"{path} cannot be written ({error.strerror})", "name another directory") from None


def _is_magic(folder: Folder) -> bool:
    return folder.stat.st_dev == os.stat("/proc").st_dev


def _is_special(found: os.stat_result) -> bool:
    mode = found.st_mode
    return not (stat_module.S_ISREG(mode) or stat_module.S_ISDIR(mode))


def _ensure_followable(link: FolderEntry, found: os.stat_result) -> None:
    """Make sure that a symbolic link is not there for us to fall for.

    fs.protected_symlinks, where it is set, says the same of sticky directories, for cp(1) too.
    """
    if not link.folder.keeps(found):
        raise CannotCopy(
            f"{link} is a symbolic link of uid {found.st_uid} in a directory that others may write to",
            "name what it leads to, or a directory of your own",
        )


def ensure_ours(entry: FolderEntry, found: os.stat_result) -> None:
    """Make sure that no one else gets an image: what is there is this user's, or no other can have put it.

    fs.protected_regular and fs.protected_fifos say the same of sticky directories, for cp(1) too.
    """
    if entry.folder.is_private:
        return
    if found.st_uid != os.geteuid():
        raise CannotCopy(
            f"{entry} belongs to uid {found.st_uid}, in a directory that others may write to",
            "name something new, or a directory of your own",
        )
    if _is_special(found) and found.st_nlink != 1:
        raise CannotCopy(
            f"{entry} has other names, in a directory that others may write to", "name one in your own"
        )
