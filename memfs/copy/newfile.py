"""A file that gets its name when it is whole: until then it has none, or one beside the destination.

Where the file system can (O_TMPFILE), nothing is left of a file whose maker is killed. Elsewhere it has
a name of our own, and the next copy to the same destination clears it away.
"""

import contextlib
import errno
import fcntl
import os
import stat as stat_module
from pathlib import Path

from memfs.errors import CannotCopy
from memfs.linux.mountinfo import read_mounts
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import reserve

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
"""Memory is no one else's business: what is new is for its owner only."""

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)
_PREFIX_LETTERS = 40
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MEMORY_FILE_SYSTEMS = (b"tmpfs", b"ramfs")
_MOST_RESERVED = 4096


def cannot_write(path: Path, error: OSError) -> CannotCopy:
    """The error for a destination that does not take what it is given."""
    if error.errno in _NO_ROOM:
        return CannotCopy(
            f"there is no room for {path}", "free some, or copy elsewhere; what was there is kept"
        )
    if error.errno == errno.EFBIG:
        return CannotCopy(
            f"the file system of {path} cannot hold a file so large",
            "copy the files of vmas/ instead, or to XFS, btrfs or tmpfs",
        )
    return CannotCopy(f"{path} cannot be written ({error.strerror or error})", "what was there is kept")


def why_buffered(directory: Path) -> str:
    """Why files in *directory* are written through the page cache; empty where they need not be."""
    device = os.stat(directory).st_dev
    for mount in read_mounts():
        if os.makedev(*mount.device) == device and mount.fs_type in _MEMORY_FILE_SYSTEMS:
            return f"{mount.fs_type.decode()} keeps its files in memory"
    return ""


class NewFile:
    """One file in the making. The owner closes it, whether or not it was installed.

    Attributes:
        fd: it, open for reading and writing.
        buffered: why it is written through the page cache; empty where O_DIRECT goes past it.
    """

    def __init__(self, target: Path, *, direct: bool = True, named: bool = False) -> None:
        """Make a file that is to become *target*; *named* gives it that name at once, it being new.

        Raises:
            CannotCopy: it cannot be made there.
        """
        self.target = target
        self.buffered = "" if direct else "it is small"
        self._temporary: Path | None = None
        self._named = named
        try:
            if direct:
                self.buffered = why_buffered(target.parent)
            self.fd = self._open()
        except OSError as error:
            raise cannot_write(target, error) from None

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if not self.buffered:
            try:
                return self._open_as(flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.buffered = "the file system has no O_DIRECT"
        return self._open_as(flags)

    def _open_as(self, flags: int) -> int:
        if self._named:
            return os.open(self.target, flags | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        clear_leftovers(self.target)
        try:
            fd = os.open(self.target.parent, flags | os.O_TMPFILE, PRIVATE_FILE)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            path = temporary_name(self.target)
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
            self._temporary = path
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def begin(self, size_bytes: int, extents: list[Span]) -> None:
        """Give it its size, and room for its data.

        Raises:
            CannotCopy: there is no room.
        """
        try:
            # Up to the whole page, so that the last one can be written as one: end_at cuts it off.
            os.ftruncate(self.fd, -(-size_bytes // PAGE_BYTES) * PAGE_BYTES)
            for extent in extents if len(extents) <= _MOST_RESERVED else ():
                reserve(self.fd, extent.start, extent.size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise cannot_write(self.target, error) from None

    def write(self, offset: int, view: memoryview) -> None:
        """Write *view*, which holds whole pages.

        Raises:
            CannotCopy: it cannot be written.
        """
        try:
            write_all(self.fd, offset, view)
        except OSError as error:
            if error.errno != errno.EINVAL or self.buffered:
                raise cannot_write(self.target, error) from None
            self.buffered = "the file system takes no O_DIRECT write of a page"
            _set_direct(self.fd, False)
            self.write(offset, view)

    def finish(self, size_bytes: int, *, sync: bool = True) -> None:
        """Cut it to its size, and have it on the disk.

        Raises:
            CannotCopy: the disk did not take it.
        """
        try:
            os.ftruncate(self.fd, size_bytes)
            if sync:
                os.fsync(self.fd)
            if self.buffered:
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def install(self) -> None:
        """Give it its name, from one moment to the next; what had the name before is gone then.

        Raises:
            CannotCopy: the directory does not take it.
        """
        try:
            self._keep_attributes()
            if self._temporary is None:
                self._link()
            if self._temporary is not None:
                os.rename(self._temporary, self.target)
                self._temporary = None
            sync_directory(self.target.parent)
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def _keep_attributes(self) -> None:
        """A file that is replaced keeps its owner and its mode."""
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(self.target)
            with contextlib.suppress(PermissionError):
                os.fchown(self.fd, before.st_uid, before.st_gid)
            os.fchmod(self.fd, stat_module.S_IMODE(before.st_mode))

    def _link(self) -> None:
        directory = os.open(self.target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            itself = f"/proc/self/fd/{self.fd}"
            with contextlib.suppress(FileExistsError):
                # With a directory's descriptor Python calls linkat(2), which follows this link.
                os.link(itself, self.target.name, src_dir_fd=directory, dst_dir_fd=directory)
                return
            while self._temporary is None:
                path = temporary_name(self.target)
                with contextlib.suppress(FileExistsError):
                    os.link(itself, path.name, src_dir_fd=directory, dst_dir_fd=directory)
                    self._temporary = path
        finally:
            os.close(directory)

    def close(self) -> None:
        """Let go of it; what was not installed is gone then."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        os.close(self.fd)


def write_all(fd: int, offset: int, view: memoryview) -> None:
    """pwrite(2) until all of *view* is written."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _set_direct(fd: int, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_prefix(target: Path) -> str:
    """How the names of ours beside *target* begin."""
    return f".{target.name[:_PREFIX_LETTERS]}.memfs-new-"


def temporary_name(target: Path) -> Path:
    """A new one."""
    return target.parent / f"{temporary_prefix(target)}{os.urandom(4).hex()}"


def clear_leftovers(target: Path) -> None:
    """Remove what copies to *target* left whose process was killed: the living hold a lock on theirs."""
    for left in target.parent.glob(f"{_escape_glob(temporary_prefix(target))}*"):
        with contextlib.suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(left)
            finally:
                os.close(fd)


def _escape_glob(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def remove(path: Path) -> None:
    """Remove a file, or a directory and all that is in it."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink()
