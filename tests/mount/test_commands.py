"""The commands: what they do, and what they say in one line where they cannot."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounted import (
    MEMFS,
    TIMEOUT_SECONDS,
    Mount,
    check,
    children,
    complaint,
    memfs,
    mount_changes,
    mounted,
    mounts_on,
    run,
)

_FAILED = 1
_USAGE = 2


def _silent(done: subprocess.CompletedProcess[bytes]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_mount_answers_when_the_command_returns_and_umount_waits_for_the_daemon(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        assert {"self", "by-name", str(os.getpid())} <= set(os.listdir(mount.path))
        _silent(memfs("umount", mount.path))
        assert mount.reap_now() == 0
        assert mounts_on(mount.path) == []
        assert os.listdir(mount.path) == []


def test_the_background_daemon_needs_no_log_file(tmp_path: Path) -> None:
    """Without syslog it says that messages are lost, and mounts nevertheless."""
    before = children()
    done = memfs("mount", tmp_path)
    try:
        assert done.returncode == 0
        (daemon,) = children() - before
        assert (b"no syslog" in done.stderr) == (not Path("/dev/log").exists())
        assert mounts_on(tmp_path) == [("fuse.memfs", "memfs")]
    finally:
        _silent(memfs("umount", tmp_path))
    os.waitpid(daemon, 0)


def test_a_daemon_that_is_still_ending_is_not_taken_for_that_of_a_new_mount(tmp_path: Path) -> None:
    """The kernel gives the number of a connection away as soon as its file system is unmounted."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with mounted(tmp_path / "old") as old:
        number = old.path.stat().st_dev
        old.signal(signal.SIGSTOP)
        try:
            check("umount", "-l", old.path)
            with mounted(tmp_path / "new") as new:
                assert new.path.stat().st_dev == number
                _silent(memfs("umount", new.path))
                assert new.reap_now() == 0
        finally:
            old.signal(signal.SIGCONT)
        assert old.reap() == 0


@contextmanager
def _in_foreground(where: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as stderr, mount_changes() as wait_for_change:
        program = subprocess.Popen([MEMFS, "mount", "-f", where], stdout=stderr, stderr=stderr)
        try:
            while not mounts_on(where):
                wait_for_change()
            yield program
        finally:
            program.kill()
            program.wait()
            run("umount", "-l", where)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_in_the_foreground_it_logs_to_stderr_and_ends_by_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    where, log = tmp_path / "mnt", tmp_path / "log"
    where.mkdir()
    with _in_foreground(where, log) as program:
        assert str(program.pid) in os.listdir(where)
        program.send_signal(number)
        assert program.wait(TIMEOUT_SECONDS) == 0
        assert mounts_on(where) == []
    lines = log.read_text().splitlines()
    assert any(number.name in line for line in lines)
    assert [line for line in lines if " INFO " not in line] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_daemon_and_the_mount(tmp_path: Path, number: signal.Signals) -> None:
    with mounted(tmp_path) as mount:
        mount.signal(number)
        assert mount.reap() == 0
        assert mounts_on(mount.path) == []


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"], ["umount", "-l"]], ids=" ".join)
def test_the_system_can_unmount(tmp_path: Path, command: list[str]) -> None:
    with mounted(tmp_path) as mount:
        check(*command, mount.path)
        assert mount.reap() == 0


def test_a_mount_in_use_is_unmounted_under_its_reader(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        descriptor = os.open(mount.path / "self/mem", os.O_RDONLY)
        assert b"busy" in run("umount", mount.path).stderr
        _silent(memfs("umount", mount.path))
        assert mount.reap_now() == 0
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(descriptor, 4096, 0)
        os.close(descriptor)


def _kill(mount: Mount) -> None:
    mount.signal(signal.SIGKILL)
    assert mount.reap() == -signal.SIGKILL
    assert mounts_on(mount.path) == [("fuse.memfs", "memfs")]


def test_umount_clears_the_mount_of_a_killed_daemon(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        _kill(mount)
        _silent(memfs("umount", mount.path))


def test_mount_mounts_over_the_mount_of_a_killed_daemon(tmp_path: Path) -> None:
    with mounted(tmp_path) as dead:
        _kill(dead)
        with mounted(tmp_path) as mount:
            assert mounts_on(mount.path) == [("fuse.memfs", "memfs")]
            assert str(os.getpid()) in os.listdir(mount.path)


def test_a_mount_point_may_be_named_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd name\n\\\N{SNOWMAN}").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "odd name\n\\\N{SNOWMAN}")
    monkeypatch.chdir(tmp_path)
    for name in ("odd name\n\\\N{SNOWMAN}", "./link"):
        before = children()
        _silent(memfs("mount", "-o", "log=log", name))
        (daemon,) = children() - before
        try:
            assert (tmp_path / name / "self").is_symlink()
            _silent(memfs("umount", name))
            assert not (tmp_path / name / "self").is_symlink()
        finally:
            run("umount", tmp_path / name)
            assert os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1]) == 0
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", (tmp_path / "log").read_text())


def _make_file(path: Path) -> Path:
    path.write_text("")
    return path


def _make_full(path: Path) -> Path:
    path.mkdir()
    (path / "file").write_text("")
    return path


def _make_empty(path: Path) -> Path:
    path.mkdir()
    return path


BAD_PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nowhere": (lambda path: path, "mkdir"),
    "file": (_make_file, "not a directory"),
    "not-empty": (_make_full, "not empty"),
}


