"""Memory that a process keeps out of its forks is in a snapshot, and is kept out of them as before."""

import errno
import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from process.freezing import snapshots
from process.test_snapshots import NEW, part_of, read, running, take
from support.held import HeldMapping, Span
from support.pattern import PAGE, fill
from support.target import Target

from memfs.errors import CannotFreeze, MemfsError, RangeUnmapped
from memfs.linux.arch import Call
from memfs.snapshot.freeze import Freezing
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import Fate
from memfs.target import fork, withheld
from memfs.target.injection import Injection
from memfs.target.withheld import Advice, find_withheld

FLAGS = {"dontfork": b"dc", "wipeonfork": b"wf"}


@pytest.fixture(scope="module")
def registry() -> Iterator[Snapshots]:
    """Copies nothing: what is not in the fork is absent."""
    with snapshots(copy_bytes=0) as made:
        yield made


def vmas(pid: int) -> list[tuple[bytes, bytes]]:
    """Each line of maps, and the flags of its VMA."""
    text = Path(f"/proc/{pid}/smaps").read_bytes()
    return re.findall(rb"(?m)^([0-9a-f]+-[0-9a-f]+ .*)\n(?:\w+:.*\n)*?VmFlags:(.*)$", text)


def flags_at(pid: int, address: int) -> frozenset[bytes]:
    """The flags of the VMA that begins at *address*."""
    (flags,) = [flags for line, flags in vmas(pid) if int(line.partition(b"-")[0], 16) == address]
    return frozenset(flags.split())


def is_mapped(pid: int, address: int) -> bool:
    """Whether there is anything at *address*."""
    spans = [line.split()[0].split(b"-") for line, _ in vmas(pid)]
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("private-full", "dontfork"),
        ("private-runs", "dontfork"),
        ("thp", "dontfork"),
        ("none-data", "dontfork"),
        ("file-private", "dontfork"),
        ("memfd-private", "dontfork"),
        ("private-full", "wipeonfork"),
        ("thp", "wipeonfork"),
    ],
)
def test_private_memory_is_frozen_and_not_copied(
    registry: Snapshots, tmp_path: Path, kind: str, advice: str
) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        target.madvise(mapping.start, mapping.length, advice)
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        part = part_of(snapshot, mapping)
        assert (part.fate, part.reason) == (Fate.FROZEN, "")
        if kind == "none-data":
            target.mprotect(mapping.start, mapping.length, "rw-")
        target.write(mapping.start, mapping.length, NEW)
        assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        assert FLAGS[advice] in snapshot.frozen.uses[mapping.start].flags


def test_shared_memory_is_like_all_other_shared_memory(registry: Snapshots, tmp_path: Path) -> None:
    with Target("memfd-shared", directory=tmp_path) as target:
        mapping = target.mapping("memfd-shared")
        target.madvise(mapping.start, mapping.length, "dontfork")
        part = part_of(take(registry, target.pid), mapping)
        assert (part.fate, part.reason) == (Fate.LIVE, "shared memory, and more than snapshot_copy allows")
        with snapshots() as copying:
            assert part_of(take(copying, target.pid), mapping).fate is Fate.COPIED


