"""Targets that change, exec, unmap, end, or give their pid away while a file is open."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from mount.mounted import MEMFS, MIB, Mount, error_of, mounts_on, opened, run
from support.child import Child
from support.drivers import PidNamespace
from support.held import HeldMapping
from support.pattern import PAGE
from support.target import Target

_REUSED_PID = 4321


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A process for one test to change."""
    kinds = "private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"
    with Target(*kinds, directory=tmp_path) as target:
        yield target


def _answers(descriptor: int, size: int, start: int = 0) -> set[int | None]:
    """What reading and seeking anywhere in *size* bytes at *start* ends with; None: it succeeded."""
    offsets = range(start, start + size, 64 * PAGE)
    reads = {error_of(lambda at=at: os.pread(descriptor, 64 * PAGE, at)) for at in offsets}  # type: ignore[misc]
    return reads | {
        error_of(lambda: os.lseek(descriptor, start, os.SEEK_DATA)),
        error_of(lambda: os.lseek(descriptor, start, os.SEEK_HOLE)),
    }


@contextmanager
def _opened_with_flat(memfs: Mount, pid: int, mapping: HeldMapping) -> Iterator[tuple[int, int]]:
    """A mapping's own file and the flat one."""
    with opened(memfs.vma(pid, mapping)) as own, opened(memfs.process(pid) / "mem") as flat:
        assert mapping.mismatch(0, os.pread(own, PAGE, 0)) is None
        assert mapping.mismatch(0, os.pread(flat, PAGE, mapping.start)) is None
        yield own, flat


def test_what_was_written_is_seen_by_who_opens_anew(either_memfs: Mount, target: Target) -> None:
    for seed, kind in enumerate(
        ("private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"), 7
    ):
        mapping = target.mapping(kind)
        file = either_memfs.vma(target.pid, mapping)
        assert mapping.mismatch(0, file.read_bytes()) is None
        target.write(mapping.start + 9 * PAGE, 3 * PAGE, seed)
        assert target.mapping(kind).mismatch(0, file.read_bytes()) is None


def test_what_was_written_is_seen_by_each_direct_read(either_memfs: Mount, target: Target) -> None:
    for kind in ("private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"):
        mapping = target.mapping(kind)
        with opened(either_memfs.vma(target.pid, mapping), os.O_DIRECT) as descriptor:
            for seed in range(2, 12):
                target.write(mapping.start + 9 * PAGE, 3 * PAGE, seed)
                got = os.pread(descriptor, 16 * PAGE, 0)
                assert target.mapping(kind).mismatch(0, got) is None