@pytest.mark.parametrize("place", BAD_PLACES)
def test_a_bad_mount_point_is_named(tmp_path: Path, place: str) -> None:
    make, reason = BAD_PLACES[place]
    where = make(tmp_path / "where")
    said = complaint(memfs("mount", where), _FAILED)
    assert str(where) in said
    assert reason in said
    assert mounts_on(where) == []


def test_mounting_twice_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount:
        assert "already" in complaint(memfs("mount", mount.path), _FAILED)
        assert len(mounts_on(mount.path)) == 1


BAD_LINES = {
    "unknown option": (["mount", "-o", "speed=9"], "speed=9"),
    "bad value": (["mount", "-o", "splice=maybe"], "splice=auto|on|off"),
    "no value": (["mount", "-o", "log"], "log=FILE"),
    "contradiction": (["mount", "-o", "splice=on", "-o", "splice=off"], "contradict"),
    "allow_other": (["mount", "-o", "allow_other"], "every user"),
    "allow_root": (["mount", "-o", "allow_root"], "allow_root"),
    "unknown flag": (["mount", "--fast"], "--fast"),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_command_line_is_told_and_nothing_is_mounted(tmp_path: Path, line: str) -> None:
    arguments, named = BAD_LINES[line]
    assert named in complaint(memfs(*arguments, tmp_path), _USAGE)
    assert mounts_on(tmp_path) == []


@pytest.mark.parametrize("arguments", [["mount"], ["umount"], ["sing"], ["mount", "a", "b"]], ids=" ".join)
def test_a_wrong_number_of_arguments_is_a_usage_error(arguments: list[str]) -> None:
    complaint(memfs(*arguments), _USAGE)


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    where = _make_empty(tmp_path / "mnt")
    assert "/nowhere/log" in complaint(memfs("mount", "-o", "log=/nowhere/log", where), _FAILED)
    assert mounts_on(where) == []


@pytest.mark.parametrize("where", ["/proc", "/"])
def test_umount_leaves_mounts_of_others_alone(where: str) -> None:
    before = mounts_on(Path(where))
    assert "not of memfs" in complaint(memfs("umount", where), _FAILED)
    assert mounts_on(Path(where)) == before


def test_umount_of_nothing_is_told(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nowhere"):
        assert "nothing is mounted" in complaint(memfs("umount", where), _FAILED)


def _in_private_namespace(before: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run memfs after *before*, whose mounts nobody else must see."""
    # In a chroot mounts cannot be made private; they need not be where none is shared.
    shared = " shared:" in Path("/proc/self/mountinfo").read_text()
    own = "unshare", "--mount", "--propagation", "private" if shared else "unchanged"
    if run(*own, "true").returncode:
        pytest.skip("mounts cannot be made private here")
    return run(*own, "sh", "-c", f'{before} && exec "$@"', "sh", MEMFS, *arguments)


def test_a_machine_without_the_device_is_told_what_to_load(tmp_path: Path) -> None:
    done = _in_private_namespace("mount -t tmpfs none /dev", "mount", tmp_path)
    said = complaint(done, _FAILED)
    assert "/dev/fuse" in said
    assert "modprobe fuse" in said


def test_a_user_without_fusermount3_is_told_what_to_install(user: int, user_directory: Path) -> None:
    done = memfs("mount", user_directory, user=user, env={"PATH": "/nowhere"})
    said = complaint(done, _FAILED)
    assert "fusermount3" in said
    assert "fuse3" in said


@pytest.mark.parametrize(
    "command", [[], ["mount"], ["umount"], ["doctor"]], ids=lambda words: " ".join(words) or "memfs"
)
def test_help_is_there_for_each_command(command: list[str]) -> None:
    text = check(MEMFS, *command, "--help").decode()
    assert text.startswith(f"Usage: {' '.join(('memfs', *command))} ")
    assert all(name in text for name in (("mount", "umount", "doctor") if not command else ("--help",)))


def test_version_is_told() -> None:
    name, version = check(MEMFS, "--version").decode().split()
    assert name == "memfs"
    assert all(part.isdigit() for part in version.split("."))


def test_a_dead_mount_is_told_from_a_slow_one(tmp_path: Path) -> None:
    """A daemon that is stopped is not dead: it is waited for, and its mount is not taken away."""
    with mounted(tmp_path) as mount:
        mount.signal(signal.SIGSTOP)
        try:
            program = subprocess.Popen([MEMFS, "umount", mount.path])
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(1)
            assert mounts_on(mount.path) == [("fuse.memfs", "memfs")]
        finally:
            mount.signal(signal.SIGCONT)
        assert program.wait(TIMEOUT_SECONDS) == 0
        assert mount.reap_now() == 0
