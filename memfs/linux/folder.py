"""A directory that is held by a descriptor: whatever happens to its name, its entries are still found.

A path is looked up anew by every system call, and whoever may write to one of its directories can change
meanwhile where it leads. So the directory is opened once, and everything below it is named by that
descriptor, one component at a time. No symbolic link below it is followed. openat2(2) with RESOLVE_BENEATH
would open a file in the same way, but a file is also made, renamed and removed, and those calls take the
descriptor of its directory and its last component (unlinkat(2), renameat2(2), mkdirat(2), linkat(2)).

The kernel's rules are here, and no policy: who can change the entries of a directory.
"""

import contextlib
import errno
import grp
import os
import pwd
import stat as stat_module
from collections.abc import Iterator
from typing import Self

import attrs

from memfs.linux.syscalls import exchange

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ANYONE = stat_module.S_IRWXG | stat_module.S_IRWXO
_ROOT = 0


class Folder:
    """A directory that is held. The owner closes it, and with it the directories below that it has opened.

    Attributes:
        fd: a descriptor, open for reading where this user may list the directory, else by O_PATH.
        path: for messages only.
        stat: as it was when the directory was opened.
        is_private: whether no one but root and this user can make, rename or remove its entries.
        is_sticky: whether an entry is renamed and removed by no one but its owner, root and this user.
    """

    def __init__(self, fd: int, path: str | None = None, *, is_listed: bool = True) -> None:
        """Own *fd*; *path* is asked from the kernel where it is not given."""
        self.fd = fd
        self._is_listed = is_listed
        self.path = os.readlink(f"/proc/self/fd/{fd}") if path is None else path
        self.stat = os.fstat(fd)
        is_trusted = self.stat.st_uid in (_ROOT, os.geteuid())
        self.is_private = is_trusted and not _others_may_write(fd, self.stat)
        self.is_sticky = is_trusted and bool(self.stat.st_mode & stat_module.S_ISVTX)
        self._inside: dict[str, Folder] = {}

    @classmethod
    def open(cls, path: str, at: "Folder | None" = None) -> Self:
        """Hold the directory *path*, relative to *at*; links in it are followed as the kernel does.

        Raises:
            OSError: ENOENT, ENOTDIR, EACCES.
        """
        dir_fd = None if at is None else at.fd
        try:
            return cls(os.open(path or ".", _DIRECTORY, dir_fd=dir_fd))
        except PermissionError:  # it may be one whose entries can be opened and not listed
            return cls(os.open(path or ".", _DIRECTORY | os.O_PATH, dir_fd=dir_fd), is_listed=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        for folder in self._inside.values():
            folder.close()
        self._inside.clear()
        os.close(self.fd)

    def keeps(self, found: os.stat_result) -> bool:
        """Whether no one but root and this user can have put an entry there that is as *found* tells.

        In a sticky directory that is one of theirs which has no other name: a file that someone else made a
        second name for (fs.protected_hardlinks=0) has two.
        """
        if self.is_private:
            return True
        is_trusted = found.st_uid in (_ROOT, os.geteuid())
        return self.is_sticky and is_trusted and (stat_module.S_ISDIR(found.st_mode) or found.st_nlink == 1)

    def names(self) -> list[str]:
        """The names of its entries.

        Raises:
            PermissionError: this user may not list it.
        """
        self._ensure_listed()
        return os.listdir(self.fd)

    def at(self, name: str, *, make: int | None = None) -> "FolderEntry":
        """The entry below it that the relative path *name* leads to, through no symbolic link.

        With *make*, directories on the way that are not there are made with that mode.

        Raises:
            OSError: a directory on the way cannot be opened; EINVAL for ``..``.
        """
        folder = self
        *parents, last = name.split("/")
        if not {"", ".", ".."}.isdisjoint((*parents, last)):
            raise OSError(errno.EINVAL, f"{name!r} does not lead below {self.path}")
        for part in parents:
            folder = folder._enter(part, make)
        return FolderEntry(folder, last)

    def _enter(self, name: str, make: int | None) -> "Folder":
        folder = self._inside.get(name)
        if folder is None:
            entry = FolderEntry(self, name)
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, make, dir_fd=self.fd)
            folder = self._inside[name] = entry.open_folder()
        return folder

    def clear(self) -> None:
        """Remove all that is in it.

        shutil.rmtree() opens a directory by a name that it has looked at before, and compares afterwards:
        meanwhile it can have become a FIFO, which blocks, or a device. And it is recursive: a thousand
        directories in each other end it.

        Raises:
            OSError: something cannot be removed.
        """
        way: list[tuple[FolderEntry | None, Folder, Iterator[str]]] = [(None, self, iter(self.names()))]
        try:
            while way:
                made_by, folder, names = way[-1]
                for name in names:
                    entry = FolderEntry(folder, name)
                    try:
                        with contextlib.suppress(FileNotFoundError):
                            entry.unlink()
                    except IsADirectoryError:
                        inner = entry.open_folder()
                        way.append((entry, inner, iter(inner.names())))
                        break
                else:
                    way.pop()
                    if made_by is not None:
                        folder.close()
                        made_by.remove_directory()
        finally:
            for _, folder, _ in way[1:]:
                folder.close()

    def sync(self) -> None:
        """Have its entries on the disk.

        Raises:
            PermissionError: this user may not list it.
        """
        self._ensure_listed()
        os.fsync(self.fd)

    def _ensure_listed(self) -> None:
        if not self._is_listed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _others_may_write(fd: int, found: os.stat_result) -> bool:
    """Whether anyone but the owner may write to a directory.

    The bits of the group are the mask of an ACL where there is one (acl(5)), so they are set where it lets
    another user or group in. With umask 002, which many distributions set, they are set for nothing: the
    group is one that has no member but the user.
    """
    mode = found.st_mode
    if mode & stat_module.S_IWOTH:
        return True
    return bool(mode & stat_module.S_IWGRP) and (_has_acl(fd) or not _is_own_group(found.st_gid))


