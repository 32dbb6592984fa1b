"""Many readers, many targets, long runs: nothing leaks, nothing locks, no byte is wrong.

MEMFS_STRESS_SECONDS sets how long the stress test runs (8 unless set; 600 for a long run).
"""

import mmap
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest
from mount.mounted import MIB, Mount, check, mounted, open_descriptors, opened, run
from support.drivers import Churn
from support.kinds import SMALL_VMAS
from support.outside import read_maps
from support.pages import PUBLISHED_END, PUBLISHED_START, verify
from support.pattern import PAGE
from support.target import Target

_SECONDS = float(os.environ.get("MEMFS_STRESS_SECONDS", "8"))
_MOST_RSS = 80 * MIB
_READERS = 8
_STAND_BY = 8
"""Descriptors that the daemon may come to hold for itself: a pipe for each thread, the latency request."""
_GOING = re.compile(
    rb"No such file or directory|No such process|Stale file handle|Input/output error|cannot access|"
    rb"replaced while being copied|skipping file"
)
"""What a tool may say of a process that changes or ends under it."""
_NOT_LEFT = re.compile(rb"part of the same file system loop")
"""What find says of two directories that ended as it opened them: up to findutils 4.10 its fts does not
leave a directory whose second stat failed, and takes the next one like it for the same (gnulib, fts.c:
LEAVE_DIR only ``if (p->fts_errno == 0)``). There is no directory of ours that a loop could go through."""


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def _assert_descriptors(mount: Mount, before: int) -> None:
    """Closed files are released a moment later: each round trip to the daemon gives it one."""
    deadline = monotonic() + 5
    while open_descriptors(mount.daemon) > before + _STAND_BY and monotonic() < deadline:
        os.stat(mount.path)
    assert open_descriptors(mount.daemon) <= before + _STAND_BY


def test_many_opens_leave_no_descriptor_behind(either_memfs: Mount, holder: Target) -> None:
    files = [either_memfs.vma(holder.pid, mapping) for mapping in holder.mappings]

    def use_all() -> None:
        for file in files:
            with opened(file) as descriptor:
                os.pread(descriptor, 16 * PAGE, 0)
        os.listdir(either_memfs.process(holder.pid) / "vmas")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: use_all(), range(4)))
        before = open_descriptors(either_memfs.daemon)
        list(pool.map(lambda _: use_all(), range(40)))
    _assert_descriptors(either_memfs, before)


