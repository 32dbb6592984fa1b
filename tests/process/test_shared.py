"""Shared memory in a snapshot: each object is copied once, and all that show it show one moment.

Files that are mapped shared, and that no one can write unnoticed, are not copied.
"""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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
from memfs.snapshot.follow import FOREIGN, REMAPPED
from memfs.snapshot.freeze import Freezing
from memfs.snapshot.precopy import MEMORY, OTHERS
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import Fate, Part
from memfs.target.identity import identify
from memfs.target.process import AddressSpace

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


@contextmanager
def reading(snapshot: Snapshot) -> Iterator[Callable[[int, int], bytes]]:
    """What reads so many bytes at an address of *snapshot*."""
    workspace = Workspace()
    with snapshot.open() as space, closing(workspace):
        source = Memory(space, space.layout(), Span(0, space.end()), flat=True)

        def read(start: int, size: int) -> bytes:
            parts = range(start, start + size, MIB)
            return b"".join(copied(source, at, min(MIB, start + size - at), workspace) for at in parts)

        with closing(source):
            yield read


def read(snapshot: Snapshot, start: int, size: int) -> bytes:
    with reading(snapshot) as read:
        return read(start, size)


def number_at(snapshot: Snapshot, address: int) -> int:
    (number,) = struct.unpack("=Q", read(snapshot, address, 8))
    return int(number)


def held_bytes(snapshot: Snapshot) -> int:
    """What the copy takes of memory."""
    return os.fstat(snapshot.aside).st_blocks * 512


