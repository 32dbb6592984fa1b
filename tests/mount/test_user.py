"""A plain user, who mounts by fusermount3 and reads what is his."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount, complaint, memfs, mounted, mounts_on, run
from support.held import HeldMapping, Span
from support.pattern import PAGE
from support.target import Target

_PYTHON = "/usr/bin/python3"
_KINDS = "private-runs", "private-full", "file-private", "shared-anon-gone", "memfd-shared"


@pytest.fixture
def user_memfs(user: int, user_directory: Path) -> Iterator[Mount]:
    """A mount of the second user's own."""
    with mounted(user_directory, user=user) as mount:
        yield mount


@pytest.fixture
def own(user: int, user_directory: Path) -> Iterator[Target]:
    """A process of the second user."""
    with Target(*_KINDS, directory=user_directory, user=user, python=_PYTHON) as target:
        yield target


def _name(pid: int, mapping: HeldMapping) -> str:
    """The file's name, told by /proc: root cannot list a user's mount."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.startswith(f"{mapping.start:x}-"):
            path = line.partition("/")[2].removesuffix(" (deleted)")
            label = (
                "memfd.shared"
                if path.startswith("memfd:")
                else "shm"
                if path == "dev/zero"
                else Path(path).name
            )
            return f"{mapping.start:012x}-{mapping.end:012x}_{line.split()[1]}_{label or 'anon'}"
    raise LookupError(mapping.kind)


def test_a_user_mounts_and_reads_his_own_process_byte_for_byte(
    user_memfs: Mount, own: Target, user: int
) -> None:
    for mapping in own.mappings:
        file = user_memfs.process(own.pid) / "vmas" / _name(own.pid, mapping)
        for tool in (["cat", file], ["dd", f"if={file}", "bs=5000", "status=none"]):
            done = run(*tool, user=user)
            assert (done.returncode, done.stderr) == (0, b"")
            assert len(done.stdout) == mapping.length
            assert mapping.mismatch(0, done.stdout) is None


def test_a_user_copies_a_whole_process_of_his_own(
    user_memfs: Mount, own: Target, user: int, shm: Path
) -> None:
    os.chown(shm, user, user)
    done = run("cp", "-r", user_memfs.process(own.pid), shm / "copy", user=user)
    assert (done.returncode, done.stderr) == (0, b"")
    for mapping in own.mappings:
        assert mapping.mismatch(0, (shm / "copy/vmas" / _name(own.pid, mapping)).read_bytes()) is None


def test_a_guard_region_is_a_hole_also_of_an_object_that_he_may_not_open(
    user_memfs: Mount, own: Target, user: int
) -> None:
    """Guard regions in shared mappings came with Linux 6.15."""
    mapping = own.mapping("memfd-shared")
    guard = Span(mapping.start + 8 * PAGE, mapping.start + 10 * PAGE)
    own.madvise(guard.start, guard.length, "guard_install")
    file = user_memfs.process(own.pid) / "vmas" / _name(own.pid, mapping)
    done = run("cat", file, user=user)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", mapping.length)
    before, behind = guard.start - mapping.start, guard.end - mapping.start
    assert mapping.mismatch(0, done.stdout[:before]) is None
    assert done.stdout[before:behind] == bytes(guard.length)
    assert mapping.mismatch(behind, done.stdout[behind:]) is None


def test_a_process_of_root_is_denied_with_one_line_that_says_why(user_memfs: Mount, user: int) -> None:
    user_memfs.declare(rf"process {os.getpid()} may not be read: it belongs to uid 0: mount memfs as .*root")
    process = user_memfs.process(os.getpid())
    for _ in range(3):
        for command in (["cat", process / "mem"], ["cat", process / "maps"], ["ls", process / "vmas"]):
            done = run(*command, user=user)
            assert done.returncode != 0
            assert b"Permission denied" in done.stderr
            assert done.stdout == b""


def test_a_process_that_is_not_dumpable_is_denied_with_its_cause(
    user_memfs: Mount, own: Target, user: int
) -> None:
    user_memfs.declare(rf"process {own.pid} may not be read: it is not dumpable")
    own.set_dumpable(False)
    done = run("cat", user_memfs.process(own.pid) / "mem", user=user)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"Permission denied" in done.stderr


def test_nobody_else_can_look_into_the_mount(user_memfs: Mount) -> None:
    with pytest.raises(PermissionError):
        os.listdir(user_memfs.path)
    for uid in (None, 12345):
        done = run("ls", user_memfs.path, user=uid)
        assert done.returncode != 0
        assert b"Permission denied" in done.stderr


def test_a_user_lists_all_processes_and_sees_the_denied_ones_too(
    user_memfs: Mount, own: Target, user: int
) -> None:
    done = run("ls", user_memfs.path, user=user)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {str(own.pid), str(os.getpid())} <= set(done.stdout.decode().split())
    done = run("stat", "-c", "%u %g %a", user_memfs.process(own.pid), user=user)
    assert done.stdout == f"{user} {user} 500\n".encode()


def test_reading_own_memory_touches_nothing_for_a_user_too(
    user_memfs: Mount, user_directory: Path, user: int
) -> None:
    with Target("reserved-8g", directory=user_directory, user=user, python=_PYTHON) as target:
        (mapping,) = target.mappings
        file = user_memfs.process(target.pid) / "vmas" / _name(target.pid, mapping)
        before = target.rss()
        done = run("cp", file, user_directory / "copy", user=user)
        assert (done.returncode, done.stderr) == (0, b"")
        assert target.rss().rss - before.rss < 1 << 20
        assert (user_directory / "copy").stat().st_blocks * 512 == pytest.approx(32 << 20, rel=0.02)


def test_a_user_cannot_unmount_the_mount_of_root(roots_directory: Path, user: int) -> None:
    with mounted(roots_directory) as mount:
        complaint(memfs("umount", mount.path, user=user), 1)
        assert mounts_on(mount.path) == [("fuse.memfs", "memfs")]


def test_a_user_cannot_mount_where_he_may_not_write(roots_directory: Path, user: int) -> None:
    complaint(memfs("mount", roots_directory, user=user), 1)
    assert mounts_on(roots_directory) == []


def test_what_leads_nowhere_is_no_permission_error(user_memfs: Mount, user: int) -> None:
    done = run("cat", user_memfs.process(os.getpid()) / "nothing", user=user)
    assert os.strerror(errno.ENOENT).encode() in done.stderr