def test_failed_opens_leave_no_descriptor_behind(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        directory = os.open(memfs.process(target.pid), os.O_RDONLY)
    try:
        before = open_descriptors(memfs.daemon)
        for _ in range(200):
            with pytest.raises(FileNotFoundError):
                os.open("mem", os.O_RDONLY, dir_fd=directory)
        _assert_descriptors(memfs, before)
    finally:
        os.close(directory)


def test_many_files_may_be_open_at_once(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("private-full")
    file = memfs.vma(holder.pid, mapping)
    before = open_descriptors(memfs.daemon)
    descriptors = [os.open(file, os.O_RDONLY) for _ in range(500)]
    try:
        for index, descriptor in enumerate(descriptors):
            assert mapping.mismatch(index * PAGE, os.pread(descriptor, PAGE, index * PAGE)) is None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    _assert_descriptors(memfs, before)


def test_the_daemon_can_be_read_through_its_own_mount(either_memfs: Mount, shm: Path) -> None:
    """Its memory changes as it answers, so that a name may lead nowhere any more; but it always answers."""
    process = either_memfs.process(either_memfs.daemon)
    done = run("cp", "-r", process, shm / "copy")
    assert [line for line in done.stderr.splitlines() if not _GOING.search(line)] == []
    assert (shm / "copy" / os.readlink(process / "text")).read_bytes()[:4096] == _text_of(either_memfs.daemon)


def _text_of(pid: int) -> bytes:
    program = os.fsencode(os.readlink(f"/proc/{pid}/exe"))
    text = next(line for line in read_maps(pid) if line.path == program and line.perms == "r-xp")
    with opened(Path(f"/proc/{pid}/mem")) as memory:
        return os.pread(memory, 4096, text.span.start)


_READ_SELF = """
import ctypes, mmap, os, sys
memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(256)) * 4096
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
flat = os.open(sys.argv[1] + "/self/mem", os.O_RDONLY)
for _ in range(50):
    # Into another buffer, and into the very pages that are read.
    assert os.pread(flat, 1 << 20, address) == bytes(range(256)) * 4096
    assert os.preadv(flat, [memory], address) == 1 << 20
    assert memory[:] == bytes(range(256)) * 4096
"""


def test_a_reader_can_read_its_own_memory(either_memfs: Mount) -> None:
    check("/usr/bin/python3", "-c", _READ_SELF, either_memfs.path)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_a_process_that_maps_a_file_of_the_mount_locks_nothing(
    either_memfs: Mount, holder: Target, flags: int, shm: Path
) -> None:
    """The daemon would have to ask itself: such a mapping has no file, and is a hole in the flat one."""
    mapping = holder.mapping("private-full")
    file = either_memfs.vma(holder.pid, mapping)
    with opened(file) as descriptor, mmap.mmap(descriptor, mapping.length, flags, mmap.PROT_READ):
        (line,) = (line for line in read_maps(os.getpid()) if line.path == os.fsencode(file))
        process = either_memfs.process(os.getpid())
        assert f"{line.span.start:x}-".encode() in (process / "maps").read_bytes()
        assert not [name for name in os.listdir(process / "vmas") if int(name[:12], 16) == line.span.start]
        with opened(process / "mem") as flat:
            assert os.lseek(flat, line.span.start, os.SEEK_HOLE) == line.span.start
            assert os.pread(flat, mapping.length, line.span.start) == bytes(mapping.length)
    check("cp", file, shm / "copy")
    assert mapping.mismatch(0, (shm / "copy").read_bytes()) is None


def test_many_long_listings_at_once_lock_nothing(memfs: Mount, tmp_path: Path) -> None:
    """Their answers are larger than all the room there is for answers on their way."""
    with Target("vmas-60000", directory=tmp_path) as target, ThreadPoolExecutor(6) as pool:
        vmas = memfs.process(target.pid) / "vmas"
        listings = list(pool.map(lambda _: check("ls", "-U", vmas, timeout=35).splitlines(), range(6)))
        assert {len(names) for names in listings} == {len(set(listings[0]))}
        assert len(listings[0]) > SMALL_VMAS


def test_short_lived_processes_under_find_leave_the_daemon_small(memfs: Mount) -> None:
    memfs.declare_denials()
    with Churn(alive=2) as churn:
        for _ in range(5):
            find = subprocess.Popen(
                ["find", memfs.path, "-maxdepth", "2", "-ls"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            churn.spawn(200)
            find.wait()
        churn.stop()
    assert _rss(memfs.daemon) < _MOST_RSS


class _Load:
    """Readers that go on until the time is over, and what they found."""

    def __init__(self, mount: Mount, directory: Path, seconds: float) -> None:
        self.mount = mount
        self.copies = 0
        self.wrong: list[str] = []
        self._directory = directory
        self._deadline = monotonic() + seconds
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        """One reader's work: find, cp and dd by turns, each reader beginning elsewhere."""
        turns = [
            self._find,
            self._cp,
            self._dd("64K"),
            self._cp_sparse,
            self._dd("1M", "iflag=direct"),
            self._dd("4K"),
        ]
        copy = self._directory / f"copy-{number}"
        turn = number
        while monotonic() < self._deadline and not self.wrong:
            turns[turn % len(turns)](copy)
            turn += 1

    def _find(self, _copy: Path) -> None:
        self._tool(["find", self.mount.path, "-maxdepth", "2", "-ls"])
        churn = self.mount.path / "by-name/churn"
        self._tool(["find", "-L", churn, "-path", "*/proc", "-prune", "-o", "-ls"])

    def _cp(self, copy: Path) -> None:
        self._copy_all(copy, lambda file: ["cp", file, copy])

    def _cp_sparse(self, copy: Path) -> None:
        self._copy_all(copy, lambda file: ["cp", "--sparse=never", file, copy])

    def _dd(self, block: str, *options: str) -> Callable[[Path], None]:
        return lambda copy: self._copy_all(
            copy, lambda file: ["dd", f"if={file}", f"of={copy}", f"bs={block}", "status=none", *options]
        )

    def _tool(self, argv: list[str | Path]) -> None:
        done = run("nice", *argv, timeout=60)
        strange = [line for line in done.stderr.splitlines() if not _GOING.search(line)]
        strange = [
            line for line in strange if b"Permission denied" not in line and not _NOT_LEFT.search(line)
        ]
        if strange:
            self.wrong.append(f"{argv}: {strange[0]!r}")

    def _copy_all(self, copy: Path, argv: Callable[[Path], list[str | Path]]) -> None:
        for address, file in self._published():
            copy.unlink(missing_ok=True)
            self._tool(argv(file))
            if copy.exists():
                data = copy.read_bytes()
                # A copy that ended in an error is right as far as it goes.
                problems = verify(data[: len(data) // PAGE * PAGE], address)
                self.wrong += [f"{argv(file)}: {problem}" for problem in problems[:3]]
                with self._lock:
                    self.copies += len(data) > 0
            if monotonic() > self._deadline:
                return

    def _published(self) -> Iterator[tuple[int, Path]]:
        try:
            process = self.mount.path / "by-name/churn"
            pid = os.listdir(process)[os.getpid() % 2]
            files = list((self.mount.process(int(pid)) / "vmas").iterdir())
        except (OSError, IndexError):
            return
        for file in files:
            address = int(file.name[:12], 16)
            if PUBLISHED_START <= address < PUBLISHED_END:
                yield address, file


@pytest.mark.timeout(_SECONDS + 100)
def test_readers_are_right_while_processes_come_and_go(splice: str, shm: Path, tmp_path: Path) -> None:
    seconds = _SECONDS / 2  # each way to put a reply together gets its half
    with mounted(tmp_path, f"splice={splice}", limit_seconds=seconds + 70) as mount, Churn() as churn:
        mount.declare_denials()
        before = open_descriptors(mount.daemon)
        load = _Load(mount, shm, seconds)
        with ThreadPoolExecutor(_READERS) as pool:
            for finished in [pool.submit(load.run, number) for number in range(_READERS)]:
                finished.result()
        count = churn.stop()
        assert load.wrong == []
        assert load.copies > seconds
        assert count.ended > 0
        assert _rss(mount.daemon) < _MOST_RSS
        _assert_descriptors(mount, before)
