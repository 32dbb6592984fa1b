"""What is mounted where: ``/proc/self/mountinfo``, see proc(5)."""

import os
import re
import select
import threading
from collections.abc import Mapping as ReadOnlyDict
from pathlib import Path

import attrs

from memfs.linux.procfs import read_file, read_whole


@attrs.frozen
class Mount:
    """One mount.

    Attributes:
        mountpoint: its path, as seen from our root.
        fs_type: with the subtype: ``fuse.memfs``.
        source: what the type says it is of.
        owner: the uid that mounted it, where the file system tells (FUSE does); else None.
        device: major and minor number, which maps names for files of this mount.
    """

    mountpoint: bytes
    fs_type: bytes
    source: bytes
    owner: int | None
    device: tuple[int, int]


_LINE = re.compile(
    rb"^\d+ \d+ (\d+):(\d+) [^ \n]* ([^ \n]*) [^ \n]*(?: (?!- )[^ \n]*)* - ([^ \n]*) ([^ \n]*) ([^ \n]*)$",
    re.MULTILINE,
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_USER_ID = re.compile(rb"(?:^|,)user_id=(\d+)")


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts of a mountinfo text, the last one on a path being the one that shows."""
    mounts = []
    for major, minor, mountpoint, fs_type, source, options in _LINE.findall(text):
        owner = _USER_ID.search(options)
        mounts.append(
            Mount(
                _unescape(mountpoint),
                _unescape(fs_type),
                _unescape(source),
                int(owner[1]) if owner else None,
                (int(major), int(minor)),
            )
        )
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace, the last one on a path being the one that shows."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def read_mounts_of(pid: int) -> list[Mount]:
    """The mounts of the namespace of process *pid*; the paths are those that it sees.

    Raises:
        OSError: it has ended, or has no namespace any more.
    """
    return parse_mountinfo(read_file(f"/proc/{pid}/mountinfo"))


def mounts_of_type(fs_type: bytes) -> list[Mount]:
    """Those of one type, the newest first."""
    return [mount for mount in reversed(read_mounts()) if mount.fs_type == fs_type]


@attrs.frozen
class MountList:
    """The mounts of a namespace at one moment.

    Attributes:
        types: the type of each file system that is mounted, by its device.
    """

    mounts: list[Mount]
    types: ReadOnlyDict[tuple[int, int], bytes]

    def leads_to(self, path: bytes, device: tuple[int, int]) -> bool:
        """Whether *path*, if it has no symbolic link in it, is on the file system on *device*."""
        over = [mount for mount in self.mounts if _is_below(path, mount.mountpoint)]
        return bool(over) and max(reversed(over), key=lambda mount: len(mount.mountpoint)).device == device


def _is_below(path: bytes, mountpoint: bytes) -> bool:
    return path.startswith(mountpoint.rstrip(b"/") + b"/")


def list_mounts(mounts: list[Mount]) -> MountList:
    """*mounts*, as a table."""
    return MountList(mounts, {mount.device: mount.fs_type for mount in mounts})


class MountTable:
    """The mounts of this process's namespace, read again only when they have changed.

    The kernel counts the changes of a mount namespace, and poll(2) tells whether it has counted one
    since it was last asked (``mounts_poll`` of fs/proc_namespace.c).
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._lock = threading.Lock()
        self._list = self._read()

    def get(self) -> MountList:
        """The mounts of now."""
        with self._lock:
            if self._poll.poll(0):
                self._list = self._read()
            return self._list

    def _read(self) -> MountList:
        return list_mounts(parse_mountinfo(read_whole(self._fd)))


_MOST_LINKS = 40  # MAXSYMLINKS


def resolve(path: str | os.PathLike[str]) -> str:
    """*path* without symbolic links, found without asking what is mounted there: readlink(2) does not."""
    for _ in range(_MOST_LINKS):
        parent, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(parent), name)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return os.fspath(path)


def mount_on(path: str | os.PathLike[str]) -> Mount | None:
    """The mount whose mount point is *path*, the topmost where there are several; None for no mount.

    The file system itself is not asked, since its daemon may be dead or stuck.
    """
    resolved = os.fsencode(resolve(path))
    found = None
    for mount in read_mounts():
        if mount.mountpoint == resolved:
            found = mount
    return found
