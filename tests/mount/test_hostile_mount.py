"""Mounting and unmounting where someone is in the way: a stuck daemon, a swapped directory, a planted file.

The attackers are real users, and each test fails if the attack succeeds once.
"""

import concurrent.futures
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import (
    MEMFS,
    TIMEOUT_SECONDS,
    Done,
    check,
    children,
    complaint,
    memfs,
    mount_changes,
    mounted,
    mounts_on,
    opened,
    run,
)
from support.drivers import PidNamespace
from support.outside import children_of

from memfs.cli import umount_command
from memfs.cli.mountpoint import open_mountpoint
from memfs.errors import CannotMount
from memfs.fuse.mounting import attach, detach
from memfs.linux import fusefd
from memfs.linux.fsmount import MountAttribute, attach_mount, create_mount

_PYTHON = "/usr/bin/python3"
_LIMIT_SECONDS = 60.0
_SWAPS = 50
_SWAPS_OF_COMMANDS = 6
_OURS = [("fuse.memfs", "memfs")]


def _silent(done: Done) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# A daemon that does not answer


@contextlib.contextmanager
def _blocked_reader(file: Path, user: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that waits for a mount which does not answer."""
    groups: list[int] | None = None if user is None else []
    reader = subprocess.Popen(
        ["cat", file], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        user=user, group=user, extra_groups=groups,
    )  # fmt: skip
    try:
        while Path(f"/proc/{reader.pid}/wchan").read_text() != "request_wait_answer":
            assert reader.poll() is None
        yield reader
    finally:
        reader.kill()
        reader.communicate()


def _stderr_of(reader: subprocess.Popen[bytes]) -> bytes:
    return reader.communicate(timeout=_LIMIT_SECONDS)[1]


def test_a_stopped_daemon_is_unmounted_and_its_readers_go_on(
    roots_directory: Path, user_directory: Path, user: int
) -> None:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        mounts = [
            stack.enter_context(mounted(roots_directory, limit_seconds=_LIMIT_SECONDS)),
            stack.enter_context(mounted(user_directory, user=user, limit_seconds=_LIMIT_SECONDS)),
        ]
        for mount in mounts:
            mount.signal(signal.SIGSTOP)
        # Each of the two waits for the whole time that a mount is given to answer.
        again = pool.submit(run, MEMFS, "mount", mounts[0].path, timeout=_LIMIT_SECONDS)
        pid = str(os.getpid())
        frozen = pool.submit(
            run, MEMFS, "snapshot", "--mount", mounts[0].path, pid, "one", timeout=_LIMIT_SECONDS
        )
        assert "already, and does not answer" in complaint(again.result(), 1)
        assert "does not answer" in complaint(frozen.result(), 1)
        readers = [
            stack.enter_context(_blocked_reader(mount.process(os.getpid()) / "maps", mount.user))
            for mount in mounts
        ]
        unmounting = [
            pool.submit(run, MEMFS, "umount", mount.path, user=mount.user, timeout=_LIMIT_SECONDS)
            for mount in mounts
        ]
        for done in unmounting:
            _silent(done.result())
        for mount, reader in zip(mounts, readers, strict=True):
            assert re.search(rb"not connected|connection abort", _stderr_of(reader))
            assert mounts_on(mount.path) == []
            assert mount.reap_now() == -signal.SIGKILL


def _unmount(place: Path) -> None:
    """`memfs umount`, in this process, where a test has changed something."""
    assert umount_command.command.callback is not None
    umount_command.command.callback(os.fspath(place))


@pytest.fixture
def dead_server(tmp_path: Path) -> Iterator[Path]:
    """A file system that answers nothing, not even root."""
    where = tmp_path / "dead"
    where.mkdir()
    with opened(Path("/dev/fuse"), os.O_RDWR) as device, opened(where, os.O_PATH) as directory:
        options = {b"fd": b"%d" % device, b"rootmode": b"40000", b"user_id": b"0", b"group_id": b"0"}
        created = create_mount(b"fuse", options, MountAttribute(0))
        attach_mount(created, directory)
        os.close(created)
        yield where
        run("umount", "-l", where)


def test_unmounting_ends_even_if_a_directory_above_never_answers(
    dead_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umount_command, "_LIMIT_S", 0.5)
    with pytest.raises(CannotMount, match="does not end"):
        _unmount(dead_server / "mnt")


def test_where_the_kernel_names_no_connection_the_daemon_is_waited_for_and_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Linux 6.16: what the daemon serves shows when its connection is aborted."""
    monkeypatch.setattr(fusefd, "_CONNECTION", re.compile(b"(?!)"))
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with mounted(tmp_path / "one") as one, mounted(tmp_path / "other") as other:
        _unmount(one.path)
        assert one.reap_now() == 0
        assert "SIGTERM" not in one.log.read_text()
        assert str(os.getpid()) in os.listdir(other.path)


_STUCK_DAEMON = """
import logging, os, sys, threading
from memfs.cli.mountpoint import open_mountpoint, place_of
from memfs.fuse import mount
from memfs.fuse.options import MountOptions
from memfs.tree.tree import Tree

def wait_for_ever(tree, node):
    print("stuck", flush=True)
    threading.Event().wait()

Tree.list = wait_for_ever
logging.basicConfig(level=logging.INFO)
where = place_of(sys.argv[1])
mount.serve(open_mountpoint(where), where, MountOptions(), lambda: print("answers", flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_daemon_with_a_thread_that_is_stuck_ends_by_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-c", _STUCK_DAEMON, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert daemon.stdout is not None
    asking = None
    try:
        assert daemon.stdout.readline() == b"answers\n"
        asking = subprocess.Popen(["ls", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert daemon.stdout.readline() == b"stuck\n"
        (fork_server,) = children_of(daemon.pid)
        daemon.send_signal(number)
        assert daemon.wait(TIMEOUT_SECONDS) == 0
        assert mounts_on(tmp_path) == []
        assert re.search(rb"not connected|connection abort", _stderr_of(asking))
        with contextlib.suppress(ChildProcessError):  # the daemon has waited for it
            assert os.waitpid(fork_server, 0)[1] == 0
    finally:
        daemon.kill()
        daemon.communicate()
        if asking is not None:
            asking.communicate()
        run("umount", "-l", tmp_path)


# A mount point that is swapped

_SWAPPER = """
import ctypes, os, random, sys, time
libc = ctypes.CDLL(None)
one, other = map(os.fsencode, sys.argv[1:])
print(flush=True)
while True:
    libc.renameat2(-100, one, -100, other, 2)  # RENAME_EXCHANGE
    time.sleep(random.random() * 0.003)
"""


class _Swapper:
    """A process of *user*'s that exchanges an empty and a full directory of his at random moments.

    Or the directories that they are in, by the same name.
    """

    def __init__(self, directory: Path, user: int, *, above: bool) -> None:
        swapped = directory / "one", directory / "other"
        self.empty, self.full = (place / "mnt" if above else place for place in swapped)
        for place in (*swapped, self.empty, self.full):
            place.mkdir(exist_ok=True)
            os.chown(place, user, user)
        (self.full / "file").touch()
        self._process = subprocess.Popen(
            [_PYTHON, "-c", _SWAPPER, *swapped],
            stdout=subprocess.PIPE, user=user, group=user, extra_groups=[],
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def pause(self) -> None:
        """Let everything stay where it is."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        """Swap again."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(params=[False, True], ids=["itself", "above"])
def swapper(request: pytest.FixtureRequest, user_directory: Path, user: int) -> Iterator[_Swapper]:
    """Two directories that another user swaps while root mounts."""
    found = _Swapper(user_directory, user, above=bool(request.param))
    yield found
    found.kill()


def _covered_is_empty(swapper: _Swapper) -> bool:
    """Whether a mount is on one of the two directories; it must not be the full one."""
    places = [place for place in (swapper.empty, swapper.full) if mounts_on(place)]
    if not places:
        return False
    (place,) = places
    (visible,) = {swapper.empty, swapper.full} - {place}
    assert os.listdir(visible) == ["file"]
    return True


def test_a_mount_point_that_is_swapped_never_hides_a_directory_that_is_not_empty(swapper: _Swapper) -> None:
    for _ in range(_SWAPS):
        with contextlib.suppress(CannotMount):
            directory = open_mountpoint(swapper.empty)
            try:
                device, mount = attach(directory, swapper.empty)
            finally:
                os.close(directory)
            swapper.pause()
            try:
                assert _covered_is_empty(swapper)
            finally:
                os.close(device)
                detach(mount)
                swapper.go_on()
        assert not mounts_on(swapper.empty)
        assert not mounts_on(swapper.full)


def test_nor_does_the_command(swapper: _Swapper) -> None:
    before = children()
    for _ in range(_SWAPS_OF_COMMANDS):
        done = memfs("mount", "-o", "log=/dev/null", swapper.empty)
        swapper.pause()
        try:
            assert _covered_is_empty(swapper) == (done.returncode == 0)
            if done.returncode:
                complaint(done, 1)
        finally:
            for place in (swapper.empty, swapper.full):
                if mounts_on(place):
                    _silent(memfs("umount", place))
        swapper.go_on()
    _reap(children() - before - {swapper.pid})


def _reap(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_a_mount_that_was_moved_is_unmounted_where_it_is_and_its_old_place_is_left_alone(
    tmp_path: Path,
) -> None:
    here, moved = tmp_path / "here", tmp_path / "moved"
    here.mkdir()
    with mounted(here) as mount:
        here.rename(moved)
        mount.path.mkdir(parents=True)
        check("mount", "-t", "tmpfs", "none", mount.path)
        try:
            mount.signal(signal.SIGTERM)
            assert mount.reap() == 0
            assert mounts_on(moved / "mnt") == []
            assert mounts_on(mount.path) == [("tmpfs", "none")]
        finally:
            check("umount", mount.path)
            shutil.rmtree(here)
            moved.rename(here)


# A pid that means someone else


def test_unmounting_in_another_pid_namespace_ends_nobody_there(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount, PidNamespace() as inside:
        inside.hold(mount.daemon, "private-runs", seed=1, directory=tmp_path)
        done = inside.finish(inside.run(MEMFS, "umount", str(mount.path)))
        assert (done.status, done.stderr) == (0, b"")
        assert mount.daemon in inside.alive()
        assert not os.path.ismount(Path(f"{inside.root}{mount.path}"))
        inside.tell(mount.daemon, "tell")
        assert str(os.getpid()) in os.listdir(mount.path)


_HOSTILE = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
subprocess.run(
    ["fusermount3", "-o", "fsname=memfs,subtype=memfs", "--", sys.argv[1]],
    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, pass_fds=[theirs.fileno()], check=True,
)
_, (device,), _, _ = socket.recv_fds(ours, 1, 1)
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"d"], [device])
"""


@contextlib.contextmanager
def _hostile_mount(place: Path, user: int, *, holder: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A mount of type fuse.memfs by *user*, whose device only a process of *holder*'s (root's) has."""
    place.mkdir()
    os.chown(place, user, user)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [_PYTHON, "-c", _HOSTILE, place, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], user=user, group=user, extra_groups=[], check=True,
        )  # fmt: skip
        _, (device,), _, _ = socket.recv_fds(ours, 1, 1)
    victim = subprocess.Popen(["sleep", "1000"], pass_fds=[device], user=holder)
    os.close(device)
    try:
        yield victim
    finally:
        victim.kill()
        victim.wait()
        run("umount", "-l", place)


