"""How much memory there is for someone who must not be the one to exhaust it."""

import contextlib
import re
from pathlib import Path

_AVAILABLE = re.compile(rb"^MemAvailable: +(\d+) kB$", re.MULTILINE)
_CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory that can be had without swapping: of the machine, and of each cgroup (version 2) we are in."""
    found = _AVAILABLE.search(Path("/proc/meminfo").read_bytes())
    available = 1024 * int(found[1]) if found else 0
    for directory in _own_cgroups():
        with contextlib.suppress(OSError, ValueError):  # "max", or not to be seen
            limit = int((directory / "memory.max").read_text())
            available = min(available, max(0, limit - int((directory / "memory.current").read_text())))
    return available


def _own_cgroups() -> list[Path]:
    """Those that this process is in, from the innermost out."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                own = _CGROUPS / path.lstrip("/")
                return [own, *(parent for parent in own.parents if parent.is_relative_to(_CGROUPS))]
    return []
