"""Directories that are held by descriptor, reached name by name without a symbolic link of someone else's."""

import os
import stat

_OF_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_without_links(path: str) -> int:
    """An O_PATH descriptor of the directory *path*, which is absolute; no symbolic link is followed.

    Raises:
        OSError: ENOENT, EACCES; ENOTDIR where a part of it is a symbolic link or no directory.
    """
    directory, _ = _walk(path, follow=False)
    return directory


def open_trusted(path: str) -> tuple[int, bool]:
    """An O_PATH descriptor of the directory *path*, which is absolute, and whether names in it are ours.

    Symbolic links are followed until the first directory where others may write, and not from there on.

    Returns:
        The descriptor; True where nobody but us and root can change what *path* and names in it lead to.
    Raises:
        OSError: as :func:`open_without_links`.
    """
    directory, ours = _walk(path, follow=True)
    return directory, ours and not _others_may_write(os.fstat(directory))


def _walk(path: str, *, follow: bool) -> tuple[int, bool]:
    """Open *path* name by name; returns whether nobody else can replace one of the names, too."""
    directory = os.open("/", _OF_DIRECTORY)
    ours = True
    try:
        for name in filter(None, path.split("/")):
            above = os.fstat(directory)
            shared = _others_may_write(above)
            flags = _OF_DIRECTORY if follow and ours and not shared else _OF_DIRECTORY | os.O_NOFOLLOW
            below = os.open(name, flags, dir_fd=directory)
            os.close(directory)
            directory = below
            # In a directory with the sticky bit, /tmp say, others cannot replace what is not theirs.
            kept = _is_ours(above) and bool(above.st_mode & stat.S_ISVTX) and _is_ours(os.fstat(directory))
            ours = ours and (not shared or kept)
    except OSError:
        os.close(directory)
        raise
    return directory, ours


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _others_may_write(directory: os.stat_result) -> bool:
    return not _is_ours(directory) or bool(directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
