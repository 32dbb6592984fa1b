"""The copy holds on to as little as it can of what its process has, and nobody takes it for the process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.freezing import snapshots
from process.test_snapshots import part_of, read, running, take
from support.held import Span
from support.pattern import PAGE
from support.target import Target

from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import DEFAULT_COPY_BYTES, Fate

LENGTH = 64 * PAGE

_SEGMENT = f"""
import ctypes, os
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
id = libc.shmget(0, ctypes.c_size_t({LENGTH}), 0o1600)
at = libc.shmat(id, None, 0)
ctypes.memset(at, ord("a"), {LENGTH})
print(id << 64 | at, flush=True)
os.read(0, 1)
ctypes.memset(at, ord("b"), {LENGTH})
print("written", flush=True)
os.read(0, 1)
"""


def copy_of(snapshot: Snapshot) -> Path:
    """The directory in ``/proc`` of the frozen copy."""
    assert snapshot.frozen.copy is not None
    return Path(f"/proc/{snapshot.frozen.copy.pid}")


def attachments(segment: int) -> int:
    """How many processes are attached to a System V segment, as ipcs(1) shows it."""
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1]) == segment:
            return int(fields[6])
    raise AssertionError(f"there is no segment {segment}")


@contextmanager
def _attached() -> Iterator[tuple[subprocess.Popen[bytes], int, Span]]:
    """A program that is attached to a segment: it, the segment, and where that is."""
    with running(_SEGMENT) as (program, told):
        segment, start = told >> 64, told & ((1 << 64) - 1)
        try:
            yield program, segment, Span(start, start + LENGTH)
        finally:
            subprocess.run(["ipcrm", "-m", str(segment)], check=True)


@pytest.mark.parametrize(("copy_bytes", "fate"), [(DEFAULT_COPY_BYTES, Fate.COPIED), (0, Fate.LIVE)])
def test_a_segment_counts_no_snapshot(copy_bytes: int, fate: Fate) -> None:
    with (
        snapshots(copy_bytes=copy_bytes, memory_bytes=0) as registry,
        _attached() as (program, segment, span),
    ):
        snapshot = take(registry, program.pid)
        (part,) = [part for part in snapshot.frozen.parts if part.region.span.start == span.start]
        assert part.fate is fate
        assert attachments(segment) == 1
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"x")
        program.stdin.flush()
        assert program.stdout.readline() == b"written\n"
        content = (b"a" if fate is Fate.COPIED else b"b") * LENGTH
        assert read(snapshot, span) == content
        program.kill()
        program.wait()
        assert attachments(segment) == 0
        assert read(snapshot, span) == content


def test_it_has_a_name_and_arguments_of_its_own(tmp_path: Path) -> None:
    with snapshots() as registry, Target("private-full", directory=tmp_path) as target:
        names = [Path(f"/proc/{target.pid}/{name}").read_bytes() for name in ("comm", "cmdline", "environ")]
        before = Path(f"/proc/{target.pid}/maps").read_bytes()
        snapshot = take(registry, target.pid)
        copy = copy_of(snapshot)
        assert (copy / "comm").read_bytes() == b"memfs-snapshot\n"
        assert (copy / "cmdline").read_bytes() == b"memfs-snapshot\0of\0process\0%d\0" % target.pid
        assert (copy / "environ").read_bytes() == names[2]
        assert snapshot.frozen.stat.comm + b"\n" == names[0]
        assert snapshot.frozen.process.arguments == names[1]
        assert names == [
            Path(f"/proc/{target.pid}/{name}").read_bytes() for name in ("comm", "cmdline", "environ")
        ]
        assert Path(f"/proc/{target.pid}/maps").read_bytes() == before
        assert snapshot.frozen.maps_text == before


def test_the_page_that_it_has_for_that_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    with snapshots() as registry, Target("private-full", directory=tmp_path) as target:
        snapshot = take(registry, target.pid)
        (line,) = set((copy_of(snapshot) / "maps").read_bytes().splitlines()) - set(
            snapshot.frozen.maps_text.splitlines()
        )
        start, end = (int(number, 16) for number in line.split()[0].split(b"-"))
        assert end - start == PAGE
        assert read(snapshot, Span(start - PAGE, end + PAGE)) == bytes(3 * PAGE)
        assert part_of(snapshot, target.mapping("private-full")).fate is Fate.FROZEN


def test_the_file_system_in_which_its_process_worked_can_be_unmounted(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        with snapshots() as registry:
            with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, cwd=tmp_path) as program:
                snapshot = take(registry, program.pid)
                assert Path(f"/proc/{program.pid}/cwd").readlink() == tmp_path
                program.kill()
            assert (copy_of(snapshot) / "cwd").readlink() == Path("/")
            subprocess.run(["umount", tmp_path], check=True)
    finally:
        if os.path.ismount(tmp_path):
            subprocess.run(["umount", "-l", tmp_path], check=True)
