"""Targets that keep whoever looks at them waiting: with a userfaultfd, or with the server of a mapped file.

Such a target may hold up its own readers, and these die by SIGKILL. It holds up nobody else.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from mount.mounted import MEMFS, MIB, Mount, check, error_of, run
from support.child import Child
from support.compiled import build
from support.drivers import StuckTarget
from support.ending import Ending
from support.outside import children_of
from support.pattern import PAGE
from support.target import Target

_HANGS_SECONDS = 100.0
"""For hangs only."""
_READERS = 100
_LOOKERS = 40
_SILENT_PAGES = 64
_CONNECTIONS = Path("/sys/fs/fuse/connections")


class _SilentTarget(Ending):
    """A process that maps a file whose server never answers again."""

    def __init__(self, directory: Path) -> None:
        self._mountpoint = directory / "silent"
        self._mountpoint.mkdir()
        self.child = Child("silent.py", str(self._mountpoint))
        self.pid = int(self.child.hello["pid"])
        start = int(self.child.hello["shared"])
        self.name = f"{start:012x}-{start + _SILENT_PAGES * PAGE:012x}_rw-s_file"
        """Of the file of its shared mapping. To list it would tell its attributes."""

    def jam(self) -> None:
        """Return when nobody can look at its mappings any more."""
        self.child.ask("jam")

    def close(self) -> None:
        self.child.close()
        run("umount", "-l", self._mountpoint)


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[_SilentTarget]:
    """The same, with nothing jammed yet."""
    with _SilentTarget(tmp_path) as target:
        yield target


def _until(condition: Callable[[], bool], what: str) -> None:
    """Wait until *condition* holds, which nothing tells of."""
    deadline = time.monotonic() + _HANGS_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.005)


def _waiting(mount: Mount) -> int:
    """How many requests the kernel counts that have no reply yet."""
    number = os.major(_device(mount)) << 20 | os.minor(_device(mount))
    return int((_CONNECTIONS / str(number) / "waiting").read_text())


def _device(mount: Mount) -> int:
    """By its parent, so that the mount is not asked."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mount.path):
            major, minor = fields[2].split(":")
            return os.makedev(int(major), int(minor))
    raise LookupError(mount.path)


@pytest.fixture(autouse=True)
def _connections() -> Iterator[None]:
    """fusectl, which tells how many requests wait, is mounted by systemd; here it may not be."""
    mounted_here = not any(_CONNECTIONS.iterdir()) and not os.path.ismount(_CONNECTIONS)
    if mounted_here:
        check("mount", "-t", "fusectl", "fusectl", _CONNECTIONS)
    yield
    if mounted_here:
        check("umount", "-l", _CONNECTIONS)


