"""Snapshots in the tree: made by mkdir, let go by rmdir, and in between like a process that stands still.

MEMFS_SNAPSHOTS sets how many are taken to see whether anything of them stays (30 unless set).
"""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounted import (
    MEMFS,
    Mount,
    check,
    complaint,
    error_of,
    memfs,
    mounted,
    open_descriptors,
    opened,
    read_all,
    run,
)
from support.drivers import PidNamespace
from support.outside import children_of
from support.pattern import PAGE
from support.target import Target
from support.witness import Witness

_KINDS = "private-runs", "private-full", "shared-anon", "memfd-shared", "file-private"
_INSIDE = ["core", "heap", "info.json", "maps", "mem", "stack", "text", "vmas"]
_NEW = 99
_MANY = int(os.environ.get("MEMFS_SNAPSHOTS", "30"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target(*_KINDS, directory=tmp_path) as made:
        yield made


def test_a_directory_that_is_made_is_a_snapshot_with_all_that_a_process_has(
    memfs: Mount, target: Target
) -> None:
    process = memfs.process(target.pid)
    assert os.listdir(process / "snapshots") == []
    one = process / "snapshots" / "one"
    one.mkdir()
    assert os.listdir(process / "snapshots") == ["one"]
    assert sorted(os.listdir(one)) == _INSIDE
    assert (one / "maps").read_bytes() == Path(f"/proc/{target.pid}/maps").read_bytes()
    assert os.listdir(one / "vmas") == os.listdir(process / "vmas")
    for link in ("heap", "stack", "text"):
        assert os.readlink(one / link) == os.readlink(process / link)
    for name, mode in (("", 0o500), ("vmas", 0o500), ("mem", 0o400), ("core", 0o400), ("info.json", 0o400)):
        found = (one / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, 0)
    assert stat.S_IMODE((process / "snapshots").stat().st_mode) & 0o700 == 0o700
    one.rmdir()
    assert os.listdir(process / "snapshots") == []
    assert not one.exists()


def test_a_snapshot_never_changes_and_says_when_it_was_taken(memfs: Mount, target: Target) -> None:
    one = memfs.process(target.pid) / "snapshots" / "one"
    one.mkdir()
    held = target.mappings
    taken = one.stat().st_mtime_ns
    for mapping in held:
        target.write(mapping.start, mapping.length, _NEW)
        file = one / "vmas" / Path(memfs.vma(target.pid, mapping)).name
        before = file.stat()
        assert before.st_mtime_ns == taken
        assert mapping.mismatch(0, file.read_bytes()) is None
        assert len(file.read_bytes()) == mapping.length == before.st_size
        assert file.stat() == before
    target.exit()
    for mapping in held:
        with opened(one / "mem") as memory:
            assert mapping.mismatch(0, read_all(memory, mapping.length, mapping.start)) is None
    assert os.listdir(memfs.process(target.pid)) == ["snapshots"]
    one.rmdir()
    assert not memfs.process(target.pid).exists()


def test_info_tells_of_the_stop_and_of_each_mapping(memfs: Mount, target: Target) -> None:
    one = memfs.process(target.pid) / "snapshots" / "one"
    one.mkdir()
    info = json.loads((one / "info.json").read_text())
    maps = (one / "maps").read_text().splitlines()
    assert (info["pid"], info["threads"], info["vmas"]) == (target.pid, 1, len(maps))
    assert info["pause_us"] == sum(info["phases_us"].values()) > 0
    assert info["longest_look_us"] > 0
    assert sum(info["bytes"].values()) == sum(
        int(line.split()[0].partition("-")[2], 16) - int(line.partition("-")[0], 16) for line in maps
    )
    states = {entry["start"]: entry for entry in info["mappings"]}
    for mapping in target.mappings:
        entry = states[f"{mapping.start:012x}"]
        shared = mapping.perms[3] == "s"
        assert entry["state"] == ("copied" if shared else "frozen")
        assert entry.get("reason") == ("shared memory" if shared else None)
        assert (entry["end"], entry["perms"]) == (f"{mapping.end:012x}", mapping.perms)
    assert all(entry["state"] in ("frozen", "copied", "live", "absent") for entry in info["mappings"])


def test_only_snapshots_can_be_made_and_removed(memfs: Mount, target: Target) -> None:
    process = memfs.process(target.pid)
    snapshots = process / "snapshots"
    one = snapshots / "one"
    one.mkdir()
    cases: list[tuple[Callable[[], object], int]] = [
        (one.mkdir, errno.EEXIST),
        ((snapshots / ("n" * 256)).mkdir, errno.ENAMETOOLONG),
        ((snapshots / "none").rmdir, errno.ENOENT),
        (lambda: os.unlink(one / "mem"), errno.EROFS),
        (lambda: os.rename(one, snapshots / "two"), errno.EROFS),
        (lambda: (snapshots / "file").touch(), errno.EROFS),
        (lambda: os.symlink("x", snapshots / "link"), errno.EROFS),
        *(
            ((directory / "new").mkdir, errno.EROFS)
            for directory in (memfs.path, memfs.path / "by-name", process, process / "vmas", one)
        ),
        *((directory.rmdir, errno.EROFS) for directory in (process, process / "vmas", one / "vmas")),
        ((memfs.path / "999999999" / "snapshots" / "new").mkdir, errno.ENOENT),
    ]
    assert [error_of(action) for action, _ in cases] == [number for _, number in cases]
    assert os.listdir(snapshots) == ["one"]
    (snapshots / ("n" * 255)).mkdir()
    (snapshots / "odd \n name").mkdir()
    assert len(os.listdir(snapshots)) == 3


def test_what_is_open_is_read_to_its_end_after_rmdir(memfs: Mount, target: Target) -> None:
    mapping = target.mapping("private-full")
    one = memfs.process(target.pid) / "snapshots" / "one"
    one.mkdir()
    with opened(one / "mem") as memory, opened(one / "core") as core:
        one.rmdir()
        target.write(mapping.start, mapping.length, _NEW)
        assert mapping.mismatch(0, read_all(memory, mapping.length, mapping.start)) is None
        assert os.pread(core, 4, 0) == b"\x7fELF"


def test_a_copy_is_no_process_of_the_tree(memfs: Mount, target: Target) -> None:
    before = children_of(target.pid)
    (memfs.process(target.pid) / "snapshots" / "one").mkdir()
    (copy,) = children_of(target.pid) - before
    assert not memfs.process(copy).exists()
    assert str(copy) not in os.listdir(memfs.path)
    names = [path.name for path in (memfs.path / "by-name").glob("*/*")]
    assert str(target.pid) in names
    assert str(copy) not in names


def test_a_pid_that_someone_else_has_now_shows_no_snapshot_of_the_one_before(tmp_path: Path) -> None:
    pid = 1234
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with PidNamespace() as inside:
        inside.hold(pid, "private-runs", seed=1, directory=tmp_path)
        log = tmp_path / "log"
        done = inside.finish(inside.run(MEMFS, "mount", "-o", f"log={log}", str(mountpoint)))
        assert (done.status, done.stderr) == (0, b"")
        process = Path(f"{inside.root}{mountpoint}/{pid}")
        snapshots = process / "snapshots"
        (snapshots / "old").mkdir()
        assert os.listdir(snapshots) == ["old"]
        inside.end(pid)
        assert os.listdir(process) == ["snapshots"]
        inside.hold(pid, "private-runs", seed=_NEW, directory=tmp_path)
        while os.listdir(process / "snapshots") == ["old"]:
            pass  # for a tenth of a second the kernel may believe that the name stands for the old one
        assert os.listdir(process / "snapshots") == []
        (process / "snapshots" / "new").mkdir()
        assert os.listdir(process / "snapshots") == ["new"]
        done = inside.finish(inside.run(MEMFS, "umount", str(mountpoint)))
        assert (done.status, done.stderr) == (0, b"")


def test_unmounting_lets_every_snapshot_go(tmp_path: Path, target: Target) -> None:
    before = children_of(target.pid)
    with mounted(tmp_path) as mount:
        for name in ("one", "two", "three"):
            (mount.process(target.pid) / "snapshots" / name).mkdir()
        assert len(children_of(target.pid) - before) == 3
        assert (memfs("umount", mount.path).returncode, mount.reap_now()) == (0, 0)
        assert children_of(target.pid) == before


@pytest.mark.timeout(60 + 0.2 * _MANY)
def test_snapshots_come_and_go_and_nothing_of_them_stays(tmp_path: Path) -> None:
    with mounted(tmp_path, limit_seconds=40 + 0.2 * _MANY) as memfs, Witness("counters") as witness:
        snapshots = memfs.process(witness.pid) / "snapshots"

        def take_some(count: int) -> tuple[int, int]:
            for number in range(count):
                (snapshots / "one").mkdir()
                assert (snapshots / "one" / "info.json").read_bytes()
                with opened(snapshots / "one" / "core") as core:
                    assert len(os.pread(core, PAGE, 0)) == PAGE
                (snapshots / "one").rmdir()
                assert children_of(witness.pid) == set(), number
            status = Path(f"/proc/{memfs.daemon}/status").read_text()
            return open_descriptors(memfs.daemon), int(status.partition("VmRSS:")[2].split()[0])

        descriptors, resident_kib = take_some(20)
        again, resident_again_kib = take_some(_MANY)
        assert again == descriptors
        assert resident_again_kib - resident_kib < 1024


# The command


def test_the_command_takes_a_name_or_makes_one_up(tmp_path: Path, target: Target) -> None:
    with mounted(tmp_path) as mount:
        snapshots = mount.process(target.pid) / "snapshots"
        done = memfs("snapshot", "--mount", mount.path, str(target.pid), "one")
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{snapshots / 'one'}\n", b"")
        made_up = [check_snapshot(mount, target.pid) for _ in range(2)]
        assert len(set(made_up)) == 2
        assert sorted(os.listdir(snapshots)) == sorted(["one", *(path.name for path in made_up)])


def check_snapshot(mount: Mount, pid: int) -> Path:
    """Take one without a name; the directory that the command prints."""
    done = memfs("snapshot", f"--mount={mount.path}", str(pid))
    assert (done.returncode, done.stderr) == (0, b"")
    return Path(done.stdout.decode().removesuffix("\n"))


def test_the_command_finds_the_newest_mount(tmp_path: Path, target: Target) -> None:
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
    with mounted(tmp_path / "old"), mounted(tmp_path / "new") as newest:
        done = memfs("snapshot", str(target.pid), "one")
        assert done.stdout.decode() == f"{newest.process(target.pid) / 'snapshots' / 'one'}\n"


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, target: Target) -> None:
    with mounted(tmp_path) as mount:
        (mount.process(target.pid) / "snapshots" / "one").mkdir()
        here, pid = f"--mount={mount.path}", str(target.pid)
        for status, words, named in (
            (1, (here, pid, "one"), "snapshot of that name"),
            (1, (here, pid, "n" * 256), "too long"),
            (1, (here, "4194305"), "no process 4194305"),
            (1, (f"--mount={tmp_path}", pid), "nothing is mounted on"),
            (2, (here, pid, "a/b"), "no name for a directory"),
            (2, (here, "-1"), "-1"),
            (2, (here, "none"), "none"),
            (2, (here,), "PID"),
        ):
            assert named in complaint(memfs("snapshot", *words), status)


def test_a_process_of_another_user_is_denied(user: int, user_directory: Path) -> None:
    with mounted(user_directory, user=user) as mount:
        mount.declare(rf"process {os.getpid()} may not be read: it belongs to uid 0")
        done = memfs("snapshot", f"--mount={mount.path}", str(os.getpid()), user=user)
        assert "may not be traced" in complaint(done, 1)
        done = run("cat", mount.process(os.getpid()) / "core", user=user)
        assert done.returncode == 1
        assert b"Permission denied" in done.stderr


def test_a_user_freezes_a_process_of_his_own(user: int, user_directory: Path) -> None:
    with (
        mounted(user_directory, user=user) as mount,
        Target(
            "private-full", "shared-anon", directory=user_directory, user=user, python="/usr/bin/python3"
        ) as target,
    ):
        held = target.mappings
        directory = memfs("snapshot", f"--mount={mount.path}", str(target.pid), "one", user=user)
        assert directory.returncode == 0, directory.stderr
        place = directory.stdout.decode().removesuffix("\n")
        for mapping in held:
            target.write(mapping.start, mapping.length, _NEW)
        for mapping in held:
            skip, count = f"skip={mapping.start}", f"count={mapping.length}"
            read = ["dd", f"if={place}/mem", skip, count, "bs=1M", "iflag=skip_bytes,count_bytes"]
            assert mapping.mismatch(0, check(*read, "status=none", user=user)) is None
        assert run("rmdir", place, user=user).returncode == 0
        assert children_of(target.pid) == set()
