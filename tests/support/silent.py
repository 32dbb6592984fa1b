"""A FUSE server that stops answering, and a process that maps its file.

    silent.py MOUNTPOINT

It mounts a file system with one file of 64 pages, ``file``, and forks a process that maps that file, private
and shared, and has touched no page. Then the server falls silent: it takes each request and answers none, so
whoever opens, reads or closes the file waits, and no signal ends that. It prints one JSON line and obeys:

    taken          how many requests it has taken since it is silent
    jam            have the process read its private mapping by /proc/self/mem, which holds its mmap_lock, and
                   wait to change its mappings: then whoever looks at them waits as well, `ls` and `stat` too
    exit           end both; the kernel aborts what waits

Needs root. Standard library only.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import signal
import struct
import sys
import threading
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.kernel import Map, Prot
from support.lines import Answer, commands, obey, say
from support.pattern import PAGE

ADDRESS = 0x3000_0000_0000
PAGES = 64
_NODE = 2
_FRAME_BYTES = 1 << 20
# <linux/fuse.h>
_LOOKUP, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 3, 14, 25, 26
_HEADER = struct.Struct("=IIQQ")  # len opcode unique nodeid
_OUT = struct.Struct("=IiQ")  # len error unique
_ATTR = struct.Struct(
    "=QQQ3Q3I7I"
)  # ino size blocks, times, their nanoseconds, mode nlink uid gid rdev blksize flags
_ENTRY = struct.Struct("=QQQQII")  # nodeid generation entry_valid attr_valid, their nanoseconds
_ATTR_OUT = struct.Struct("=QII")  # attr_valid attr_valid_nsec dummy
_OPEN_OUT = struct.Struct("=QIi")
_INIT_OUT = struct.Struct("=4IHHIIHHI28x")
_LASTS_S = 1 << 30
_MNT_DETACH = 2


def _attributes(node: int) -> bytes:
    mode, size = (0o100644, PAGES * PAGE) if node == _NODE else (0o40755, 0)
    return _ATTR.pack(node, size, size // 512, *[0] * 6, mode, 1, 0, 0, 0, PAGE, 0)


class Silent:
    """The server, and the process that maps its file."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._taken = 0
        self._is_silent = False
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"silent", os.fsencode(mountpoint), b"fuse.silent", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        threading.Thread(target=self._serve, daemon=True).start()
        self._target = self._start_target()
        self._is_silent = True

    def _start_target(self) -> int:
        ready, told = os.pipe()
        server = os.getpid()
        pid = os.fork()
        if pid:
            os.close(told)
            if os.read(ready, 1) != b"x":
                raise OSError(errno.EIO, "the target has not mapped the file")
            return pid
        os.close(self._device)
        kernel.die_with_parent(server)
        file = os.open(f"{self._mountpoint}/file", os.O_RDWR)
        for number, flags in enumerate((Map.SHARED, Map.PRIVATE)):
            address = ADDRESS + 2 * number * PAGES * PAGE
            kernel.map_memory(
                address, PAGES * PAGE, Prot.READ | Prot.WRITE, flags | Map.FIXED_NOREPLACE, file
            )
        os.close(file)
        private = ADDRESS + 2 * PAGES * PAGE
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.write(told, b"x")
        signal.sigwait([signal.SIGUSR1])
        threading.Thread(target=os.pread, args=(memory, 1, private), daemon=True).start()
        signal.sigwait([signal.SIGUSR1])
        kernel.unmap(private + PAGE, PAGE)
        os._exit(0)

    def _serve(self) -> None:
        while True:
            try:
                frame = os.read(self._device, _FRAME_BYTES)
            except OSError:
                return
            _, opcode, unique, node = _HEADER.unpack_from(frame)
            if self._is_silent:
                self._taken += 1
                continue
            reply = self._answer(opcode, node)
            if reply is not None:
                error, body = (-reply, b"") if isinstance(reply, int) else (0, reply)
                with contextlib.suppress(OSError):
                    os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def _answer(self, opcode: int, node: int) -> bytes | int | None:
        """The body of a reply, or an errno; None for a request that wants none."""
        if opcode == _INIT:
            return _INIT_OUT.pack(7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0)
        if opcode == _LOOKUP:
            return _ENTRY.pack(_NODE, 0, _LASTS_S, _LASTS_S, 0, 0) + _attributes(_NODE)
        if opcode == _GETATTR:
            return _ATTR_OUT.pack(_LASTS_S, 0, 0) + _attributes(node)
        if opcode == _OPEN:
            return _OPEN_OUT.pack(0, 0, 0)
        if opcode in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
            return None
        return b"" if opcode in (18, 29) else errno.ENOSYS if opcode != _FLUSH else b""

    def hello(self) -> Answer:
        """The process, and where it maps the file."""
        return {"pid": self._target, "shared": ADDRESS, "private": ADDRESS + 2 * PAGES * PAGE}

    def do_jam(self) -> Answer:
        """Return when its mappings cannot be looked at any more."""
        taken = self._taken
        os.kill(self._target, signal.SIGUSR1)
        while self._taken == taken:
            os.sched_yield()
        os.kill(self._target, signal.SIGUSR1)
        place = Path(f"/proc/{self._target}/wchan")
        while "munmap" not in place.read_text():
            os.sched_yield()
        return self.do_taken()

    def do_taken(self) -> Answer:
        """Requests that will never be answered."""
        return {"taken": self._taken}

    def do_exit(self) -> Answer:
        """End now: the device is closed with this process."""
        self.end()
        os._exit(0)

    def end(self) -> None:
        """Unmount, and end the target."""
        ctypes.CDLL(None).umount2(os.fsencode(self._mountpoint), _MNT_DETACH)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._target, signal.SIGKILL)


def main() -> None:
    """Mount, map, say so, obey until stdin ends."""
    kernel.die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(description="Serve a file, and fall silent.")
    parser.add_argument("mountpoint")
    try:
        silent = Silent(parser.parse_args().mountpoint)
    except OSError as error:
        say({"error": f"{error}"})
        return
    say(silent.hello())
    for line in commands():
        say(obey(silent, line))
    silent.do_exit()


if __name__ == "__main__":
    main()
