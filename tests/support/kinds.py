"""The kinds of mapping a holder can make, each by one function that is given a `room.Room`.

A maker yields its mappings one by one; where the machine cannot make one, it raises OSError. The docstring
of a maker says what a test finds there. Standard library only. This file knows of no command and no test.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support import kernel
from support.describe import Mapping, Run, cut_layers
from support.kernel import Advice, Map, Prot
from support.pattern import PAGE
from support.room import (
    FIRST_SLOT,
    GIB,
    HUGE,
    MIB,
    SLOT,
    Room,
    refuse_huge_pages,
    wait_for_end,
    write_pattern,
)

_PRIVATE = Map.PRIVATE | Map.ANONYMOUS
_SHARED = Map.SHARED | Map.ANONYMOUS
_RUNS = ((0, 1), (3, 7), (64, 128), (200, 201), (255, 256))
"""Pages written in a mapping of 256 that has holes: single ones, a long run, the first and the last."""

ODD_FILE_NAMES = (
    b"with space",
    b"new\nline",
    "unicod\N{LATIN SMALL LETTER E WITH ACUTE} \N{SNOWMAN}".encode(),
    b"not utf-8 \xff\xfe",
    b"really there (deleted)",
    b"back\\012slash",
    b"[heap]",
    b"-rf",
    b"n" * 255,
)
ODD_MEMFD_NAME = b"odd \xff\n/name (deleted)"
ODD_MEMORY_NAME = b"odd name (deleted) <1>:;'\"*?/"
SMALL_VMAS = 60_000

Maker = Callable[[Room], Iterator[Mapping]]
KINDS: dict[str, Maker] = {}


def kind(name: str) -> Callable[[Maker], Maker]:
    """Register a maker under the name of its kind."""

    def register(maker: Maker) -> Maker:
        KINDS[name] = maker
        return maker

    return register


# The two kinds that fork stand first: their child shall share little with the mappings made later.


def _written_by_child(room: Room, stays: bool) -> Mapping:
    mapping = room.map(256 * PAGE, _SHARED)
    done, tell = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        kernel.die_with_parent(parent)
        for first, end in _RUNS:
            write_pattern(room.pages(mapping, first, end), room.seed)
        os.write(tell, b"!")
        if stays:
            wait_for_end()
        os._exit(0)
    os.close(tell)
    os.read(done, 1)
    os.close(done)
    if stays:
        room.children.append(child)
    else:
        os.waitpid(child, 0)
    for first, end in _RUNS:
        mapping.wrote(room.pages(mapping, first, end), room.seed)
    mapping.path, mapping.deleted = b"/dev/zero", True
    return mapping


@kind("shared-anon-other")
def shared_anon_other(room: Room) -> Iterator[Mapping]:
    """Shared anonymous memory that only a child, which stays, has written."""
    yield _written_by_child(room, stays=True)


@kind("shared-anon-gone")
def shared_anon_gone(room: Room) -> Iterator[Mapping]:
    """Shared anonymous memory that only a child, which has ended, wrote."""
    yield _written_by_child(room, stays=False)


@kind("private-runs")
def private_runs(room: Room) -> Iterator[Mapping]:
    """Private anonymous memory with written pages and holes."""
    mapping = room.map(256 * PAGE, _PRIVATE)
    room.write(mapping, _RUNS)
    yield mapping


@kind("private-full")
def private_full(room: Room) -> Iterator[Mapping]:
    """Private anonymous memory, every page written; as long as the holder's --size."""
    mapping = room.map(room.size, _PRIVATE)
    room.write_all(mapping)
    yield mapping


@kind("zero-read")
def zero_read(room: Room) -> Iterator[Mapping]:
    """Private anonymous memory of which pages 16 to 48 were read and none was written."""
    mapping = room.map(64 * PAGE, _PRIVATE)
    room.touch(mapping, 16, 48)
    yield mapping


@kind("shared-anon")
def shared_anon(room: Room) -> Iterator[Mapping]:
    """Shared anonymous memory with pages that this process wrote, and holes."""
    mapping = room.map(256 * PAGE, _SHARED)
    room.write(mapping, _RUNS)
    mapping.path, mapping.deleted = b"/dev/zero", True
    yield mapping


