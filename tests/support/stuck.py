"""A process with a real userfaultfd: some of its pages fault for ever, unless it is told to serve them.

    stuck.py [--seed N] [--pages N]

It maps one private anonymous region. Its even-numbered runs of 16 pages are written with the pattern; all
the other pages are missing, and the whole region is registered with the userfaultfd. Whoever touches a
missing page by process_vm_readv blocks, killable, until it is served. /proc/PID/mem does not block:
get_user_pages may not wait there, so the read ends with EIO (seen on Linux 6.18). It prints one JSON line
and obeys:

    wait           block until somebody faults; answers the address. A test knows then that a reader is stuck
    pending        the addresses of faults that `wait` has not told of, without blocking
    serve SEED     fill every missing page with the pattern of SEED (UFFDIO_COPY): blocked readers go on
    release        close the userfaultfd: blocked readers go on and find zeros
    rss            VmRSS and so on, in bytes
    exit           end

Needs root, or vm.unprivileged_userfaultfd = 1. Standard library only.
"""

import argparse
import ctypes
import fcntl
import os
import select
import struct
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.describe import Mapping, Run
from support.kernel import Map, Prot
from support.lines import Answer, commands, memory_figures, obey, say
from support.pattern import PAGE, fill
from support.room import write_pattern

ADDRESS = 0x2000_0000_0000
RUN_PAGES = 16
# <linux/userfaultfd.h>
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_COPY = 0xC028AA03
_API_VERSION = 0xAA
_REGISTER_MODE_MISSING = 1
_EVENT_PAGEFAULT = 0x12
_API = struct.Struct("=QQQ")  # struct uffdio_api: api features ioctls
_REGISTER = struct.Struct("=QQQQ")  # struct uffdio_register: start len mode ioctls
_COPY = struct.Struct("=QQQQq")  # struct uffdio_copy: dst src len mode copy
_MESSAGE = struct.Struct("=B7xQQQ")  # struct uffd_msg: event, flags, address, ptid


class Stuck:
    """The region, and the descriptor that gets its faults."""

    def __init__(self, seed: int, pages: int) -> None:
        region = Run(ADDRESS, ADDRESS + pages * PAGE)
        kernel.map_memory(region.start, pages * PAGE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        kernel.advise(region.start, pages * PAGE, kernel.Advice.NOHUGEPAGE)
        self._mapping = Mapping("stuck", region, "rw-p", seed)
        self._missing: list[Run] = []
        for first in range(0, pages, RUN_PAGES):
            run = Run(region.start + first * PAGE, region.start + min(first + RUN_PAGES, pages) * PAGE)
            if first // RUN_PAGES % 2:
                self._missing.append(run)
            else:
                write_pattern(run, seed)
                self._mapping.wrote(run, seed)
                self._mapping.touched.append(run)
        self._descriptor = kernel.userfault_descriptor()
        fcntl.ioctl(self._descriptor, _UFFDIO_API, _API.pack(_API_VERSION, 0, 0))
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        registered = _REGISTER.pack(region.start, pages * PAGE, _REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(self._descriptor, _UFFDIO_REGISTER, registered)

    def hello(self) -> Answer:
        """The region as a mapping, and its missing runs."""
        missing = [[run.start, run.end] for run in self._missing]
        return {"pid": os.getpid(), "mapping": self._mapping.describe(), "missing": missing}

    def do_wait(self) -> Answer:
        """The next fault."""
        self._poll.poll()
        event, _flags, address, _thread = _MESSAGE.unpack(os.read(self._descriptor, _MESSAGE.size))
        if event != _EVENT_PAGEFAULT:
            raise ValueError(f"event {event:#x} is no page fault")
        return {"address": address}

    def do_pending(self) -> Answer:
        """Take every fault that waits."""
        addresses = []
        while self._poll.poll(0):
            addresses.append(self.do_wait()["address"])
        return {"addresses": addresses}

    def do_serve(self, seed: str) -> Answer:
        """Fill what is missing."""
        for run in self._missing:
            content = ctypes.create_string_buffer(fill(run.start, run.end - run.start, int(seed, 0)))
            copy = _COPY.pack(run.start, ctypes.addressof(content), run.end - run.start, 0, 0)
            fcntl.ioctl(self._descriptor, _UFFDIO_COPY, copy)
            self._mapping.wrote(run, int(seed, 0))
            self._mapping.touched.append(run)
        self._missing = []
        return self.hello()

    def do_release(self) -> Answer:
        """Let the faults go on without content."""
        os.close(self._descriptor)
        self._missing = []
        return self.hello()

    def do_rss(self) -> Answer:
        """What the kernel counts for this process."""
        return dict(memory_figures())

    def do_exit(self) -> Answer:
        """End now."""
        os._exit(0)


def main() -> None:
    """Make the region, say so, obey until stdin ends."""
    kernel.die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(description="Hold memory whose faults no one serves.")
    parser.add_argument("--seed", type=lambda text: int(text, 0), default=1)
    parser.add_argument("--pages", type=int, default=128)
    options = parser.parse_args()
    try:
        stuck = Stuck(options.seed, options.pages)
    except OSError as error:
        say({"error": f"userfaultfd: {error}"})
        return
    say(stuck.hello())
    for line in commands():
        say(obey(stuck, line))


if __name__ == "__main__":
    main()