def test_a_process_that_was_handed_the_device_of_a_hostile_mount_is_not_signalled(
    user: int, user_directory: Path
) -> None:
    place = user_directory / "mnt"
    with _hostile_mount(place, user) as victim:
        assert mounts_on(place) == _OURS
        _silent(memfs("umount", place))
        assert mounts_on(place) == []
        assert victim.poll() is None


def test_root_signals_no_process_of_the_user_who_mounted_and_says_that_it_stays(
    user: int, user_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(umount_command, "_ABORTED_S", 0.1)
    monkeypatch.setattr(umount_command, "_KILL_S", 0.1)
    place = user_directory / "mnt"
    with _hostile_mount(place, user, holder=user) as holder:
        with pytest.raises(CannotMount, match=f"process {holder.pid}, .* does not end"):
            _unmount(place)
        assert mounts_on(place) == []
        assert holder.poll() is None


def test_a_hostile_mount_is_not_asked_where_a_process_is(user: int, user_directory: Path) -> None:
    """`memfs snapshot` looks into mounts of root and of its caller."""
    place = user_directory / "mnt"
    with _hostile_mount(place, user):
        said = complaint(memfs("snapshot", "--mount", place, str(os.getpid()), "one"), 1)
        assert f"uid {user}" in said


# Standard descriptors that are closed

_SUBSETS = [
    closed for length in range(1, 4) for closed in itertools.combinations((0, 1, 2), length)
]  # fmt: skip


def _without(closed: tuple[int, ...], *argv: str | Path) -> list[str | Path]:
    """A command line that runs *argv* with these descriptors closed."""
    redirections = " ".join(f"{number}<&-" for number in closed)
    return ["sh", "-c", f'exec "$@" {redirections}', "sh", *argv]


@pytest.mark.parametrize("closed", _SUBSETS, ids=lambda closed: "".join(map(str, closed)))
def test_mount_works_with_closed_descriptors_and_leaves_nothing_behind(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    before = children()
    done = run(*_without(closed, MEMFS, "mount", "-o", f"log={tmp_path}/log", where))
    try:
        _silent(done)
        assert str(os.getpid()) in os.listdir(where)
        (daemon,) = children() - before
        _silent(run(*_without(closed, MEMFS, "umount", where)))
        assert os.waitpid(daemon, 0)[1] == 0
        assert children() == before
    finally:
        run("umount", "-l", where)
        _reap(children() - before)


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)], ids=lambda closed: "".join(map(str, closed)))
def test_in_the_foreground_with_closed_descriptors_it_ends_by_a_signal(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    with mount_changes() as wait_for_change:
        program = subprocess.Popen(_without(closed, MEMFS, "mount", "-f", tmp_path))
        try:
            while not mounts_on(tmp_path):
                wait_for_change()
            assert str(program.pid) in os.listdir(tmp_path)
            program.send_signal(signal.SIGTERM)
            assert program.wait(TIMEOUT_SECONDS) == 0
            assert mounts_on(tmp_path) == []
        finally:
            program.kill()
            program.wait()
            run("umount", "-l", tmp_path)


# Log files that someone has planted


@contextlib.contextmanager
def _mount_point(directory: Path) -> Iterator[Path]:
    where = directory / "mnt"
    where.mkdir()
    before = children()
    try:
        yield where
    finally:
        if mounts_on(where):
            memfs("umount", where)
            _reap(children() - before)


def _plant(kind: str, log: Path, roots_file: Path, user: int) -> None:
    """Put something at *log*, in a directory of *user*'s."""
    match kind:
        case "fifo":
            os.mkfifo(log, 0o666)
        case "socket":
            with socket.socket(socket.AF_UNIX) as planted:
                planted.bind(os.fspath(log))
        case "directory":
            log.mkdir()
        case "link":
            log.symlink_to(roots_file)
        case "hard link":
            log.hardlink_to(roots_file)
        case "file":
            log.touch()
    if kind != "hard link":
        os.chown(log, user, user, follow_symlinks=False)


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link", "hard link", "file"])
def test_what_was_planted_for_a_log_is_refused(
    tmp_path: Path, user_directory: Path, user: int, kind: str
) -> None:
    roots_file = user_directory.parent / f"{user_directory.name}-roots"
    roots_file.write_text("root's")
    log = user_directory / "log"
    try:
        _plant(kind, log, roots_file, user)
        with _mount_point(tmp_path) as where:
            for options in ([], ["-f"]):
                said = complaint(memfs("mount", *options, "-o", f"log={log}", where), 1)
                assert f"cannot log to {log}" in said
            assert mounts_on(where) == []
        assert roots_file.read_text() == "root's"
    finally:
        roots_file.unlink()


def test_a_log_is_not_led_elsewhere_by_a_directory(
    tmp_path: Path, roots_directory: Path, user_directory: Path, user: int
) -> None:
    (user_directory / "logs").symlink_to(roots_directory)
    os.chown(user_directory / "logs", user, user, follow_symlinks=False)
    with _mount_point(tmp_path) as where:
        complaint(memfs("mount", "-o", f"log={user_directory}/logs/log", where), 1)
    assert os.listdir(roots_directory) == []


def test_a_fifo_of_ones_own_is_refused_as_a_log_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with _mount_point(tmp_path) as where:
            complaint(memfs("mount", "-o", f"log={tmp_path}/log", where), 1)
    finally:
        os.close(reader)


def test_a_log_may_be_a_device_or_a_link_of_ones_own_and_a_new_one_is_for_its_owner(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    before = children()
    with _mount_point(tmp_path) as where:
        for log in ("/dev/null", tmp_path / "link", tmp_path / "new"):
            _silent(memfs("mount", "-o", f"log={log}", where))
            _silent(memfs("umount", where))
            _reap(children() - before)
    for log in (tmp_path / "target", tmp_path / "new"):
        assert "SIGTERM" in log.read_text()
        assert log.stat().st_mode & 0o777 == 0o600
