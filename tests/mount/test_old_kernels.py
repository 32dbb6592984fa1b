"""Bytes, holes and errors are the same without what newer kernels have: without each feature alone, and all.

A filter in front of the daemon answers as such a kernel does, see `without`; the daemon is the one that users
run. With ``MEMFS_TEST_WITHOUT=6.1 pytest tests/mount`` all other tests of the mount run so, too.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount, check, error_of, mounted, opened, read_all, wrong
from support import without
from support.child import Program
from support.held import HeldMapping, Span, merge
from support.pattern import PAGE
from support.target import Target

_KINDS = (
    "private-runs", "zero-read", "shared-anon", "memfd-shared", "memfd-private", "file-private",
    "file-odd-names", "none-data", "reserved-64g",
)  # fmt: skip
_SHORT_BYTES = 1 << 30
"""What is longer is not read whole."""


_FILTERED = [name for name, feature in without.FEATURES.items() if not feature.capabilities]
"""Root cannot mount without CAP_SYS_ADMIN: what a daemon does without map_files, `test_user` tests."""


@pytest.fixture(scope="module", params=[*_FILTERED, *without.SETS])
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount without a feature, or without all that a kernel lacks."""
    with mounted(tmp_path_factory.mktemp("old"), without=request.param) as mount:
        yield mount


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A process that does not change."""
    with Target(*_KINDS, directory=tmp_path_factory.mktemp("held")) as target:
        yield target


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A process for one test."""
    with Target("private-runs", "memfd-shared", "file-private", directory=tmp_path) as made:
        yield made


def _live_data(mount: Mount, mapping: HeldMapping) -> tuple[Span, ...]:
    """Entries of pagemap do not tell a page of zeros that was read from one that was written."""
    read = mapping.touched if mapping.kind == "zero-read" and "pagemap_scan" in mount.lacks else ()
    return merge((*mapping.data, *read))


def _frozen_data(mapping: HeldMapping) -> tuple[Span, ...]:
    """fork does not copy the page tables of what was only read (``vma_needs_copy`` of mm/memory.c)."""
    return mapping.data


def _data_in(file: int, mapping: HeldMapping) -> Iterator[Span]:
    at = 0
    while at < mapping.length:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(file, start, os.SEEK_HOLE)
        yield Span(mapping.start + start, mapping.start + at)


def _assert_same(
    vmas: Path, mappings: tuple[HeldMapping, ...], data_of: Callable[[HeldMapping], tuple[Span, ...]]
) -> None:
    """Bytes and holes are those of *mappings*."""
    names = {int(name[:12], 16): name for name in os.listdir(vmas)}
    for mapping in mappings:
        with opened(vmas / names[mapping.start]) as file:
            data = data_of(mapping)
            assert tuple(_data_in(file, mapping)) == data
            if mapping.length <= _SHORT_BYTES:
                assert wrong(mapping, read_all(file, mapping.length)) is None
            for span in data:
                page = mapping.expected(span.start - mapping.start, PAGE)
                assert read_all(file, PAGE, span.start - mapping.start) == page


def test_bytes_and_holes_are_the_same(old: Mount, held: Target) -> None:
    _assert_same(old.process(held.pid) / "vmas", held.mappings, lambda each: _live_data(old, each))


def test_blocks_are_those_that_are_there(old: Mount, held: Target) -> None:
    (reserved,) = held.held.of("reserved-64g")
    size = sum(span.length for span in reserved.data)
    assert old.vma(held.pid, reserved).stat().st_blocks * 512 == size
    (listed,) = (
        line.split()[0]
        for line in check("ls", "-sk", old.process(held.pid) / "vmas").splitlines()
        if b"%012x-" % reserved.start in line
    )
    assert int(listed) * 1024 == size


def test_a_snapshot_has_the_same_bytes_and_holes(old: Mount, held: Target) -> None:
    with old.snapshot(held.pid) as snapshot:
        _assert_same(snapshot / "vmas", held.mappings, _frozen_data)


def test_a_path_is_told_as_it_is(old: Mount, held: Target) -> None:
    for mapping in held.held.of("file-odd-names"):
        assert os.getxattr(old.vma(held.pid, mapping), "user.memfs.path") == mapping.path


