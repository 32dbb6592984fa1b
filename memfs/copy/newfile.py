"""A file that gets its name when it is whole: until then it has none, or one beside the destination.

Where the file system can (O_TMPFILE), nothing is left of a file whose maker is killed. Elsewhere it has
a name of our own, and the next copy to the same destination clears it away, unless another user can have
put it there.
"""

import contextlib
import errno
import fcntl
import os
import stat as stat_module

from memfs.errors import CannotCopy
from memfs.linux.folder import Folder, FolderEntry, is_ours
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


def cannot_write(path: FolderEntry | str, error: OSError) -> CannotCopy:
    """The error for a destination that does not take what it is given."""
    if error.errno in _NO_ROOM:
        return CannotCopy(
            f"there is no room for {path}", "free some, or copy elsewhere; what was there is kept"
        )
    if error.errno == errno.EFBIG:
        return CannotCopy(
            f"the file system of {path} cannot hold a file so large",
            "copy vmas/ instead of mem; pack what is itself too large by tar -cS; or take XFS or tmpfs",
        )
    return CannotCopy(f"{path} cannot be written ({error.strerror or error})", "what was there is kept")


def why_buffered(directory: Folder) -> str:
    """Why files in *directory* are written through the page cache; empty where they need not be."""
    device = directory.stat.st_dev
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

    def __init__(self, target: FolderEntry, *, direct: bool = True, named: bool = False) -> None:
        """Make a file that is to become *target*; *named* gives it that name at once, it being new.

        Raises:
            CannotCopy: it cannot be made there.
        """
        self.target = target
        self.buffered = "" if direct else "it is small"
        self._temporary: FolderEntry | None = None
        self._named = named
        try:
            if direct:
                self.buffered = why_buffered(target.folder)
            self.fd = self._open()
        except OSError as error:
            raise cannot_write(target, error) from None

    def _open(self) -> int:
        if not self.buffered:
            try:
                return self._open_as(os.O_RDWR | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.buffered = "the file system has no O_DIRECT"
        return self._open_as(os.O_RDWR)

    def _open_as(self, flags: int) -> int:
        new = flags | os.O_CREAT | os.O_EXCL
        if self._named:
            return self.target.open(new, PRIVATE_FILE)
        clear_leftovers(self.target)
        try:
            fd = self.target.beside(".").open(flags | os.O_TMPFILE, PRIVATE_FILE)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            temporary = temporary_of(self.target)
            fd = temporary.open(new, PRIVATE_FILE)
            self._temporary = temporary
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
                self._temporary.rename_to(self.target)
                self._temporary = None
            self.target.folder.sync()
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def _keep_attributes(self) -> None:
        """A file that is replaced keeps its owner and its mode, if no other user can have put it there."""
        before = self.target.stat() if self.target.folder.is_private else None
        if before is not None and stat_module.S_ISREG(before.st_mode):
            with contextlib.suppress(PermissionError):
                os.fchown(self.fd, before.st_uid, before.st_gid)
            os.fchmod(self.fd, stat_module.S_IMODE(before.st_mode))

    def _link(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.target.link_from(self.fd)
            return
        while self._temporary is None:
            temporary = temporary_of(self.target)
            with contextlib.suppress(FileExistsError):
                temporary.link_from(self.fd)
                self._temporary = temporary

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


def temporary_prefix(target: FolderEntry) -> str:
    """How the names of ours beside *target* begin."""
    return f".{target.name[:_PREFIX_LETTERS]}.memfs-new-"


def temporary_of(target: FolderEntry) -> FolderEntry:
    """A new one, which no one can guess."""
    return target.beside(f"{temporary_prefix(target)}{os.urandom(8).hex()}")


def clear_leftovers(target: FolderEntry) -> None:
    """Remove what copies to *target* left whose process was killed: the living hold a lock on theirs.

    Raises:
        CannotCopy: the directory cannot be listed.
    """
    folder = target.folder
    if not (folder.is_private or folder.is_sticky):
        return  # anyone could give that name to anything of ours
    prefix = temporary_prefix(target)
    try:
        names = folder.names()
    except OSError as error:
        raise cannot_write(target, error) from None
    for name in names:
        if name.startswith(prefix):
            with contextlib.suppress(OSError):
                _clear_leftover(target.beside(name))


def _clear_leftover(left: FolderEntry) -> None:
    fd = left.open()
    try:
        if left.folder.is_private or is_ours(os.fstat(fd)):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.remove()
    finally:
        os.close(fd)