@kind("system-v")
def system_v(room: Room) -> Iterator[Mapping]:
    """A System V shared memory segment, already removed, with written pages and holes."""
    length = 256 * PAGE
    address = room.take(length)
    kernel.attach_system_v(address, length)
    mapping = Mapping(room.kind, Run(address, address + length), "rw-s", room.seed)
    refuse_huge_pages(address, length)
    room.write(mapping, _RUNS)
    mapping.path, mapping.deleted = b"/SYSV00000000", True
    yield mapping


@kind("memfd-shared")
def memfd_shared(room: Room) -> Iterator[Mapping]:
    """A memfd mapped shared: pages 16 to 32 written to the descriptor only, others through the mapping."""
    data = [Run(16 * PAGE, 32 * PAGE)]
    opened = room.memfd(b"shared", data, 256 * PAGE)
    mapping = room.map_file(opened, data, 256 * PAGE, Map.SHARED, deleted=True)
    room.write(mapping, _RUNS)
    yield mapping


@kind("memfd-private")
def memfd_private(room: Room) -> Iterator[Mapping]:
    """A memfd mapped privately: data and holes below, some of both written over."""
    data = [Run(0, 16 * PAGE), Run(100 * PAGE, 160 * PAGE)]
    mapping = room.map_file(room.memfd(b"private", data, 256 * PAGE), data, 256 * PAGE, deleted=True)
    room.write(mapping, _RUNS)
    yield mapping


@kind("memfd-odd-name")
def memfd_odd_name(room: Room) -> Iterator[Mapping]:
    """A memfd whose name has bytes that are no text."""
    data = [Run(0, 4 * PAGE)]
    yield room.map_file(room.memfd(ODD_MEMFD_NAME, data, 4 * PAGE), data, 4 * PAGE, Map.SHARED, deleted=True)


@kind("dev-zero-private")
def dev_zero_private(room: Room) -> Iterator[Mapping]:
    """/dev/zero mapped privately: anonymous memory with a path, whose file has size 0."""
    opened = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC), b"/dev/zero"
    mapping = room.map_file(opened, [], 256 * PAGE)
    room.write(mapping, _RUNS)
    yield mapping


@kind("file-private")
def file_private(room: Room) -> Iterator[Mapping]:
    """A file mapped privately from its page 3 to its end in mid-page: some pages written, some read."""
    length = 259 * PAGE - 1000
    data = [Run(0, length)]
    opened = room.file(b"private", data, length)
    mapping = room.map_file(opened, data, 256 * PAGE, offset=3 * PAGE)
    room.write(mapping, _RUNS[:-1])
    room.touch(mapping, 160, 176)
    yield mapping


@kind("file-shared")
def file_shared(room: Room) -> Iterator[Mapping]:
    """A file mapped shared, some pages written through the mapping."""
    data = [Run(0, 256 * PAGE)]
    mapping = room.map_file(room.file(b"shared", data, 256 * PAGE), data, 256 * PAGE, Map.SHARED)
    room.write(mapping, _RUNS)
    yield mapping


@kind("file-truncated")
def file_truncated(room: Room) -> Iterator[Mapping]:
    """A file mapped privately and shared, 64 pages, then cut to 32 pages and 100 bytes: the rest faults."""
    size = 32 * PAGE + 100
    for flags in (Map.PRIVATE, Map.SHARED):
        data = [Run(0, 64 * PAGE)]
        opened = room.file(f"truncated-{flags.name}".lower().encode(), data, 64 * PAGE)
        mapping = room.map_file(opened, data, 64 * PAGE, flags)
        room.write(mapping, [(10, 12), (40, 44)])
        os.truncate(opened[1], size)
        run = room.pages(mapping, 33, 64)
        mapping.dropped(run)
        beyond = Run(mapping.run.start + size, mapping.run.end)
        mapping.object_layers = cut_layers(mapping.object_layers, beyond)
        mapping.unreadable.append(run)
        yield mapping


