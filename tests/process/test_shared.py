"""Shared memory in a snapshot: each object is copied once, and all that show it show one moment.

Files that are mapped shared, and that no one can write unnoticed, are not copied.
"""

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from process.freezing import snapshots
from support.child import Program
from support.compiled import build
from unit.ways import copied

from memfs.errors import RangeUnmapped
from memfs.image.memory import Memory
from memfs.image.source import Workspace
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import Fate, Part
from memfs.target.identity import identify

MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[Snapshots]:
    with snapshots() as made:
        yield made


def take(registry: Snapshots, pid: int) -> Snapshot:
    return registry.get(registry.make(identify(pid), b"one"))


def part_at(snapshot: Snapshot, address: int) -> Part:
    (part,) = [part for part in snapshot.frozen.parts if address in part.region.span]
    return part


def read(snapshot: Snapshot, start: int, size: int) -> bytes:
    workspace = Workspace()
    with snapshot.open() as space:
        source = Memory(space, space.layout(), Span(0, space.end()), flat=True)
        try:
            parts = range(start, start + size, MIB)
            return b"".join(copied(source, at, min(MIB, start + size - at), workspace) for at in parts)
        finally:
            source.close()
            workspace.close()


def number_at(snapshot: Snapshot, address: int) -> int:
    (number,) = struct.unpack("=Q", read(snapshot, address, 8))
    return int(number)


def held_bytes(snapshot: Snapshot) -> int:
    """What the copy takes of memory."""
    return os.fstat(snapshot.aside).st_blocks * 512


class Views(Program):
    """See views.c."""

    def __init__(self, mib: int, count: int, pages: int = 0) -> None:
        super().__init__(build("views"), str(mib), str(count), str(pages))
        self.size = mib * MIB
        self.pages = pages
        self.turns: int = self.hello["turns"]
        self.views: list[int] = self.hello["views"]

    def check(self, snapshot: Snapshot) -> None:
        """Make sure that all views show what was there at one moment, that of the private memory."""
        private = number_at(snapshot, self.turns)
        for view in self.views:
            first, last = number_at(snapshot, view), number_at(snapshot, view + self.size - PAGE_BYTES)
            between = [
                number_at(snapshot, view + (self.size // (self.pages + 1) * page & -PAGE_BYTES))
                for page in range(1, self.pages + 1)
            ]
            assert sorted((first, *between, last), reverse=True) == [first, *between, last]
            assert private >= first
            assert last >= private - 1


def test_an_object_that_is_mapped_three_times_shows_one_moment_and_is_copied_once() -> None:
    with Views(24, 3, 100) as views, snapshots(copy_bytes=views.size + MIB) as registry:
        snapshot = take(registry, views.pid)
        assert {part_at(snapshot, view).fate for view in views.views} == {Fate.COPIED}
        views.check(snapshot)
        assert held_bytes(snapshot) <= views.size + MIB
        first, *others = [read(snapshot, view, views.size) for view in views.views]
        assert others == [first, first]
        assert first[PAGE_BYTES + 64 : PAGE_BYTES + 128] == b"\x02" * 64


_OVERLAPS = """
import ctypes, json, mmap, os, sys
PAGE = mmap.PAGESIZE
object = os.memfd_create("parts")
os.ftruncate(object, 10 * PAGE)
for page in range(10):
    os.pwrite(object, bytes([page + 1]) * PAGE, page * PAGE)
maps = [mmap.mmap(object, length * PAGE, offset=first * PAGE) for first, length in json.loads(sys.argv[1])]
print(json.dumps([ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in maps]), flush=True)
for line in sys.stdin:
    for page in range(10):
        os.pwrite(object, bytes(PAGE), page * PAGE)
    print("{}", flush=True)
"""


def test_parts_of_an_object_that_overlap_are_copied_once(registry: Snapshots) -> None:
    spans = [(0, 4), (2, 4), (3, 1), (8, 2), (0, 1), (5, 1)]
    with Program(sys.executable, "-c", _OVERLAPS, repr([list(span) for span in spans])) as program:
        snapshot = take(registry, program.pid)
        program.send("change it")
        program.answer()
        addresses: list[int] = program.hello  # type: ignore[assignment]  # a list, for once
        for address, (first, length) in zip(addresses, spans, strict=True):
            assert part_at(snapshot, address).fate is Fate.COPIED
            expected = b"".join(bytes([page + 1]) * PAGE_BYTES for page in range(first, first + length))
            assert read(snapshot, address, length * PAGE_BYTES) == expected
        starts = {part_at(snapshot, address).copied_at for address in addresses}
        assert len(starts) == len({first for first, _ in spans})


# Files

_MAPS = """
import ctypes, json, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
size = os.fstat(file).st_size
address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file, ctypes.c_long(0))
print(json.dumps({"address": address}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file on a disk that was written long ago."""
    path = tmp_path / "resources.pak"
    path.write_bytes(os.urandom(2 * MIB + 100))
    if not os.major(path.stat().st_dev):
        pytest.skip(f"{tmp_path} is not on a disk")
    os.utime(path, (1, 1))
    return path


def test_a_file_that_is_mapped_shared_and_that_no_one_writes_is_not_copied(
    registry: Snapshots, old_file: Path
) -> None:
    content = old_file.read_bytes()
    with Program(sys.executable, "-c", _MAPS, old_file) as program:
        address = program.hello["address"]
        snapshot = take(registry, program.pid)
        part = part_at(snapshot, address)
        assert (part.fate, part.reason) == (Fate.FROZEN, "")
        assert held_bytes(snapshot) < len(content)
        assert read(snapshot, address, len(content)) == content
        assert read(snapshot, address + len(content), 100) == bytes(100)
        with old_file.open("r+b") as file:
            file.write(b"something else")
        with pytest.raises(RangeUnmapped) as error:
            read(snapshot, address, PAGE_BYTES)
        assert "was written since" in str(error.value)


def test_a_file_that_someone_may_write_unseen_is_copied(registry: Snapshots, old_file: Path) -> None:
    content = old_file.read_bytes()
    with Program(sys.executable, "-c", _MAPS, old_file) as program, old_file.open("r+b") as writer:
        address = program.hello["address"]
        snapshot = take(registry, program.pid)
        part = part_at(snapshot, address)
        assert (part.fate, part.reason) == (Fate.COPIED, "shared memory")
        writer.write(b"something else")
        writer.flush()
        assert read(snapshot, address, len(content)) == content


def test_a_file_in_memory_is_copied_for_a_store_leaves_no_trace_in_its_time(
    registry: Snapshots,
) -> None:
    with Program(sys.executable, "-c", _MAPS, f"/proc/{os.getpid()}/fd/{_in_memory()}") as program:
        snapshot = take(registry, program.pid)
        assert part_at(snapshot, program.hello["address"]).fate is Fate.COPIED


def _in_memory() -> int:
    fd = os.memfd_create("test")
    os.write(fd, bytes(PAGE_BYTES))
    return fd
