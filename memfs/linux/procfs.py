"""Reading the text files of /proc, whatever is in them, and listing processes and threads.

The modules that parse these texts are :mod:`memfs.linux.maps`, ``smaps``, ``stat`` and ``status``.
"""

import os
import time
from collections.abc import Iterator

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 12


def read_whole(fd: int) -> bytes:
    """Read the whole /proc file that is open as *fd*, from its beginning.

    Raises:
        ProcessLookupError: the process is gone.
    """
    return b"".join(_blocks(fd))


def _blocks(fd: int) -> Iterator[bytes]:
    """Yield the result of each read(2), to the end of the file.

    A read of maps or smaps returns about a page of text, however large the buffer is. The kernel releases
    the lock of the address space between two reads (``seq_read_iter``, fs/seq_file.c).
    """
    at = 0
    while block := os.pread(fd, _BLOCK_BYTES, at):
        yield block
        at += len(block)


def read_timed(path: str) -> tuple[bytes, int]:
    """Read a whole /proc file; returns it, and how many nanoseconds its longest read(2) took.

    Raises:
        FileNotFoundError, ProcessLookupError, PermissionError: as :func:`read_file`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        longest_ns = 0
        began_ns = time.monotonic_ns()
        for block in _blocks(fd):
            found.append(block)
            now_ns = time.monotonic_ns()
            longest_ns = max(longest_ns, now_ns - began_ns)
            began_ns = now_ns
        return b"".join(found), longest_ns
    finally:
        os.close(fd)


def read_small(path: str) -> bytes:
    """Read a /proc file that the kernel makes in one piece (``single_open``, fs/seq_file.c): stat, status.

    Raises: as :func:`read_file`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_small_at(fd)
    finally:
        os.close(fd)


def read_small_at(fd: int) -> bytes:
    """Read such a file that is open as *fd*, with its present contents.

    Raises:
        ProcessLookupError: the process is gone.
    """
    text = os.pread(fd, _SMALL_BYTES, 0)
    return text if len(text) < _SMALL_BYTES else read_whole(fd)


def read_file(path: str) -> bytes:
    """Read a whole /proc file.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
        PermissionError: ptrace access is denied.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_whole(fd)
    finally:
        os.close(fd)


def process_ids() -> list[int]:
    """List the processes that /proc shows, in order of pid."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def thread_ids(pid: int) -> list[int]:
    """List the threads of a process in order of tid, including those that have ended and are not reaped.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
