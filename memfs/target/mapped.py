"""The inode behind a mapping: looked at, and opened if it is a regular file.

Two ways lead there. ``/proc/PID/map_files`` needs CAP_CHECKPOINT_RESTORE (Linux 5.9) or CAP_SYS_ADMIN, and
follows the pid. The path that maps prints leads wherever it leads now. So what was found is held against
the mapping; neither way is taken for files that someone else serves, since an open can last for ever.
"""

import contextlib
import enum
import errno
import os
import stat as stat_module
from collections.abc import Iterator

from memfs.linux.maps import Mapping
from memfs.linux.mountinfo import MountList
from memfs.linux.selfmap import map_line

_ZERO_NUMBER = os.makedev(1, 5)  # Documentation/admin-guide/devices.txt


class Look(enum.Enum):
    """What stat(2) tells of an inode."""

    NOTHING = enum.auto()
    """It was not found."""
    REGULAR = enum.auto()
    ZERO = enum.auto()
    """``/dev/zero``."""
    DEVICE = enum.auto()
    """Any other device node."""


def look_at(pid: int, mapping: Mapping, ours: MountList) -> Look:
    """What kind of inode *mapping* of process *pid* shows, a file on one of the mounts *ours* or on theirs.

    An answer REGULAR may be wrong for a program that was exec'ed meanwhile, ZERO never is.
    """
    for path, is_link in _ways(pid, mapping, ours):
        with contextlib.suppress(OSError, ValueError), _looked_at(path) as fd:
            found = os.fstat(fd)
            exact = found.st_ino == mapping.inode and _device(found) == mapping.device
            if stat_module.S_ISREG(found.st_mode):
                if not exact and not is_link:
                    os.close(_open_same(fd, mapping))
                return Look.REGULAR
            if exact and stat_module.S_ISCHR(found.st_mode) and found.st_rdev == _ZERO_NUMBER:
                return Look.ZERO
            if exact or is_link:
                return Look.DEVICE
    return Look.NOTHING


def open_proven(pid: int, mapping: Mapping, ours: MountList) -> int:
    """Open the regular file that *mapping* of process *pid* shows.

    Raises:
        OSError: it is not there, not ours to read, or something else.
    """
    for path, _ in _ways(pid, mapping, ours):
        with contextlib.suppress(OSError, ValueError), _looked_at(path) as fd:
            if stat_module.S_ISREG(os.fstat(fd).st_mode):
                return _open_same(fd, mapping)
    raise FileNotFoundError(errno.ENOENT, "the mapped object cannot be opened", mapping.path)


def open_linked(pid: int, mapping: Mapping) -> int:
    """The same by map_files alone, for a file that someone else serves: it may never return.

    Raises:
        OSError: as :func:`open_proven`.
    """
    with _looked_at(_link(pid, mapping)) as fd:
        if not stat_module.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is no regular file", mapping.path)
        return _open_same(fd, mapping)


def _link(pid: int, mapping: Mapping) -> bytes:
    return f"/proc/{pid}/map_files/{mapping.span}".encode()


def _ways(pid: int, mapping: Mapping, ours: MountList) -> Iterator[tuple[bytes, bool]]:
    """Paths that may lead to the inode, each with whether it is a link of map_files.

    A path is not even looked at where it leads into another file system, which someone may serve.
    """
    yield _link(pid, mapping), True
    if ours.leads_to(mapping.path, mapping.device):
        yield mapping.path, False


@contextlib.contextmanager
def _looked_at(path: bytes) -> Iterator[int]:
    """An O_PATH descriptor: to open a device or a FIFO only to look at it could do things."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_same(looked_at: int, mapping: Mapping) -> int:
    """Open a regular file if it is the object of *mapping*: if maps has the same numbers for both."""
    again = f"/proc/self/fd/{looked_at}"
    # Without O_NONBLOCK a write lease of someone else's holds an open up for 45 s (fcntl(2)).
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(again, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is for the owner
        fd = os.open(again, flags)
    try:
        line = map_line(fd)
        if (line.device, line.inode) != (mapping.device, mapping.inode):
            raise FileNotFoundError(errno.ENOENT, "another file has its place")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _device(found: os.stat_result) -> tuple[int, int]:
    return os.major(found.st_dev), os.minor(found.st_dev)
