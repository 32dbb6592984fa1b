"""Who serves a FUSE mount: the process that holds its descriptor on /dev/fuse."""

import os
import re
import select

from memfs.linux import procfs
from memfs.linux.syscalls import borrow_descriptor

_CONNECTION = re.compile(rb"^fuse_connection:\s*(\d+)$", re.MULTILINE)


def find_server(device: tuple[int, int]) -> int | None:
    """The pid that serves the FUSE file system on *device*; None where none can be seen.

    fdinfo tells a connection's number, which is the minor number of the device; older kernels do not
    print it. The number is free for the next mount as soon as a file system is unmounted, though its
    server may still be ending: one that has lost its connection does not count. The mount itself is not
    asked.
    """
    for pid in procfs.process_ids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        if any(_is_connection(pid, name, device[1]) for name in names):
            return pid
    return None


def _is_connection(pid: int, name: str, number: int) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/fd/{name}") != "/dev/fuse":
            return False
        found = _CONNECTION.search(procfs.read_file(f"/proc/{pid}/fdinfo/{name}"))
    except OSError:
        return False
    return found is not None and int(found[1]) == number and _is_connected(pid, int(name))


def _is_connected(pid: int, fd: int) -> bool:
    """Whether requests still come; true where we may not look."""
    try:
        borrowed = borrow_descriptor(pid, fd)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(borrowed, 0)
        return not any(events & select.POLLERR for _, events in poll.poll(0))
    finally:
        os.close(borrowed)
