"""What is mounted where: ``/proc/self/mountinfo``, see proc(5). No file system is asked anything here."""

import os
import re
import select
import threading
from collections import deque
from collections.abc import Mapping as ReadOnlyDict
from pathlib import Path

import attrs

from memfs.linux.procfs import read_file, read_whole


@attrs.frozen
class Mount:
    """One mount.

    Attributes:
        id: its number, which the kernel may give to another mount once this one is unmounted.
        parent: the number of the mount on which its mount point lies.
        mountpoint: its path, as seen from our root.
        fs_type: with the subtype: ``fuse.memfs``.
        source: what the type says it is of.
        owner: the uid that mounted it, where the file system tells (FUSE does); else None.
        device: major and minor number, which maps names for files of this mount.
    """

    id: int
    parent: int
    mountpoint: bytes
    fs_type: bytes
    source: bytes
    owner: int | None
    device: tuple[int, int]


_LINE = re.compile(
    rb"^(\d+) (\d+) (\d+):(\d+) [^ \n]* ([^ \n]*) [^ \n]*(?: (?!- )[^ \n]*)*"
    rb" - ([^ \n]*) ([^ \n]*) ([^ \n]*)$",
    re.MULTILINE,
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_USER_ID = re.compile(rb"(?:^|,)user_id=(\d+)")
_MOUNT_ID = re.compile(rb"^mnt_id:\s*(\d+)$", re.MULTILINE)


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts of a mountinfo text, the last one on a path being the one that shows."""
    mounts = []
    for number, parent, major, minor, mountpoint, fs_type, source, options in _LINE.findall(text):
        owner = _USER_ID.search(options)
        mounts.append(
            Mount(
                int(number),
                int(parent),
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


def mount_id_of(fd: int) -> int:
    """The number of the mount that the file of descriptor *fd* was reached through; see proc(5), fdinfo."""
    found = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{fd}").read_bytes())
    assert found is not None  # printed since Linux 3.15
    return int(found[1])


def mount_by_id(number: int) -> Mount | None:
    """The mount that has the number *number* now; None where there is none in this mount namespace."""
    return next((mount for mount in read_mounts() if mount.id == number), None)


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


def resolve(path: str | os.PathLike[str], unasked: bytes) -> str:
    """*path* without symbolic links, found without asking any file system of type *unasked*.

    Only readlink(2) is called, which does not ask what is mounted on the last name of its path. Behind
    the mount point of such a file system nothing is looked up: names there stay as they are.
    """
    silent = {os.fsdecode(mount.mountpoint) for mount in mounts_of_type(unasked)}
    path = os.path.join(os.getcwd(), path)
    names = deque(path.split("/"))
    found = "/"
    links = 0
    asked = True
    while names:
        name = names.popleft()
        if name in ("", "."):
            continue
        if name == "..":
            found = os.path.dirname(found)
            asked = not any(found == place or found.startswith(f"{place}/") for place in silent)
            continue
        found = os.path.join(found, name)
        if not asked or links == _MOST_LINKS:
            continue
        try:
            target = os.readlink(found)
        except OSError:
            asked = found not in silent
            continue
        links += 1
        names.extendleft(reversed(target.split("/")))
        found = "/" if target.startswith("/") else os.path.dirname(found)
    return found


def mount_on(path: str) -> Mount | None:
    """The mount whose mount point is *path*, the topmost where there are several; None for no mount.

    *path* is one of :func:`resolve`. What is mounted there is not asked: its server may be dead or stuck.
    """
    found = None
    for mount in read_mounts():
        if mount.mountpoint == os.fsencode(path):
            found = mount
    return found
