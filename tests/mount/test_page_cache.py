"""Readers in small pieces go through the page cache: they see fresh bytes, and leave no cache behind."""

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

from mount.mounted import MIB, Mount, check, opened
from support.target import Target


class _Cache:
    """Looks through a mapping of a file that it never touches: mincore(2) tells what is cached of it."""

    def __init__(self, file: Path, size: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._size = size
        with opened(file) as descriptor:
            self._address = self._libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        assert self._address not in (None, ctypes.c_void_p(-1).value)

    def cached_bytes(self) -> int:
        pages = (ctypes.c_ubyte * (self._size // mmap.PAGESIZE))()
        address = ctypes.c_void_p(self._address)
        assert self._libc.mincore(address, ctypes.c_size_t(self._size), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE

    def close(self) -> None:
        self._libc.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._size))


def _digest(file: Path) -> bytes:
    return check("openssl", "dgst", "-sha256", "-r", file).split()[0]


def test_each_open_sees_what_the_target_has_written_since(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        file = memfs.vma(target.pid, target.mapping("private-full"))
        before = _digest(file)
        mapping = target.mapping("private-full")
        assert before == target.digest(mapping.start, mapping.length).encode()
        target.write(mapping.start, mapping.length, seed=77)
        after = _digest(file)
        assert after == target.digest(mapping.start, mapping.length).encode()
        assert after != before


_READER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
left = int(sys.argv[2])
while left:
    left -= len(os.read(file, 16384))
print("read", flush=True)
sys.stdin.read()
"""


def test_a_small_reader_is_known_the_second_time_and_leaves_no_cache_behind(
    memfs: Mount, tmp_path: Path
) -> None:
    size = 128 * MIB
    with Target("private-full", directory=tmp_path, size=size) as target:
        file = memfs.vma(target.pid, target.mapping("private-full"))
        cache = _Cache(file, size)
        cached = []
        for _ in range(2):
            reader = subprocess.Popen(
                ["/usr/bin/python3", "-c", _READER, file, str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"read\n"
            cached.append(cache.cached_bytes())
            reader.communicate()
            assert reader.returncode == 0
        os.stat(file)  # a round trip: the release before it has been handled
        after = cache.cached_bytes()
        cache.close()
        assert cached[0] == 0
        assert 0 < cached[1] <= 24 * MIB
        assert after <= 8 * MIB
