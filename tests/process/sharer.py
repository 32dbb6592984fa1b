"""A program whose memory outlives its exec: a CLONE_VM child keeps the old address space alive.

    sharer.py SEED DIRECTORY

It maps, at fixed addresses, private memory and two files, each on a tmpfs of its own, filled with the pattern
of SEED by address. Files of two fresh tmpfs have the same inode numbers. It prints one JSON line (spans and
inode numbers) and obeys:

    share          make the child; answers its pid
    fork           make a copy of this process, with other bytes in its private memory; answers its pid
    exec           become this program with another seed: same addresses, same inode numbers, other bytes
    reap PID       wait for a child, unless that was done

The mounts are in a mount namespace of its own. Needs root.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.kernel import Map, Prot
from support.lines import Answer, commands, obey, say
from support.pattern import PAGE, fill

ADDRESS = 0x2100_0000_0000
APART = 1 << 30
LENGTH = 200 * PAGE
_CLONE_VM = 0x100
_STACK_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


class Sharer:
    """Three mappings, and the commands."""

    def __init__(self, seed: int, directory: Path) -> None:
        self._seed, self._directory = seed, directory
        self._inodes: list[int] = []
        self._starts = [ADDRESS + index * APART for index in range(3)]
        memory, private_file, shared_file = self._starts
        kernel.map_memory(memory, LENGTH, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        kernel.poke(memory, fill(memory, LENGTH, seed))
        for start, flags in ((private_file, Map.PRIVATE), (shared_file, Map.SHARED)):
            self._map_file(start, flags)

    def _map_file(self, start: int, flags: Map) -> None:
        place = self._directory / f"{self._seed}-{start:x}"
        place.mkdir()
        if _libc.mount(b"none", bytes(place), b"tmpfs", 0, None):
            raise OSError(ctypes.get_errno(), "mount")
        with open(place / "file", "w+b", buffering=0) as file:
            file.write(fill(start, LENGTH, self._seed))
            kernel.map_memory(start, LENGTH, Prot.READ, flags, file.fileno())
            self._inodes.append(os.fstat(file.fileno()).st_ino)

    def hello(self) -> Answer:
        """Where everything is."""
        return {"spans": [[start, start + LENGTH] for start in self._starts], "inodes": self._inodes}

    def do_share(self) -> Answer:
        """A child with this very memory, in pause() on a stack of its own."""
        stack = kernel.map_memory(
            ADDRESS + 8 * APART, _STACK_BYTES, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS
        )
        pause = ctypes.cast(_libc.pause, ctypes.c_void_p)
        child = _libc.clone(
            pause, ctypes.c_void_p(stack + _STACK_BYTES), _CLONE_VM | signal.SIGCHLD, ctypes.c_void_p(0)
        )
        if child < 0:
            raise OSError(ctypes.get_errno(), "clone")
        return {"sharer": child}

    def do_fork(self) -> Answer:
        """A child with memory of its own, and other bytes in it; it ends with stdin."""
        ready, written = os.pipe()
        child = os.fork()
        if child == 0:
            kernel.poke(ADDRESS, fill(ADDRESS, LENGTH, self._seed + 1))
            os.write(written, b"1")
            os.read(0, 1)
            os._exit(0)
        os.close(written)
        if not os.read(ready, 1):
            raise OSError("the child has failed")
        os.close(ready)
        return {"fork": child}

    def do_exec(self) -> Answer:
        """Become the next program."""
        script = os.path.realpath(__file__)
        os.execv(sys.executable, [sys.executable, script, str(self._seed + 1), str(self._directory)])

    def do_reap(self, pid: str) -> Answer:
        """Wait until a killed child is gone, and its memory with it."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(int(pid), 0)
        return {}


def main() -> None:
    """Map, say so, obey until stdin ends."""
    kernel.die_with_parent(os.getppid())
    seed, directory = int(sys.argv[1]), Path(sys.argv[2])
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount_private()
    sharer = Sharer(seed, directory)
    say(sharer.hello())
    for line in commands():
        say(obey(sharer, line))


if __name__ == "__main__":
    main()