@kind("file-sparse")
def file_sparse(room: Room) -> Iterator[Mapping]:
    """A sparse file of 64 MiB, mapped and not read: 64 KiB of data at 0, at 16 MiB and at the end."""
    data = [Run(start, start + MIB // 16) for start in (0, 16 * MIB, 64 * MIB - MIB // 16)]
    yield room.map_file(room.file(b"sparse", data, 64 * MIB), data, 64 * MIB, prot=Prot.READ)


@kind("file-256m")
def file_256m(room: Room) -> Iterator[Mapping]:
    """A file of 256 MiB, mapped and not read."""
    data = [Run(0, 256 * MIB)]
    yield room.map_file(room.file(b"256m", data, 256 * MIB), data, 256 * MIB, prot=Prot.READ)


@kind("file-odd-names")
def file_odd_names(room: Room) -> Iterator[Mapping]:
    """Files whose names hold blanks, newlines, other scripts and words that maps uses itself."""
    for name in ODD_FILE_NAMES:
        data = [Run(0, 2 * PAGE)]
        yield room.map_file(room.file(name, data, 2 * PAGE), data, 2 * PAGE, prot=Prot.READ)


@kind("file-deleted")
def file_deleted(room: Room) -> Iterator[Mapping]:
    """A deleted file, mapped privately, one page written; a new file has taken its name."""
    data = [Run(0, 8 * PAGE)]
    opened = room.file(b"gone", data, 8 * PAGE)
    mapping = room.map_file(opened, data, 8 * PAGE, deleted=True)
    room.write(mapping, [(2, 3)])
    Path(os.fsdecode(opened[1])).unlink()
    Path(os.fsdecode(opened[1])).write_bytes(b"another file" * PAGE)
    yield mapping


@kind("none-data")
def none_data(room: Room) -> Iterator[Mapping]:
    """PROT_NONE over written pages and holes: the data is still there."""
    mapping = room.map(256 * PAGE, _PRIVATE)
    room.write(mapping, _RUNS)
    kernel.protect(mapping.run.start, 256 * PAGE, Prot.NONE)
    mapping.perms = "---p"
    yield mapping


@kind("none-reserved")
def none_reserved(room: Room) -> Iterator[Mapping]:
    """1 GiB of PROT_NONE, never touched."""
    yield room.map(GIB, _PRIVATE | Map.NORESERVE, Prot.NONE)


@kind("write-only")
def write_only(room: Room) -> Iterator[Mapping]:
    """Private anonymous memory that may be written and not read."""
    mapping = room.map(16 * PAGE, _PRIVATE, Prot.WRITE)
    room.write(mapping, [(2, 9)])
    yield mapping


@kind("exec-only")
def exec_only(room: Room) -> Iterator[Mapping]:
    """Private anonymous memory that may be executed and neither read nor written."""
    mapping = room.map(16 * PAGE, _PRIVATE)
    room.write(mapping, [(2, 9)])
    kernel.protect(mapping.run.start, 16 * PAGE, Prot.EXEC)
    mapping.perms = "--xp"
    yield mapping


@kind("guard")
def guard(room: Room) -> Iterator[Mapping]:
    """Written memory with guard regions in it (Linux 6.13), which no one can read."""
    mapping = room.map(64 * PAGE, _PRIVATE)
    room.write_all(mapping)
    for first, end in ((5, 6), (20, 30), (63, 64)):
        run = room.pages(mapping, first, end)
        kernel.advise(run.start, run.end - run.start, Advice.GUARD_INSTALL)
        mapping.dropped(run)
        mapping.unreadable.append(run)
    yield mapping


@kind("thp")
def thp(room: Room) -> Iterator[Mapping]:
    """8 MiB that asked for huge pages, fully written; `huge_bytes` tells how much of it is huge."""
    mapping = room.map(4 * HUGE, _PRIVATE, huge=True)
    kernel.advise(mapping.run.start, 4 * HUGE, Advice.HUGEPAGE)
    room.write_all(mapping)
    mapping.huge_bytes = _smaps_bytes(mapping.run.start, "AnonHugePages")
    yield mapping


@kind("hugetlb")
def hugetlb(room: Room) -> Iterator[Mapping]:
    """hugetlbfs memory, private and shared, two huge pages each, the first written; needs 4 of them."""
    for flags in (_PRIVATE, _SHARED):
        mapping = room.map(2 * HUGE, flags | Map.HUGETLB)
        mapping.path, mapping.deleted = b"/anon_hugepage", True
        run = room.pages(mapping, 0, HUGE // PAGE)
        write_pattern(run, room.seed)
        mapping.wrote(run, room.seed)
        mapping.touched.append(run)
        mapping.huge_bytes = HUGE
        yield mapping


def _smaps_bytes(start: int, name: str) -> int:
    entry = Path("/proc/self/smaps").read_bytes().partition(f"\n{start:x}-".encode())[2]
    found = re.search(rb"\n%s: +(\d+) kB" % name.encode(), entry)
    return int(found[1]) * 1024 if found else 0


def stack_run() -> Run:
    """The main thread's stack, as maps has it now."""
    found = re.search(rb"^(\w+)-(\w+) .*\[stack\]$", Path("/proc/self/maps").read_bytes(), re.MULTILINE)
    if found is None:
        raise OSError("maps has no [stack]")
    return Run(int(found[1], 16), int(found[2], 16))


@kind("stack")
def stack(room: Room) -> Iterator[Mapping]:
    """256 KiB of pattern 2 MiB below the main thread's stack, which grows down to it.

    The run is the written part only (`whole_vma` is false), and its address differs from holder to holder.
    """
    start = stack_run().start - 2 * MIB
    run = Run(start, start + MIB // 4)
    write_pattern(run, room.seed)
    mapping = Mapping(room.kind, run, "rw-p", room.seed, path=b"[stack]", whole_vma=False)
    mapping.wrote(run, room.seed)
    mapping.touched.append(run)
    yield mapping


@kind("named")
def named(room: Room) -> Iterator[Mapping]:
    """Anonymous memory, private and shared, with a name of odd characters (CONFIG_ANON_VMA_NAME)."""
    for flags, prefix in ((_PRIVATE, b"[anon:"), (_SHARED, b"[anon_shmem:")):
        mapping = room.map(4 * PAGE, flags)
        kernel.name_memory(mapping.run.start, 4 * PAGE, ODD_MEMORY_NAME)
        mapping.path = prefix + ODD_MEMORY_NAME + b"]"
        room.write_all(mapping)
        yield mapping


@kind("secretmem")
def secretmem(room: Room) -> Iterator[Mapping]:
    """memfd_secret memory, written: no one but its owner can read it."""
    descriptor = kernel.secret_memory()
    os.ftruncate(descriptor, 8 * PAGE)
    mapping = room.map_file((descriptor, b"/secretmem"), [], 8 * PAGE, Map.SHARED, deleted=True)
    room.write_all(mapping)
    mapping.unreadable.append(mapping.run)
    yield mapping


@kind("reserved-8g")
def reserved_8g(room: Room) -> Iterator[Mapping]:
    """8 GiB reserved, 32 MiB written: the first MiB of every 256."""
    yield _reserved(room, 8 * GIB, 256 * MIB)


@kind("reserved-64g")
def reserved_64g(room: Room) -> Iterator[Mapping]:
    """64 GiB reserved, 64 MiB written: the first MiB of every GiB."""
    yield _reserved(room, 64 * GIB, GIB)


def _reserved(room: Room, length: int, stride: int) -> Mapping:
    mapping = room.map(length, _PRIVATE | Map.NORESERVE)
    pages = MIB // PAGE
    room.write(mapping, [(first, first + pages) for first in range(0, length // PAGE, stride // PAGE)])
    return mapping


@kind("vmas-60000")
def vmas_60000(room: Room) -> Iterator[Mapping]:
    """60,000 VMAs of one page each: even pages rw-p, odd ones r--p; 2 in 100 are written."""
    mapping = room.map(SMALL_VMAS * PAGE, _PRIVATE)
    room.write(mapping, [(first, first + 2) for first in range(0, SMALL_VMAS, 100)])
    for address in range(mapping.run.start + PAGE, mapping.run.end, 2 * PAGE):
        kernel.protect(address, PAGE, Prot.READ)
    mapping.vma_count = SMALL_VMAS
    yield mapping


@dataclass
class Made:
    """What came of making some kinds; *unavailable* says why a kind could not be made."""

    mappings: list[Mapping] = field(default_factory=list)
    children: list[int] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)


def make(wanted: Iterable[str], seed: int, directory: Path, size: int) -> Made:
    """Make every mapping of the *wanted* kinds."""
    wanted, made = set(wanted), Made()
    for index, (name, maker) in enumerate(KINDS.items()):
        if name in wanted:
            room = Room(name, seed, directory, size, FIRST_SLOT + index * SLOT, made.children)
            try:
                made.mappings.extend(maker(room))
            except OSError as error:
                made.unavailable[name] = str(error)
    return made