@pytest.mark.parametrize("end", ["exit", "exec"])
def test_the_end_and_an_exec_are_told_apart(old: Mount, target: Target, end: str) -> None:
    mappings = target.mappings
    files = [os.open(old.vma(target.pid, mapping), os.O_RDONLY | os.O_DIRECT) for mapping in mappings]
    flat = os.open(old.process(target.pid) / "mem", os.O_RDONLY | os.O_DIRECT)
    try:
        for file, mapping in zip(files, mappings, strict=True):  # what was found is not given again
            os.lseek(file, os.lseek(file, 0, os.SEEK_DATA), os.SEEK_HOLE)
            os.lseek(flat, mapping.start, os.SEEK_HOLE)
        if end == "exit":
            target.exit()
        else:
            target.exec("private-runs", "memfd-shared", "file-private", seed=2)
        wanted = errno.ESRCH if end == "exit" else errno.ESTALE
        at = [(file, 0, mapping.length) for file, mapping in zip(files, mappings, strict=True)]
        at += [(flat, mapping.start, mapping.length) for mapping in mappings]
        for file, start, length in at:
            for offset in (start, start + length // 2, start + length - PAGE):
                assert error_of(lambda f=file, o=offset: os.pread(f, PAGE, o)) == wanted  # type: ignore[misc]
                for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    assert error_of(lambda f=file, o=offset, w=whence: os.lseek(f, o, w)) == wanted  # type: ignore[misc]
    finally:
        for file in (*files, flat):
            os.close(file)


def test_what_changes_is_seen(old: Mount, target: Target) -> None:
    mapping = target.mapping("private-runs")
    hole = mapping.holes[0]
    with opened(old.vma(target.pid, mapping), os.O_DIRECT) as file:
        offset = hole.start - mapping.start
        assert os.lseek(file, offset, os.SEEK_HOLE) == offset
        target.write(hole.start, PAGE, 7)
        assert os.lseek(file, offset, os.SEEK_DATA) == offset
        written = target.mapping("private-runs").expected(offset, PAGE)
        assert read_all(file, PAGE, offset) == written != bytes(PAGE)
        target.unmap(mapping.start, mapping.length)
        assert error_of(lambda: os.pread(file, PAGE, offset)) == errno.EIO


_FAR_APART = """
import ctypes, json
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
for at in range(0x1000_0000_0000, 0x7000_0000_0000, 0x0800_0000_0000):
    libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3, 0x32, -1, ctypes.c_long(0))
    ctypes.memset(at, 1, 4096)
print(json.dumps({}), flush=True)
input()
"""


def test_a_listing_reads_nothing_of_what_lies_between(old: Mount) -> None:
    """The gaps of this process have 192 GiB of entries in pagemap: without an answer the test would hang."""
    with Program("/usr/bin/python3", "-c", _FAR_APART) as program:
        before = _read_bytes(old.daemon)
        check("ls", "-l", old.process(program.pid) / "vmas")
        assert _read_bytes(old.daemon) - before < 16 << 20


def _read_bytes(pid: int) -> int:
    found = re.search(r"^rchar: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


_RESERVED = """
import ctypes, json
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
at, size = 0x2000_0000_0000, 1 << 44
libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(size), 3, 0x4032, -1, ctypes.c_long(0))
libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(size // 2), 0)
ctypes.memset(at + size - 4096, 1, 1)
print(json.dumps({}), flush=True)
for line in iter(input, ""):
    libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(size // 2), 3)
    ctypes.memset(at + 4096, 1, 1)
    libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(size // 2), 0)
    print(json.dumps({}), flush=True)
"""
_RESERVED_AT = 0x2000_0000_0000


def test_what_was_only_reserved_is_a_hole_at_once_and_what_comes_is_seen(old: Mount) -> None:
    """Of 8 TiB there are 16 GiB of entries in pagemap."""
    with Program("/usr/bin/python3", "-c", _RESERVED) as program:
        before = _read_bytes(old.daemon)
        file = old.vma(program.pid, Span(_RESERVED_AT, _RESERVED_AT + (1 << 43)))
        with opened(file) as descriptor:
            assert error_of(lambda: os.lseek(descriptor, 0, os.SEEK_DATA)) == errno.ENXIO
            program.ask("touch")
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == 4096
        assert _read_bytes(old.daemon) - before < 64 << 20
