"""The process that is read: makes what it was asked for, says where in one JSON line, ends with its stdin.

Usage: target.py KIND SIZE, with a kind of `KINDS`. Knows nothing of memfs. Standard library only.
"""

import contextlib
import ctypes
import json
import mmap
import os
import random
import select
import signal
import sys
from collections.abc import Callable

MIB = 1 << 20
_GUARD_BYTES = 2 * MIB  # a huge page, so that what lies between guards keeps its alignment
_MAP_NORESERVE = 0x4000  # <asm-generic/mman-common.h>; the mmap module has it only since 3.13
_TILE_BYTES = 4 * MIB
_ALIVE_AT_ONCE = 64

_PR_SET_NAME = 15  # <linux/prctl.h>

LAST_OF_CROWD = b"last-of-crowd"

SPARSE_RUNS = 64
SPARSE_RUN_BYTES = MIB

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_kept: list[mmap.mmap] = []


def _protect(address: int, size_bytes: int, protection: int) -> None:
    if _libc.mprotect(address, size_bytes, protection):
        number = ctypes.get_errno()
        raise OSError(number, f"mprotect: {os.strerror(number)}")


def _map(size_bytes: int, flags: int) -> tuple[mmap.mmap, int]:
    """Memory between two guards, so that the kernel cannot merge it with its neighbours.

    Its first byte is at ``_GUARD_BYTES`` of what is returned, and at the address returned.
    """
    memory = mmap.mmap(-1, size_bytes + 2 * _GUARD_BYTES, flags=flags | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    _kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _protect(base, _GUARD_BYTES, 0)
    _protect(base + _GUARD_BYTES + size_bytes, _GUARD_BYTES, 0)
    return memory, base + _GUARD_BYTES


def _advise(memory: mmap.mmap, size_bytes: int, advice: int) -> None:
    memory.madvise(advice, _GUARD_BYTES, size_bytes)


def _tile() -> bytes:
    """Like the memory of a program: text, numbers and noise, which zstd halves or so."""
    chance = random.Random(20140829)
    words = [bytes(chance.choices(b"etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(4096)]
    text = b" ".join(chance.choices(words, k=_TILE_BYTES // 12))[: _TILE_BYTES // 3]
    numbers = b"".join(n.to_bytes(8, "little") for n in range(0, _TILE_BYTES * 7 // 24, 7))
    noise = chance.randbytes(_TILE_BYTES)
    return (text + numbers + noise)[:_TILE_BYTES]


def _fill(memory: mmap.mmap, size_bytes: int, begin: int = _GUARD_BYTES) -> None:
    """Write every page, each mebibyte differently."""
    tile = memoryview(_tile())
    for done in range(0, size_bytes, _TILE_BYTES):
        piece = min(_TILE_BYTES, size_bytes - done)
        memory[begin + done : begin + done + piece] = tile[:piece]
    for done in range(0, size_bytes, MIB):
        memory[begin + done : begin + done + 8] = done.to_bytes(8, "little")


def private(size_bytes: int) -> int:
    """Private anonymous memory of 4 KiB pages."""
    memory, start = _map(size_bytes, mmap.MAP_PRIVATE)
    _advise(memory, size_bytes, mmap.MADV_NOHUGEPAGE)
    _fill(memory, size_bytes)
    return start


def huge(size_bytes: int) -> int:
    """Private anonymous memory of transparent huge pages, where the kernel has them."""
    memory, start = _map(size_bytes, mmap.MAP_PRIVATE)
    _advise(memory, size_bytes, mmap.MADV_HUGEPAGE)
    _fill(memory, size_bytes)
    return start


def shared(size_bytes: int) -> int:
    """Shared anonymous memory, all of an object."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    _kept.append(memory)
    _fill(memory, size_bytes, 0)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def sparse(size_bytes: int) -> int:
    """Private memory of which only some runs, evenly spread, were ever touched."""
    memory, start = _map(size_bytes, mmap.MAP_PRIVATE)
    _advise(memory, size_bytes, mmap.MADV_NOHUGEPAGE)
    run = _tile()[:SPARSE_RUN_BYTES]
    for at in range(_GUARD_BYTES, _GUARD_BYTES + size_bytes, size_bytes // SPARSE_RUNS):
        memory[at : at + SPARSE_RUN_BYTES] = run
    return start


def untouched(size_bytes: int) -> int:
    """Private memory that no one ever touched but for its last page."""
    memory, start = _map(size_bytes, mmap.MAP_PRIVATE)
    memory[_GUARD_BYTES + size_bytes - 1] = 1
    return start


def many(count: int) -> int:
    """*count* VMAs of one touched page each: neighbours differ in what they allow."""
    page = mmap.PAGESIZE
    memory, start = _map(count * page, mmap.MAP_PRIVATE)
    _advise(memory, count * page, mmap.MADV_NOHUGEPAGE)
    for at in range(_GUARD_BYTES, _GUARD_BYTES + count * page, page):
        memory[at] = 1
    for number in range(1, count, 2):
        _protect(start + number * page, page, mmap.PROT_READ)
    return start


def crowd(count: int) -> int:
    """*count* processes that do nothing, the last with a name of its own; all see the end of stdin."""
    for number in range(1, count + 1):
        if os.fork() == 0:
            if number == count:
                _libc.prctl(_PR_SET_NAME, LAST_OF_CROWD)
            os.read(0, 1)
            os._exit(0)
    return 0


def churn(count: int) -> int:
    """*count* short-lived programs, some of them alive at any time; returns when all have ended.

    Raises:
        SystemExit: stdin ended before that.
    """
    alive: list[int] = []
    try:
        for _ in range(count):
            if select.select([0], [], [], 0)[0]:
                sys.exit(1)
            alive.append(os.posix_spawn("/bin/sleep", ["sleep", "3600"], os.environ))
            if len(alive) == _ALIVE_AT_ONCE:
                _end(alive.pop(0))
    finally:
        for child in alive:
            _end(child)
    return 0


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


KINDS: dict[str, Callable[[int], int]] = {
    maker.__name__: maker for maker in (private, huge, shared, sparse, untouched, many, crowd, churn)
}


def main() -> None:
    """Make it, say so, stay."""
    start = KINDS[sys.argv[1]](int(sys.argv[2]))
    print(json.dumps({"start": start}), flush=True)
    os.read(0, 1)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