def _has_acl(fd: int) -> bool:
    try:
        os.getxattr(fd, "system.posix_acl_access")
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.EOPNOTSUPP)
    return True


def _is_own_group(gid: int) -> bool:
    """Whether a group is the one that useradd(8) makes for this user, and for no one else."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (gid, group.gr_name) and set(group.gr_mem) <= {user.pw_name}


def room_bytes(fd: int) -> int:
    """How much this user can still write to the file system of *fd*."""
    room = os.fstatvfs(fd)
    return room.f_bavail * room.f_frsize


def reopen(fd: int, flags: int) -> int:
    """Open what *fd* refers to once more, with other flags: no name is looked up.

    Raises:
        OSError: as by open(2).
    """
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def is_ours(found: os.stat_result) -> bool:
    """Whether a file or a directory is this user's, and no one else can open it or has a name for it."""
    if found.st_uid != os.geteuid() or found.st_mode & _ANYONE:
        return False
    is_file = stat_module.S_ISREG(found.st_mode) and found.st_nlink == 1
    return is_file or stat_module.S_ISDIR(found.st_mode)


@attrs.frozen
class FolderEntry:
    """A name in a directory that is held; there may be something of that name."""

    folder: Folder
    name: str

    def __str__(self) -> str:
        """Its path, for messages."""
        return os.path.join(self.folder.path, self.name)

    def beside(self, name: str) -> "FolderEntry":
        """Another entry of the same directory."""
        return FolderEntry(self.folder, name)

    def stat(self) -> os.stat_result | None:
        """What is there, a symbolic link being one; None for nothing."""
        try:
            return os.stat(self.name, dir_fd=self.folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, flags: int = os.O_RDONLY, mode: int = 0) -> int:
        """Open it, or make it; never through a symbolic link, and without waiting for anyone.

        Raises:
            OSError: ELOOP for a symbolic link, ENXIO for a FIFO that no one reads.
        """
        kept = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(self.name, flags | kept, mode, dir_fd=self.folder.fd)

    def open_file(self, flags: int = os.O_RDONLY, mode: int = 0) -> int:
        """The same, if it is an ordinary file.

        Raises:
            OSError: EINVAL where it is none; else as :meth:`open`.
        """
        fd = self.open(flags, mode)
        if not stat_module.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not an ordinary file")
        return fd

    def open_folder(self) -> Folder:
        """Hold the directory that it is.

        Raises:
            OSError: ENOTDIR where it is none, or a symbolic link.
        """
        fd = os.open(self.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.folder.fd)
        return Folder(fd, str(self))

    def make_folder(self, mode: int) -> Folder:
        """Make it a new directory, and hold that.

        Raises:
            OSError: EEXIST; EPERM where another one has come in its place.
        """
        os.mkdir(self.name, mode, dir_fd=self.folder.fd)
        folder = self.open_folder()
        # mkdir(2) gives no descriptor: whoever may rename the new directory can have done so.
        if folder.stat.st_uid != os.geteuid() or folder.names():
            folder.close()
            raise OSError(errno.EPERM, "a new directory in it belongs to someone else")
        return folder

    def link_to(self, target: str) -> None:
        """Make it a symbolic link that leads to *target*."""
        os.symlink(target, self.name, dir_fd=self.folder.fd)

    def link_from(self, fd: int) -> None:
        """Make it a name of the file *fd*, which may have none.

        Raises:
            FileExistsError: there is something.
        """
        # With a directory's descriptor Python calls linkat(2), which follows this link.
        directory = self.folder.fd
        os.link(f"/proc/self/fd/{fd}", self.name, src_dir_fd=directory, dst_dir_fd=directory)

    def rename_to(self, other: "FolderEntry") -> None:
        """Give it the name *other*, in whose place it comes."""
        os.rename(self.name, other.name, src_dir_fd=self.folder.fd, dst_dir_fd=other.folder.fd)

    def exchange_with(self, other: "FolderEntry") -> None:
        """Have this name and *other* change places."""
        exchange(self.folder.fd, os.fsencode(self.name), other.folder.fd, os.fsencode(other.name))

    def unlink(self) -> None:
        """Remove it, unless it is a directory."""
        os.unlink(self.name, dir_fd=self.folder.fd)

    def remove_directory(self) -> None:
        """Remove it, which is an empty directory."""
        os.rmdir(self.name, dir_fd=self.folder.fd)

    def remove(self) -> None:
        """Remove it, and all that is in it.

        Raises:
            FileNotFoundError: there is nothing.
        """
        try:
            self.unlink()
        except IsADirectoryError:
            with self.open_folder() as folder:
                folder.clear()
            self.remove_directory()
