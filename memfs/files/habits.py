"""How programs read, learnt from what they do, to choose between page cache and direct reads.

A direct READ copies once less, and is what large reads want; but each costs a round trip to the
daemon, which a program that reads 8 KiB at a time pays 128 times a MiB. Through the page cache the
kernel reads ahead for it, if it reads in order; for one who jumps the cache is a detour. The kernel
asks for the mode at open, before anything is read: so it is chosen by what the same command did the
last time, and by a few that are known to read little.
"""

import os
import time
from collections import OrderedDict

SMALL_READ_BYTES = 1 << 15
"""Reads up to this size gain by the page cache: at 128 KiB a direct one is as fast."""

_ENOUGH_READS = 16
_FIRST_WINDOW_BYTES = 1 << 18
"""The kernel's first readahead of a reader: less than this for reads of less than 128 KiB."""
_MOST_COMMANDS = 512
_COMMAND_S = 0.01
_COMMAND_BYTES = 1024
_MOST_ARGUMENTS = 8

_SMALL_READERS = frozenset((b"nc", b"ncat", b"netcat", b"openssl", b"socat"))
"""They read 8 or 16 KiB, whatever st_blksize says."""


class ReadCounter:
    """What one open file's READs say of who reads it. One thread counts, another looks at the end."""

    __slots__ = ("_end", "bytes_read", "command", "first_bytes", "jumps", "reads", "uses_cache")

    def __init__(self, command: bytes, *, uses_cache: bool) -> None:
        self.command = command
        self.uses_cache = uses_cache
        self.reads = 0
        self.bytes_read = 0
        self.first_bytes = 0
        self.jumps = 0
        self._end = 0

    def note(self, offset: int, size: int) -> None:
        """Count a READ of *size* bytes at *offset*."""
        if not self.reads:
            self.first_bytes = size
        elif offset != self._end:
            self.jumps += 1
        self._end = offset + size
        self.reads += 1
        self.bytes_read += size

    @property
    def reads_little(self) -> bool | None:
        """Whether it was read in order in small pieces; None where too little was read to tell."""
        if self.reads >= _ENOUGH_READS and self.jumps > self.reads // 2:
            return False
        if self.uses_cache:
            return self.first_bytes < _FIRST_WINDOW_BYTES if self.bytes_read > _FIRST_WINDOW_BYTES else None
        if self.reads < _ENOUGH_READS:
            return None
        return self.bytes_read <= self.reads * SMALL_READ_BYTES


class ReadHabits:
    """Commands, and whether they read in small pieces."""

    def __init__(self) -> None:
        self._little: OrderedDict[bytes, bool] = OrderedDict()

    def reads_little(self, command: bytes) -> bool:
        """Whether *command* is likely to read in order in small pieces."""
        return self._little.get(command, command.partition(b"\0")[0] in _SMALL_READERS)

    def learn(self, counter: ReadCounter) -> None:
        """Remember how a file was read that is closed now."""
        reads_little = counter.reads_little
        if reads_little is not None:
            self._little[counter.command] = reads_little
            self._little.move_to_end(counter.command)
            if len(self._little) > _MOST_COMMANDS:
                self._little.popitem(last=False)


class Commands:
    """The commands of callers, each kept for a moment: a program that opens many files is one command."""

    def __init__(self) -> None:
        self._last: tuple[int, float, bytes] = 0, 0.0, b""

    def of(self, caller: int) -> bytes:
        """The command of process or thread *caller*."""
        known, until, command = self._last
        if known != caller or time.monotonic() >= until:
            command = read_command(caller)
            self._last = caller, time.monotonic() + _COMMAND_S, command
        return command


def read_command(caller: int) -> bytes:
    """The command of process or thread *caller*, with its first arguments but for the files among them.

    ``dd bs=1M`` is another command than ``dd bs=4k``. ``sha256sum *`` may have 100,000 arguments.
    """
    try:
        fd = os.open(f"/proc/{caller}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        name, *arguments = os.read(fd, _COMMAND_BYTES).rstrip(b"\0").split(b"\0", _MOST_ARGUMENTS + 1)
    except OSError:
        return b""
    finally:
        os.close(fd)
    kept = [argument for argument in arguments[:_MOST_ARGUMENTS] if b"/" not in argument]
    return b"\0".join([os.path.basename(name), *kept])