@contextmanager
def _blocked(
    mount: Mount, *commands: list[str | Path], requests: int | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that wait for the mount, when there are so many *requests*: one for each, if not given."""
    wanted = len(commands) if requests is None else requests
    with ExitStack() as stack:
        programs: list[subprocess.Popen[bytes]] = []
        for argv in commands:
            program = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(program.wait, _HANGS_SECONDS)
            stack.callback(program.kill)
            programs.append(program)
        _until(lambda: _waiting(mount) >= wanted, "they do not wait")
        yield programs


def _assert_killable(programs: list[subprocess.Popen[bytes]]) -> None:
    """All of them: where one looks a name up, or makes one, the kernel lets others wait for that one."""
    for program in programs:
        program.kill()
    for program in programs:
        assert program.wait(_HANGS_SECONDS) == -signal.SIGKILL


def _descriptors_of(mount: Mount, pid: int) -> list[str]:
    """What the daemon has open of a process: files below /proc/PID, with each of which goes a pidfd."""
    found = []
    for descriptor in Path(f"/proc/{mount.daemon}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return [link for link in found if link.startswith(f"/proc/{pid}/")]


def _assert_others_go_on(mount: Mount, other: Target, big: int) -> None:
    """64 MiB of another process are read, its files are listed, and it is found by name and number."""
    done = run("dd", f"if={mount.process(other.pid)}/mem", "of=/dev/null", "bs=1M", "count=64",
               f"iseek={big // MIB}", timeout=_HANGS_SECONDS)  # fmt: skip
    assert done.returncode == 0, done
    check("ls", "-l", mount.process(other.pid) / "vmas", timeout=_HANGS_SECONDS)
    assert str(other.pid) in os.listdir(mount.path)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[Target, int]]:
    """A process that holds nobody up, and where it has 64 MiB."""
    with Target("private-runs", directory=tmp_path) as target:
        start = 0x2800_0000_0000
        target.map(start, 64 * MIB)
        target.write(start, 64 * MIB, seed=3)
        yield target, start


def test_a_hundred_blocked_readers_hold_nobody_else_up(
    memfs: Mount, other: tuple[Target, int], tmp_path: Path
) -> None:
    with StuckTarget() as stuck:
        file = memfs.vma(stuck.pid, stuck.mapping)
        readers = [["dd", f"if={file}", f"of={tmp_path / str(n)}", "bs=64K"] for n in range(_READERS)]
        with _blocked(memfs, *readers) as programs:
            _assert_others_go_on(memfs, *other)
            stuck.serve(7)
            assert {program.wait(_HANGS_SECONDS) for program in programs} == {0}
        content = {(tmp_path / str(n)).read_bytes() for n in range(_READERS)}
        assert len(content) == 1
        assert stuck.mapping.mismatch(0, content.pop()) is None


@pytest.mark.parametrize("jammed", [False, True], ids=["silent file", "jammed mappings"])
def test_blocked_opens_and_stats_hold_nobody_else_up(
    memfs: Mount, silent: _SilentTarget, other: tuple[Target, int], jammed: bool
) -> None:
    if jammed:
        silent.jam()
        look = ["ls", memfs.process(silent.pid) / "vmas"]
    else:
        look = ["cat", memfs.process(silent.pid) / "vmas" / silent.name]
    with _blocked(memfs, *[look] * _LOOKERS):
        _assert_others_go_on(memfs, *other)


BLOCKED: dict[str, Callable[[Path, Path], list[str | Path]]] = {
    "open": lambda _process, shared: ["cat", shared],
    "ls": lambda process, _shared: ["ls", process / "vmas"],
    "stat": lambda _process, shared: ["stat", shared],
    "mkdir": lambda process, _shared: ["mkdir", process / "snapshots/one"],
    "core": lambda process, _shared: ["cat", process / "core"],
    "getfattr": lambda _process, shared: ["getfattr", "-d", shared],
}


@pytest.mark.parametrize("tool", BLOCKED)
def test_a_blocked_program_dies_by_sigkill_and_leaves_nothing_open(
    memfs: Mount, silent: _SilentTarget, tool: str
) -> None:
    process = memfs.process(silent.pid)
    argv = BLOCKED[tool](process, process / "vmas" / silent.name)
    if tool != "open":
        silent.jam()
    # Of one name in one directory the kernel looks up one at a time.
    with _blocked(memfs, *[argv] * 6, requests=6 if tool == "ls" else 1) as programs:
        _assert_killable(programs)
    silent.close()  # what the daemon's threads wait for is aborted, and they come back
    _until(lambda: not _descriptors_of(memfs, silent.pid), "a descriptor is left open")


def test_a_read_that_was_killed_leaves_nothing_open(memfs: Mount) -> None:
    with StuckTarget() as stuck:
        argv: list[str | Path] = ["cat", memfs.vma(stuck.pid, stuck.mapping)]
        with _blocked(memfs, *[argv] * 20) as programs:
            _assert_killable(programs)
    _until(lambda: not _descriptors_of(memfs, stuck.pid), "a descriptor is left open")


def test_a_snapshot_whose_mkdir_was_killed_is_let_go(memfs: Mount, other: tuple[Target, int]) -> None:
    (fork_server,) = children_of(memfs.daemon)
    name = memfs.process(other[0].pid) / "snapshots" / "one"
    os.kill(fork_server, signal.SIGSTOP)
    try:
        with _blocked(memfs, ["mkdir", name]) as programs:
            _assert_killable(programs)
    finally:
        os.kill(fork_server, signal.SIGCONT)
    # The daemon makes it now, and lets it go since nobody has been told of it.
    _until(lambda: error_of(name.mkdir) is None, "the name stays taken")
    name.rmdir()


@pytest.mark.parametrize("ending", ["umount", "SIGTERM"])
def test_the_mount_ends_with_all_of_that_waiting(memfs: Mount, silent: _SilentTarget, ending: str) -> None:
    process = memfs.process(silent.pid)
    with StuckTarget() as stuck:
        file = memfs.vma(stuck.pid, stuck.mapping)
        silent.jam()
        waiting: list[list[str | Path]] = [["cat", file]] * 10 + [["ls", process / "vmas"]] * 10
        with _blocked(memfs, *waiting) as programs:
            if ending == "umount":
                check(MEMFS, "umount", memfs.path)
            else:
                memfs.signal(signal.SIGTERM)
            assert memfs.reap() == 0
            assert all(program.wait(_HANGS_SECONDS) > 0 for program in programs)


def test_a_handled_signal_interrupts_no_call(memfs: Mount, other: tuple[Target, int]) -> None:
    target, _ = other
    file = memfs.vma(target.pid, target.mapping("private-runs"))
    assert check(build("signals"), file, "500", timeout=_HANGS_SECONDS) == b"0 0\n"


def test_a_signal_by_which_programs_keep_time_never_interrupts(memfs: Mount) -> None:
    """A blocked reader that gets SIGCHLD goes on when its page comes; SIGTERM ends it."""
    with StuckTarget() as stuck:
        file = memfs.vma(stuck.pid, stuck.mapping)
        source = "import signal, sys; signal.signal(signal.SIGCHLD, lambda *_: print('seen'));"
        source += "print(len(open(sys.argv[1], 'rb', buffering=0).read(1 << 19)))"
        reader = subprocess.Popen(["/usr/bin/python3", "-c", source, file], stdout=subprocess.PIPE)
        try:
            stuck.wait_for_fault()
            reader.send_signal(signal.SIGCHLD)
            stuck.serve(3)
            assert reader.communicate(timeout=_HANGS_SECONDS)[0] == b"seen\n%d\n" % stuck.mapping.length
        finally:
            reader.kill()
            reader.wait()