def test_both_flags_of_one_vma_are_kept(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        for advice in FLAGS:
            target.madvise(mapping.start, mapping.length, advice)
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert part_of(snapshot, mapping).fate is Fate.FROZEN
        assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        assert vmas(target.pid) == before


# Its neighbours


PIECES = (
    ((4, 8, "dontfork", ""),),
    ((4, 8, "wipeonfork", ""),),
    ((0, 8, "dontfork", ""), (8, 8, "wipeonfork", "")),
    ((0, 4, "dontfork", "rw-"), (4, 4, "dontfork", "r--"), (8, 4, "dontfork", "rw-")),
    ((0, 4, "dontfork", ""), (4, 4, "", "r--"), (8, 4, "dontfork", "")),
    ((0, 1, "dontfork", ""), (2, 2, "dontfork", "")),
    tuple((2 * number, 1, "dontfork", "") for number in range(6)),
    tuple((3 * number, 2, "dontfork", "") for number in range(5)),
)
"""First page, pages, what is advised, and permissions; of 16 pages each time."""


@pytest.mark.parametrize("kind", ["private-runs", "zero-read", "file-private", "shared-anon"])
def test_no_vma_is_split_or_merged(registry: Snapshots, tmp_path: Path, kind: str) -> None:
    with Target(kind, directory=tmp_path) as target:
        mapping = target.mapping(kind)
        advised = []
        anonymous = kind in ("private-runs", "zero-read")
        sets = [pieces for pieces in PIECES if anonymous or pieces[-1][2] != "wipeonfork"]
        for at, pieces in zip(range(0, mapping.length // PAGE - 16, 16), sets, strict=False):
            for first, pages, advice, perms in pieces:
                begin = (at + first) * PAGE
                if perms:
                    target.mprotect(mapping.start + begin, pages * PAGE, perms)
                if advice:
                    target.madvise(mapping.start + begin, pages * PAGE, advice)
                    advised.append((begin, pages))
        before = vmas(target.pid)
        for name in (b"one", b"two"):
            snapshot = take(registry, target.pid, name)
            assert vmas(target.pid) == before
            assert snapshot.frozen.maps_text.splitlines() == [line for line, _ in before]
        for begin, pages in advised:
            if pages > 1 and kind != "shared-anon":
                span = Span(mapping.start + begin, mapping.start + begin + pages * PAGE)
                assert read(snapshot, span) == mapping.expected(begin, pages * PAGE)


def test_vmas_that_were_touched_apart_from_each_other_stay_apart(registry: Snapshots, tmp_path: Path) -> None:
    """They have pages of different origin, so the kernel never merges them, whatever their flags are."""
    with Target("private-runs", directory=tmp_path) as target:
        base = target.mapping("private-runs").end + (1 << 30)
        left, right = target.map(base, 8 * PAGE), target.map(base + 16 * PAGE, 8 * PAGE)
        for side in (left, right):
            target.write(side.start, side.length, 1)
        between = target.map(base + 8 * PAGE, 8 * PAGE)
        target.madvise(base, 24 * PAGE, "dontfork")
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        assert read(snapshot, between.span) == bytes(8 * PAGE)
        for side in target.held.of("mapped"):
            assert read(snapshot, side.span) == side.expected(0, side.length)


def test_forks_of_the_process_lack_it_as_before(registry: Snapshots, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontfork")
        take(registry, target.pid)
        child = target.fork()
        assert not is_mapped(child, mapping.start)
        target.end(child)


def withhold(target: Target, number: int, *, step: int = 4, between: bool = False) -> list[HeldMapping]:
    """Map so many VMAs of two pages or three, apart from each other, and keep them out of forks.

    With *between* there is something else in each gap.
    """
    base = target.mapping("private-runs").end + (1 << 30)
    mapped = []
    for at in range(base, base + number * step * PAGE, step * PAGE):
        mapped.append(target.map(at, (2 + len(mapped) % 2) * PAGE))
        target.write(at, PAGE, 1)
        target.madvise(at, mapped[-1].length, "dontfork")
        if between:
            target.map(at + 3 * PAGE, PAGE)
    return mapped


def first_page_of(snapshot: Snapshot, mapping: HeldMapping) -> bytes:
    """As the snapshot has it."""
    return read(snapshot, Span(mapping.start, mapping.start + PAGE))


MANY = 200
"""So many are asked for by a fork."""


@pytest.mark.parametrize("between", [False, True])
def test_however_many_there_are_all_are_frozen(registry: Snapshots, tmp_path: Path, between: bool) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        mapped = withhold(target, MANY, between=between)
        before = vmas(target.pid)
        for name in (b"one", b"two"):
            snapshot = take(registry, target.pid, name)
            assert vmas(target.pid) == before
            assert snapshot.frozen.maps_text.splitlines() == [line for line, _ in before]
        parts = [part_of(snapshot, mapping) for mapping in mapped]
        assert {(part.fate, part.reason) for part in parts} == {(Fate.FROZEN, "")}
        assert all(FLAGS["dontfork"] in snapshot.frozen.uses[mapping.start].flags for mapping in mapped)
        for mapping in mapped:
            assert first_page_of(snapshot, mapping) == fill(mapping.start, PAGE, 1)
        child = target.fork()
        assert not any(is_mapped(child, mapping.start) for mapping in mapped)
        target.end(child)


def test_of_many_those_that_had_lost_the_flag_do_not_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        mapped = withhold(target, MANY)
        lost = mapped[::7]
        for mapping in lost:
            target.madvise(mapping.start, mapping.length, "dofork")
        before = vmas(target.pid)
        _outdated(monkeypatch, [mapping.start for mapping in lost], frozenset((b"rd", b"wr", b"dc")))
        with snapshots(copy_bytes=0) as registry:
            snapshot = take(registry, target.pid)
            assert {part_of(snapshot, mapping).fate for mapping in mapped} == {Fate.FROZEN}
        assert vmas(target.pid) == before
        child = target.fork()
        assert [mapping for mapping in mapped if is_mapped(child, mapping.start)] == lost
        target.end(child)


def test_beside_many_what_was_advised_in_the_last_moment_is_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        mapped = withhold(target, MANY)
        _outdated(monkeypatch, [mapped[3].start], frozenset((b"rd", b"wr")))
        before = vmas(target.pid)
        with snapshots(copy_bytes=0) as registry:
            snapshot = take(registry, target.pid)
            assert {part_of(snapshot, mapping).fate for mapping in mapped} == {Fate.FROZEN}
        assert vmas(target.pid) == before


def test_of_too_many_apart_from_each_other_the_small_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(withheld, "MOST_RUNS", 4)
    with Target("private-runs", directory=tmp_path) as target:
        mapped = withhold(target, 8, between=True)
        before = vmas(target.pid)
        with snapshots(copy_bytes=0) as registry:
            snapshot = take(registry, target.pid)
            assert vmas(target.pid) == before
            fates = [part_of(snapshot, mapping).fate for mapping in mapped]
            assert fates == [Fate.ABSENT, Fate.FROZEN] * 4
            assert part_of(snapshot, mapped[0]).reason == "MADV_DONTFORK, and more than snapshot_copy allows"
            assert FLAGS["dontfork"] in snapshot.frozen.uses[mapped[0].start].flags
            with pytest.raises(RangeUnmapped):
                first_page_of(snapshot, mapped[0])
        with snapshots() as copying:
            snapshot = take(copying, target.pid)
            assert part_of(snapshot, mapped[0]).fate is Fate.COPIED
            assert first_page_of(snapshot, mapped[0]) == fill(mapped[0].start, PAGE, 1)


_RING = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
ring = libc.syscall(425, 8, (ctypes.c_uint32 * 30)())  # io_uring_setup(2)
at = 0
if ring >= 0:
    at = libc.mmap(None, ctypes.c_size_t(4096), 3, 1, ring, ctypes.c_long(0))
    assert not libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(4096), 10)
print(at, flush=True)
os.read(0, 1)
"""


def test_memory_of_a_driver_is_not_said_to_be_too_much(registry: Snapshots) -> None:
    with running(_RING) as (ring, start):
        if not start:
            pytest.skip("the kernel has no io_uring for us")
        (part,) = [part for part in take(registry, ring.pid).frozen.parts if part.region.span.start == start]
        assert (part.fate, part.reason) == (Fate.ABSENT, "MADV_DONTFORK, memory of a driver")


# What smaps told before the stop is outdated


def _outdated(
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[int],
    flags: frozenset[bytes],
    maps: bytes | None = None,
) -> None:
    """Have the worker believe that smaps told *flags* of the VMAs at *addresses*, and maps that text."""
    prepare = Freezing._prepare

    def prepare_otherwise(self: Freezing) -> None:
        prepare(self)
        told = {at: attrs.evolve(self._known.uses[at], flags=flags) for at in addresses}
        self._known = attrs.evolve(self._known, uses={**self._known.uses, **told})
        self._withheld = find_withheld(self._layout, self._layout, self._known.uses)
        if maps is not None:
            self._maps_text = maps
            self._known_layout = self._layout = self._space.layout_of(maps)

    monkeypatch.setattr(Freezing, "_prepare", prepare_otherwise)


def test_memory_whose_flag_has_been_taken_away_does_not_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        mapping = target.mapping("private-runs")
        before = vmas(target.pid)
        _outdated(monkeypatch, [mapping.start], frozenset((b"rd", b"wr", b"dc", b"wf")))
        with snapshots(copy_bytes=0) as registry:
            snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        assert part_of(snapshot, mapping).fate is Fate.FROZEN


def test_memory_that_has_grown_in_the_last_moment_is_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Target("private-runs", "private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontfork")
        before = vmas(target.pid)
        now = Path(f"/proc/{target.pid}/maps").read_bytes()
        shorter = now.replace(
            b"%x-%x" % (mapping.start, mapping.end), b"%x-%x" % (mapping.start, mapping.end - PAGE)
        )
        assert shorter != now
        _outdated(monkeypatch, [mapping.start], flags_at(target.pid, mapping.start), shorter)
        with snapshots(copy_bytes=0) as registry:
            snapshot = take(registry, target.pid)
            assert read(snapshot, mapping.span) == mapping.expected(0, mapping.length)
        assert vmas(target.pid) == before


# What goes wrong


def _clone_otherwise(monkeypatch: pytest.MonkeyPatch, instead: str) -> None:
    """In the worker, the clone that makes the copy does something else."""
    clone = Injection.clone
    done: list[int] = []

    def clone_or_not(self: Injection, flags: int) -> int:
        if flags == fork._CLONE_PARENT and not done:
            done.append(flags)
            if instead == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(int(instead), "it was made to fail")
        return clone(self, flags)

    monkeypatch.setattr(Injection, "clone", clone_or_not)


def test_after_a_fork_that_failed_it_is_kept_out_as_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _clone_otherwise(monkeypatch, str(int(errno.EAGAIN)))
    with Target("private-full", directory=tmp_path) as target, snapshots() as registry:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontfork")
        before = vmas(target.pid)
        with pytest.raises(CannotFreeze):
            take(registry, target.pid)
        assert vmas(target.pid) == before


def test_where_memory_is_not_promised_for_it_the_rest_is_frozen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _clone_otherwise(monkeypatch, str(int(errno.ENOMEM)))
    with Target("private-full", "private-runs", directory=tmp_path) as target, snapshots() as registry:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontfork")
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        assert part_of(snapshot, mapping).fate is Fate.ABSENT
        assert part_of(snapshot, target.mapping("private-runs")).fate is Fate.FROZEN


def test_where_no_fork_can_be_had_to_ask_by_each_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _clone_otherwise(monkeypatch, str(int(errno.EAGAIN)))
    with Target("private-runs", directory=tmp_path) as target, snapshots(copy_bytes=0) as registry:
        mapped = withhold(target, MANY)
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        assert {part_of(snapshot, mapping).fate for mapping in mapped} == {Fate.FROZEN}


@pytest.mark.parametrize("number", [3, MANY])
def test_what_does_not_let_its_flag_be_set_keeps_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    call = Injection.call

    def call_otherwise(self: Injection, what: Call, *arguments: int) -> int:
        if what is Call.MADVISE and arguments[2] == Advice.DONTFORK:
            raise OSError(errno.EPERM, "it is sealed")
        return call(self, what, *arguments)

    monkeypatch.setattr(Injection, "call", call_otherwise)
    with Target("private-runs", directory=tmp_path) as target, snapshots(copy_bytes=0) as registry:
        mapped = withhold(target, number)
        before = vmas(target.pid)
        snapshot = take(registry, target.pid)
        assert vmas(target.pid) == before
        assert {part_of(snapshot, mapping).fate for mapping in mapped} == {Fate.ABSENT}


def test_a_worker_that_is_killed_leaves_no_process_with_other_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is in the middle of a call of the process then, which ends with it, as the documents say."""
    _clone_otherwise(monkeypatch, "killed")
    with Target("private-full", directory=tmp_path) as target, snapshots() as registry:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontfork")
        end = os.pidfd_open(target.pid)
        with pytest.raises(MemfsError):
            take(registry, target.pid)
        assert select.select([end], [], [], 60)[0]
        os.close(end)
