"""cgroups(7), version 2: who is killed with others when memory is short, and moving one to where we are."""

import os
from collections.abc import Iterator
from pathlib import Path

from memfs.linux.procfs import read_file

_OOM_GROUP = "memory.oom.group"
_MEMBERS = "cgroup.procs"


class Cgroups:
    """The hierarchy of version 2, as far as it is mounted here."""

    def __init__(self, mounts: bytes) -> None:
        """*mounts* is a mountinfo text of this process."""
        self._mounts = list(_parse_mounts(mounts))

    def dies_with_others(self, cgroup: bytes) -> bool:
        """Whether *cgroup*, the text of ``/proc/PID/cgroup``, or one above it is killed as a whole.

        ``memory.oom.group``: where the kernel chooses one process of it, all others go too, even if it is the
        machine that has no more memory (``mem_cgroup_get_oom_group``, mm/memcontrol.c).
        """
        directory = self._find(cgroup)
        while directory is not None and (directory / _MEMBERS).exists():
            try:
                if (directory / _OOM_GROUP).read_text().strip() == "1":
                    return True
            except OSError:
                pass  # the root has none, nor has one without the memory controller
            directory = directory.parent
        return False

    def adopt(self, pid: int, cgroup: bytes) -> None:
        """Move process *pid* to *cgroup*, ours.

        Raises:
            OSError: ENOENT where it is not mounted here; EROFS, EACCES, EOPNOTSUPP.
        """
        directory = self._find(cgroup)
        if directory is None:
            raise FileNotFoundError
        with (directory / _MEMBERS).open("wb", buffering=0) as members:
            members.write(b"%d" % pid)

    def _find(self, cgroup: bytes) -> Path | None:
        path = _parse_cgroup(cgroup)
        if path is None or path.startswith(b"/.."):  # outside of our cgroup namespace
            return None
        for root, mountpoint in self._mounts:
            if (path + b"/").startswith(root.rstrip(b"/") + b"/"):
                below = path[len(root.rstrip(b"/")) :].lstrip(b"/")
                return Path(os.fsdecode(mountpoint)) / os.fsdecode(below)
        return None


def move_apart(pid: int) -> None:
    """Have process *pid* be in our cgroup, if all in its own would be killed with it when memory is short.

    Raises:
        OSError: it stays.
    """
    theirs, ours = read_file(f"/proc/{pid}/cgroup"), read_file("/proc/self/cgroup")
    groups = Cgroups(read_file("/proc/self/mountinfo"))
    if _parse_cgroup(theirs) != _parse_cgroup(ours) and groups.dies_with_others(theirs):
        groups.adopt(pid, ours)


def _parse_cgroup(text: bytes) -> bytes | None:
    """The path in the hierarchy of version 2; None where that does not count this process."""
    for line in text.splitlines():
        if line.startswith(b"0::"):
            return line.removeprefix(b"0::")
    return None


def _parse_mounts(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Which part of it is mounted, and where."""
    for line in text.splitlines():
        mount, _, file_system = line.partition(b" - ")
        if file_system.startswith(b"cgroup2 "):
            _, _, _, root, mountpoint, *_ = mount.split(b" ")
            yield root, mountpoint
