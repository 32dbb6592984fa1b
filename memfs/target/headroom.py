"""How much more memory a process can be charged with before the kernel has to end someone.

That is bounded by each memory cgroup that it is in (``Documentation/admin-guide/cgroup-v2.rst``, and
``cgroup-v1/memory.rst``), and by the machine. Pages of files count as free, since they can be had at once.
"""

import os
import re

from memfs.linux.mountinfo import mounts_of_type
from memfs.linux.procfs import read_file

_MACHINE_SHARE = 20
"""Of the machine's memory the kernel needs some for itself: a twentieth."""
_AVAILABLE = re.compile(rb"^Mem(Total|Available): +(\d+) kB$", re.MULTILINE)
_UNITED = ("memory.max", "memory.current", re.compile(rb"^(?:in)?active_file (\d+)$", re.MULTILINE))
_SEPARATE = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    re.compile(rb"^total_(?:in)?active_file (\d+)$", re.MULTILINE),
)
_NO_LIMIT = b"max"


def free_bytes(pid: int) -> int:
    """So many bytes more can be charged to process *pid*; negative where it is already too much.

    Raises:
        OSError: that cannot be found out.
    """
    free = _free_of_machine()
    for line in read_file(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(b":", 2)
        if not controllers:
            free = min([free, *_free_in(b"cgroup2", path, *_UNITED)])
        elif b"memory" in controllers.split(b","):
            free = min([free, *_free_in(b"cgroup", path, *_SEPARATE)])
    return free


def _free_of_machine() -> int:
    found = {name: 1024 * int(size) for name, size in _AVAILABLE.findall(read_file("/proc/meminfo"))}
    return found[b"Available"] - found[b"Total"] // _MACHINE_SHARE


def _free_in(fs_type: bytes, path: bytes, limit: str, used: str, cached: re.Pattern[bytes]) -> list[int]:
    """What each cgroup with a limit, from the one at *path* up to the root, has left."""
    for mount in mounts_of_type(fs_type):
        top = os.fsdecode(mount.mountpoint)
        directory = os.path.normpath(f"{top}/{os.fsdecode(path)}")
        if fs_type == b"cgroup" and not os.path.exists(f"{top}/{limit}"):
            continue  # that of another controller
        os.stat(directory)
        found = []
        while directory.startswith(top):
            if os.path.exists(f"{directory}/{limit}"):
                most = read_file(f"{directory}/{limit}").strip()
                if most != _NO_LIMIT:
                    files = sum(map(int, cached.findall(read_file(f"{directory}/memory.stat"))))
                    found.append(int(most) + files - int(read_file(f"{directory}/{used}")))
            directory = os.path.dirname(directory)
        return found
    raise FileNotFoundError(f"no {os.fsdecode(fs_type)} file system shows the limits on memory")
