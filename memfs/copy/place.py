"""Where a source is: which file or directory of which mount, and of which process and snapshot.

A client of the mount: it knows paths, and nothing of who serves them.
"""

import os
import re
from pathlib import Path

import attrs

from memfs.errors import CannotCopy
from memfs.linux.mountinfo import Mount, mounts_of_type
from memfs.tree.names import FS_TYPE

_ROOT = 0
_SHORT = re.compile(r"[1-9]\d*(/.*)?")


@attrs.frozen
class Place:
    """A file or a directory of a process, in a mount.

    Attributes:
        path: it, without symbolic links.
        process: the directory of the process.
        snapshot: the directory of the snapshot that it is in; None where it is live.
        parts: the names that lead to it from the process or the snapshot; none for that itself.
        device: that of the mount (``st_dev``), which every file has that is opened below *path*.
    """

    path: Path
    process: Path
    snapshot: Path | None
    parts: tuple[str, ...]
    device: int

    @property
    def name(self) -> str:
        """What it is called from the process on, for messages."""
        return str(self.path.relative_to(self.process.parent))


def find_place(source: str) -> Place:
    """The place of *source*: a path in a mount, or what follows the mount point in one.

    The mount is one of root's or of this user's: any user can mount a file system of that type, and serve
    in it what he likes.

    Raises:
        CannotCopy: there is none, or it is not in a mount of memfs.
    """
    mounts = [mount for mount in mounts_of_type(FS_TYPE) if mount.owner in (_ROOT, os.geteuid())]
    path = _existing(source, mounts)
    for mount in mounts:
        mountpoint = Path(os.fsdecode(mount.mountpoint))
        if path.is_relative_to(mountpoint):
            return _parse(path, mountpoint, os.makedev(*mount.device))
    raise CannotCopy(f"{source} is not in a mount of memfs", "cp(1) copies other files")


def _existing(source: str, mounts: list[Mount]) -> Path:
    if os.path.lexists(source):
        return Path(os.path.realpath(source))
    if _SHORT.fullmatch(source):
        if not mounts:
            raise CannotCopy(
                f"there is no mount of memfs in which {source} could be", "memfs mount MOUNTPOINT"
            )
        for mount in mounts:
            path = os.path.join(os.fsdecode(mount.mountpoint), source)
            if os.path.lexists(path):
                return Path(os.path.realpath(path))
    raise CannotCopy(
        f"there is no {source}", "the process may have ended, or the mapping changed: list again"
    )


def _parse(path: Path, mountpoint: Path, device: int) -> Place:
    names = path.relative_to(mountpoint).parts
    if not names or not names[0].isdigit():
        raise CannotCopy(f"{path} is not of one process", "name the directory or a file of a process")
    process = mountpoint / names[0]
    if names[1:2] == ("snapshots",):
        if len(names) == 2:
            raise CannotCopy(f"{path} is not one snapshot", "name one, or a file of one")
        return Place(path, process, process / "snapshots" / names[2], names[3:], device)
    return Place(path, process, None, names[1:], device)
