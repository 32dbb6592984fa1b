"""Terabytes that are reserved and hardly used: how they are copied, and what is said where they cannot be."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import MEMFS, Mount, check, complaint, opened, read_all
from mount.mounted import memfs as run_memfs
from support.child import Child
from support.pattern import PAGE

_TIB = 1 << 40
_RESERVED = 0x2000_0000_0000
_SIZE = 17 * _TIB
_PROGRAM = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
NORESERVE_PRIVATE = 0x104022  # MAP_FIXED_NOREPLACE too
for at, size, prot in ((0x200000000000, 17 << 40, 3), (0x400000000000, 33 << 40, 0)):
    length = ctypes.c_size_t(size)
    assert libc.mmap(ctypes.c_void_p(at), length, prot, NORESERVE_PRIVATE, -1, ctypes.c_long(0)) == at
for at in (0x200000000000, 0x200000000000 + (17 << 40) - 4096):
    ctypes.memset(at, 0x5A, 4096)
print("{}", flush=True)
input()
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Child]:
    """As ThreadSanitizer does: 17 TiB of which two pages are written, and 33 TiB that no one may touch."""
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    with Child(str(program)) as child:
        yield child


def _check_image(vmas: Path) -> None:
    (image,) = vmas.glob(f"{_RESERVED:012x}-*")
    assert image.stat().st_size == _SIZE
    with opened(image) as file:
        for at in (0, _SIZE - PAGE):
            assert read_all(file, PAGE, at) == b"\x5a" * PAGE
        assert read_all(file, PAGE, PAGE) == bytes(PAGE)
    (nothing,) = vmas.glob("400000000000-*")
    assert nothing.stat().st_blocks == 0


def test_an_archive_takes_them_on_any_file_system(
    memfs: Mount, process: Child, tmp_path: Path, shm: Path
) -> None:
    with memfs.snapshot(process.pid) as snapshot:
        for directory in (memfs.process(process.pid), snapshot):
            archive = tmp_path / "vmas.tar"
            check("tar", "-cS", "-C", directory, "-f", archive, "vmas")
            assert archive.stat().st_size < 64 << 20
            check("tar", "-xS", "-C", shm, "-f", archive)
            _check_image(shm / "vmas")


def test_a_file_system_that_knows_such_files_takes_a_copy(memfs: Mount, process: Child, shm: Path) -> None:
    for number, tool in enumerate((["cp", "-r"], [MEMFS, "copy", "--progress=off"])):
        copy = shm / str(number)
        check(*tool, memfs.process(process.pid) / "vmas", copy)
        _check_image(copy)


def test_one_that_does_not_is_told_what_to_do(memfs: Mount, process: Child, tmp_path: Path) -> None:
    try:
        with (tmp_path / "probe").open("wb") as probe:
            probe.truncate(_SIZE)
    except OSError:
        (file,) = (memfs.process(process.pid) / "vmas").glob(f"{_RESERVED:012x}-*")
        said = complaint(run_memfs("copy", file, tmp_path / "image"), 1)
        assert "cannot hold a file so large" in said
        assert "tar -cS" in said
        assert not (tmp_path / "image").exists()
    else:
        pytest.skip("this file system holds files of 17 TiB")
