"""Which other processes map an object: told by their maps, so far as these can be seen."""

import contextlib
import os
import re
from collections.abc import Iterable

from memfs.linux import procfs
from memfs.linux.stat import read_stat
from memfs.linux.status import read_thread_status
from memfs.target.origins import Device

_NUMBERS = re.compile(rb"^\S+ \S+ \S+ (\S+) (\d+)", re.MULTILINE)

Numbers = tuple[Device, int]
"""Device and inode number."""


def find_shared(objects: Iterable[Numbers], pid: int) -> set[Numbers]:
    """Those of *objects* that some other process than *pid* maps, frozen copies of ours left out."""
    wanted = {(b"%02x:%02x" % device, b"%d" % inode): (device, inode) for device, inode in objects}
    found: set[Numbers] = set()
    for other in procfs.process_ids() if wanted else ():
        if other in (pid, os.getpid()):
            continue
        with contextlib.suppress(OSError):
            text = procfs.read_file(f"/proc/{other}/maps")
            here = wanted.keys() & set(_NUMBERS.findall(text))
            if here and not _is_copy(other):
                found.update(wanted[numbers] for numbers in here)
    return found


def _is_copy(pid: int) -> bool:
    """Whether *pid* is a frozen copy that a worker of the same mount holds, and so never runs."""
    tracer = read_thread_status(pid, pid).tracer
    return bool(tracer and read_stat(tracer).parent == os.getppid() and not read_stat(pid).exit_signal)