class Views(Program):
    """See views.c."""

    def __init__(self, mib: int, count: int, pages: int = 0, how: str = "plain") -> None:
        super().__init__(build("views"), str(mib), str(count), str(pages), how)
        self.size = mib * MIB
        self.pages = pages
        self.turns: int = self.hello["turns"]
        self.views: list[int] = self.hello["views"]

    def is_as_before(self) -> bool:
        """Whether it runs, has no descriptor more, and no mapping whose writes are noted."""
        descriptors = [os.readlink(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]
        smaps = Path(f"/proc/{self.pid}/smaps").read_text()
        noted = [line for line in smaps.splitlines() if line.startswith("VmFlags") and " uw" in line]
        maps = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        mapped = sum("/memfd:heap" in line for line in maps)
        assert mapped == len(self.views)
        self.send("how many turns")
        running = int(self.answer()["turns"]) > 0
        return running and not noted and not any("userfaultfd" in name for name in descriptors)

    def check(self, snapshot: Snapshot) -> None:
        """Make sure that all views show what was there at one moment, that of the private memory."""
        steps = [self.size // (self.pages + 1) * page & -PAGE_BYTES for page in range(1, self.pages + 1)]
        with reading(snapshot) as read:
            (private,) = struct.unpack("=Q", read(self.turns, 8))
            for view in self.views:
                offsets = [0, *steps, self.size - PAGE_BYTES]
                found = [struct.unpack("=Q", read(view + offset, 8))[0] for offset in offsets]
                assert found == sorted(found, reverse=True)
                assert private >= found[0]
                assert found[-1] >= private - 1


def test_an_object_that_is_mapped_three_times_shows_one_moment_and_is_copied_once() -> None:
    with Views(24, 3, 100) as views, snapshots(copy_bytes=views.size + MIB) as registry:
        snapshot = take(registry, views.pid)
        assert {part_at(snapshot, view).fate for view in views.views} == {Fate.COPIED}
        views.check(snapshot)
        assert held_bytes(snapshot) <= views.size + MIB
        first, *others = [read(snapshot, view, views.size) for view in views.views]
        assert others == [first, first]
        assert first[PAGE_BYTES + 64 : PAGE_BYTES + 128] == b"\x02" * 64


def test_large_shared_memory_is_of_one_moment_while_it_is_written() -> None:
    with Views(256, 3, 300) as views, snapshots() as registry:
        snapshot = take(registry, views.pid)
        parts = [part_at(snapshot, view) for view in views.views]
        assert [(part.fate, part.reason) for part in parts] == [(Fate.COPIED, "shared memory")] * 3
        views.check(snapshot)
        assert held_bytes(snapshot) <= views.size + MIB
        whole = read(snapshot, views.views[2], views.size)
        filled = [whole[at + 64] for at in range(0, views.size, PAGE_BYTES)]
        assert filled == [page % 251 + 1 for page in range(views.size // PAGE_BYTES)]
        assert views.is_as_before()
        again = registry.get(registry.make(identify(views.pid), b"two"))  # while a copy of it maps the object
        assert part_at(again, views.views[0]).fate is Fate.COPIED
        views.check(again)
        assert number_at(again, views.turns) > number_at(snapshot, views.turns)


def test_large_shared_memory_of_which_more_is_mapped_than_is_there_is_of_one_moment() -> None:
    """The heap of a JVM is mapped three times, and full by a third when it starts."""
    with Views(8, 9, 50) as views, snapshots(copy_bytes=MIB) as registry:
        snapshot = take(registry, views.pid)
        assert {part_at(snapshot, view).fate for view in views.views} == {Fate.COPIED}
        views.check(snapshot)


def test_what_was_written_is_copied_although_the_page_tables_have_forgotten_it() -> None:
    with Views(8, 2, 50, "drops") as views, snapshots(copy_bytes=MIB) as registry:
        for name in (b"one", b"two", b"three"):
            snapshot = registry.get(registry.make(identify(views.pid), name))
            assert part_at(snapshot, views.views[0]).fate is Fate.COPIED
            views.check(snapshot)


def test_large_shared_memory_that_is_mapped_anew_meanwhile_is_live_and_says_so() -> None:
    with Views(8, 2, how="remaps") as views, snapshots(copy_bytes=MIB) as registry:
        part = part_at(take(registry, views.pid), views.views[0])
        assert (part.fate, part.reason) == (Fate.LIVE, f"shared memory, {REMAPPED}")
        assert views.is_as_before()


def test_shared_memory_that_was_mapped_in_the_last_moment_is_live_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare, maps_text = Freezing._prepare, AddressSpace.maps_text

    def maps_text_before(self: AddressSpace) -> bytes:
        return b"".join(line for line in maps_text(self).splitlines(True) if b"/memfd:heap" not in line)

    def prepare_before_it_was_mapped(self: Freezing) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(AddressSpace, "maps_text", maps_text_before)
            prepare(self)

    monkeypatch.setattr(Freezing, "_prepare", prepare_before_it_was_mapped)
    with Views(8, 1) as views, snapshots() as registry:
        part = part_at(take(registry, views.pid), views.views[0])
        assert (part.fate, part.reason) == (Fate.LIVE, "shared memory, and it was mapped just before")


def test_large_shared_memory_that_others_map_is_live_and_says_so() -> None:
    with Views(8, 1, how="forks") as views, snapshots(copy_bytes=MIB) as registry:
        part = part_at(take(registry, views.pid), views.views[0])
        assert (part.fate, part.reason) == (Fate.LIVE, f"shared memory, {OTHERS}")
        assert views.is_as_before()


def test_of_memory_that_others_map_it_says_that_they_did_not_stand_still() -> None:
    with Views(8, 1, how="forks") as views, snapshots() as registry:
        snapshot = take(registry, views.pid)
        part = part_at(snapshot, views.views[0])
        assert part.fate is Fate.COPIED
        assert part.reason == "shared memory, and other processes that map it did not stand still"
        again = registry.get(registry.make(identify(views.pid), b"two"))
        assert part_at(again, views.views[0]) == part


def test_large_shared_memory_that_is_written_in_another_way_is_live_and_says_so() -> None:
    """By write(2), which no protection of pages notes: a page is seen to be another than was copied."""
    with Views(8, 1, how="writes") as views, snapshots(copy_bytes=MIB) as registry:
        snapshot = take(registry, views.pid)
        part = part_at(snapshot, views.views[0])
        assert (part.fate, part.reason) == (Fate.LIVE, f"shared memory, {FOREIGN}")
        assert held_bytes(snapshot) < MIB
        assert views.is_as_before()


def test_large_shared_memory_takes_no_more_memory_than_it_may() -> None:
    with Views(8, 1) as views, snapshots(copy_bytes=MIB, memory_bytes=4 * MIB) as registry:
        snapshot = take(registry, views.pid)
        part = part_at(snapshot, views.views[0])
        assert (part.fate, part.reason) == (Fate.LIVE, f"shared memory, {MEMORY}")
        assert snapshot.frozen.phases.prepare == 0


def test_large_shared_memory_with_a_userfaultfd_of_its_process_is_left_alone() -> None:
    with Views(8, 1, how="watches") as views, snapshots(copy_bytes=MIB) as registry:
        snapshot = take(registry, views.pid)
        assert part_at(snapshot, views.views[0]).fate is Fate.LIVE
        assert not views.is_as_before()  # the flag is its own


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