def test_what_is_dropped_reads_as_zeros(either_memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    file = either_memfs.vma(target.pid, mapping)
    assert mapping.mismatch(0, file.read_bytes()) is None
    target.madvise(mapping.start + 16 * PAGE, 32 * PAGE, "dontneed")
    assert file.read_bytes()[16 * PAGE : 48 * PAGE] == bytes(32 * PAGE)


def test_names_follow_what_is_mapped(memfs: Mount, target: Target) -> None:
    mapping = target.map(0x5000_0000_0000, 16 * PAGE)
    vmas = memfs.process(target.pid) / "vmas"
    names = [f"{mapping.start:012x}-{mapping.start + 16 * PAGE:012x}_rw-p_anon"]
    assert [name for name in os.listdir(vmas) if name.startswith("5000")] == names
    target.mprotect(mapping.start, 16 * PAGE, "r--")
    names = [names[0].replace("rw-p", "r--p")]
    assert [name for name in os.listdir(vmas) if name.startswith("5000")] == names
    assert (vmas / names[0]).stat().st_size == 16 * PAGE
    target.unmap(mapping.start, 16 * PAGE)
    assert [name for name in os.listdir(vmas) if name.startswith("5000")] == []


@pytest.mark.parametrize(
    "kind", ["private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"]
)
def test_who_opened_before_the_end_gets_esrch(either_memfs: Mount, target: Target, kind: str) -> None:
    mapping = target.mapping(kind)
    with _opened_with_flat(either_memfs, target.pid, mapping) as (own, flat):
        target.exit()
        assert _answers(own, mapping.length) == {errno.ESRCH}
        assert _answers(flat, mapping.length, mapping.start) == {errno.ESRCH}


def test_who_comes_after_the_end_gets_enoent(memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    name = memfs.vma(target.pid, mapping).name
    directory = os.open(memfs.process(target.pid), os.O_RDONLY)
    try:
        target.exit()
        for path in ("mem", "maps", f"vmas/{name}"):
            assert error_of(lambda path=path: os.open(path, os.O_RDONLY, dir_fd=directory)) == errno.ENOENT  # type: ignore[misc]
            assert (
                error_of(lambda path=path: os.open(memfs.process(target.pid) / path, os.O_RDONLY))
                == errno.ENOENT
            )  # type: ignore[misc]
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    "kind", ["private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"]
)
def test_who_opened_before_an_exec_gets_estale(either_memfs: Mount, target: Target, kind: str) -> None:
    mapping = target.mapping(kind)
    with _opened_with_flat(either_memfs, target.pid, mapping) as (own, flat):
        target.exec(kind, seed=2)
        new = target.mapping(kind)
        assert (new.span, new.seed) == (mapping.span, 2)
        assert _answers(own, mapping.length) == {errno.ESTALE}
        assert _answers(flat, mapping.length, mapping.start) == {errno.ESTALE}
        assert new.mismatch(0, either_memfs.vma(target.pid, new).read_bytes()) is None


@pytest.mark.parametrize(
    "kind", ["private-runs", "private-full", "file-private", "shared-anon", "memfd-shared"]
)
def test_what_was_unmapped_is_an_error(either_memfs: Mount, target: Target, kind: str) -> None:
    mapping = target.mapping(kind)
    with opened(either_memfs.vma(target.pid, mapping)) as descriptor:
        target.unmap(mapping.start + 64 * PAGE, 64 * PAGE)
        for at in range(64, 128, 16):
            assert error_of(lambda at=at: os.pread(descriptor, 16 * PAGE, at * PAGE)) == errno.EIO  # type: ignore[misc]
        for at in (0, 128):
            got = os.pread(descriptor, 64 * PAGE, at * PAGE)
            assert (len(got), mapping.mismatch(at * PAGE, got)) == (64 * PAGE, None)
        target.unmap(mapping.start, mapping.length)
        assert _answers(descriptor, mapping.length) == {errno.EIO}


def test_other_memory_at_the_same_place_is_not_taken_for_the_old(either_memfs: Mount, target: Target) -> None:
    """The open file shows what is mapped there now, or an error: never bytes that are not there any more."""
    mapping = target.mapping("file-private")
    with opened(either_memfs.vma(target.pid, mapping), os.O_DIRECT) as descriptor:
        os.pread(descriptor, PAGE, 0)
        target.unmap(mapping.start, mapping.length)
        new = target.map(mapping.start, mapping.length)
        answers: set[int | None] = set()
        target.write(new.start, MIB // 2, 5)
        new = next(each for each in target.mappings if each.start == new.start)
        for at in range(0, mapping.length, 64 * PAGE):
            try:
                got = os.pread(descriptor, 64 * PAGE, at)
            except OSError as error:
                answers.add(error.errno)
            else:
                assert new.mismatch(at, got) is None
        assert answers <= {errno.EIO}


_REMAPPER = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
P, A, B = 4096, 0x300000000000, 0x400000000000
def fill(at):
    assert libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(P), 3, 0x100022, -1, ctypes.c_long(0)) == at
    ctypes.memset(at, 0xA5, P)
fill(A)
print("{}", flush=True)
while True:
    fill(B)
    libc.munmap(ctypes.c_void_p(A), ctypes.c_size_t(P))
    libc.mremap(ctypes.c_void_p(B), ctypes.c_size_t(P), ctypes.c_size_t(P), 3, ctypes.c_void_p(A))
"""


def test_memory_that_is_replaced_all_the_time_is_never_read_as_zeros(
    either_memfs: Mount, tmp_path: Path
) -> None:
    """At each moment the page holds 0xA5 or is not mapped: a reader gets these bytes, or EIO."""
    either_memfs.needs("pagemap_scan", "what is not mapped looks like what was never touched")
    program = tmp_path / "remapper.py"
    program.write_text(_REMAPPER)
    with Child(str(program)) as child:
        path = either_memfs.process(child.pid) / "mem"
        with opened(path) as flat:
            got = {_content_or_errno(flat, 0x3000_0000_0000) for _ in range(4000)}
        assert got <= {b"\xa5" * PAGE, bytes(PAGE), errno.EIO}
        (name,) = {f"{0x3000_0000_0000:012x}-{0x3000_0000_1000:012x}_rw-p_anon"}
        seen: set[bytes | int | None] = set()
        for _ in range(100):
            try:
                with opened(either_memfs.process(child.pid) / "vmas" / name) as own:
                    seen |= {_content_or_errno(own, 0) for _ in range(40)}
            except FileNotFoundError:
                continue
        assert b"\xa5" * PAGE in seen
        assert seen <= {b"\xa5" * PAGE, errno.EIO}


def _content_or_errno(descriptor: int, offset: int) -> bytes | int | None:
    try:
        return os.pread(descriptor, PAGE, offset)
    except OSError as error:
        return error.errno


@pytest.fixture
def namespace() -> Iterator[PidNamespace]:
    """A place where pids can be used again at will."""
    with PidNamespace() as namespace:
        yield namespace


def _file_of_new_process(process: Path, mapping: HeldMapping) -> Path:
    """Its VMA file, as soon as the kernel has forgotten whose name that was before."""
    deadline = monotonic() + 5
    while refusal := error_of(lambda: os.listdir(process / "vmas")):
        assert refusal in (errno.ENOENT, errno.ESRCH)
        assert monotonic() < deadline
    vmas = process / "vmas"
    (name,) = (name for name in os.listdir(vmas) if name.startswith(f"{mapping.start:012x}-"))
    return vmas / name


def test_a_pid_that_is_used_again_shows_no_byte_of_the_new_process(
    namespace: PidNamespace, splice: str, tmp_path: Path
) -> None:
    inside, log = tmp_path / "mnt", tmp_path / "log"
    inside.mkdir()
    old = namespace.hold(_REUSED_PID, "private-full", "file-private", seed=1, directory=tmp_path)
    mount = namespace.run(MEMFS, "mount", "-o", f"log={log},splice={splice}", str(inside))
    assert namespace.finish(mount).status == 0
    process = Path(f"{namespace.root}{inside}") / str(_REUSED_PID)
    directory = os.open(process, os.O_RDONLY)
    descriptors = []
    try:
        for mapping in old.mappings:
            file = _file_of_new_process(process, mapping)
            descriptors.append((os.open(file, os.O_RDONLY), 0, mapping))
            descriptors.append((os.open(process / "mem", os.O_RDONLY), mapping.start, mapping))
        for descriptor, start, mapping in descriptors:
            assert mapping.mismatch(0, os.pread(descriptor, PAGE, start)) is None
        namespace.end(_REUSED_PID)
        new = namespace.hold(_REUSED_PID, "private-full", "file-private", seed=2, directory=tmp_path)
        for descriptor, start, mapping in descriptors:
            assert _answers(descriptor, mapping.length, start) == {errno.ESRCH}
        for name in ("mem", "maps", "vmas"):
            assert error_of(lambda name=name: os.open(name, os.O_RDONLY, dir_fd=directory)) in (
                errno.ENOENT,
                errno.ESRCH,
            )  # type: ignore[misc]
        for mapping in new.mappings:
            assert mapping.mismatch(0, _file_of_new_process(process, mapping).read_bytes()) is None
    finally:
        os.close(directory)
        for descriptor, *_ in descriptors:
            os.close(descriptor)
    done = namespace.finish(namespace.run(MEMFS, "umount", str(inside)))
    assert (done.status, done.stdout, done.stderr) == (0, b"", b"")
    assert mounts_on(inside) == []
    assert [line for line in log.read_text().splitlines() if " INFO " not in line] == []


def test_what_is_mapped_where_something_longer_was_is_never_padded_with_zeros(
    memfs: Mount, target: Target, tmp_path: Path
) -> None:
    """The kernel may still believe in the old name, and in its size."""
    mapping = target.mapping("private-full")
    old = memfs.vma(target.pid, mapping)
    with opened(old) as descriptor:
        os.listdir(memfs.process(target.pid) / "vmas")
        assert old.stat().st_size == mapping.length
        target.unmap(mapping.start + mapping.length // 2, mapping.length // 2)
        copy = tmp_path / "copy"
        for tool in (["cp", old, copy], ["dd", f"if={old}", f"of={copy}", "bs=4K"]):
            done = run(*tool)
            assert done.returncode == 1
            assert not copy.exists()
        assert os.fstat(descriptor).st_size == mapping.length
        assert mapping.mismatch(0, os.pread(descriptor, 4 * PAGE, 0)) is None
        assert error_of(lambda: os.pread(descriptor, PAGE, mapping.length // 2)) == errno.EIO
    new = memfs.vma(target.pid, mapping)
    assert new != old
    assert len(new.read_bytes()) == new.stat().st_size == mapping.length // 2
