"""A mount as a test sees it, and the few helpers that all tests of the mount share.

The daemon runs as a user runs it: in the background, by the command ``memfs``. The test process is the
subreaper (see `conftest`), so the daemon becomes its child, and its exit status can be asserted.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.held import HeldMapping, Span
from support.outside import children_of
from support.without import FEATURES, lacking

MEMFS = str(Path(sys.executable).with_name("memfs"))
TIMEOUT_SECONDS = 150.0
LIMIT_SECONDS = 200.0
"""Both are for hangs only: a busy machine may take ten times as long as a slow one that is idle."""
MIB = 1 << 20
WITHOUT = os.environ.get("MEMFS_TEST_WITHOUT", "")
"""Features, or a set of them, that daemons of root are without in all tests of the mount, see `without`."""
_LAUNCHER = Path(__file__).resolve().parents[1] / "support" / "without.py"

_QUIET_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO) ")
_LOUD_LINE = re.compile(r"\S+ \S+ (WARNING|ERROR|CRITICAL) (.*)")

Done = subprocess.CompletedProcess[bytes]


def run(
    *argv: str | Path,
    user: int | None = None,
    stdin: int = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Done:
    """Run a program to its end, as *user* with no other groups."""
    groups: list[int] | None = None if user is None else []
    program = subprocess.Popen(
        argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
        user=user, group=user, extra_groups=groups,
    )  # fmt: skip
    try:
        output, errors = program.communicate(timeout=timeout)
    except BaseException:
        # Not waited for: a reader whose read is never answered does not even end by SIGKILL.
        program.kill()
        program.returncode = -signal.SIGKILL
        for stream in (program.stdout, program.stderr):
            assert stream is not None
            stream.close()
        raise
    return Done(argv, program.returncode, output, errors)


def check(*argv: str | Path, user: int | None = None, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """Run a program that must end with status 0 and say nothing on stderr; returns its stdout."""
    done = run(*argv, user=user, timeout=timeout)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def memfs(*arguments: str | Path, user: int | None = None, env: dict[str, str] | None = None) -> Done:
    """Run the command memfs."""
    return run(MEMFS, *arguments, user=user, env=env)


def complaint(done: Done, status: int) -> str:
    """The one line by which memfs says why it failed with *status*."""
    said = done.stderr.decode()
    assert done.returncode == status, said
    assert re.fullmatch(r"memfs: [^\n]+\n", said), said
    assert done.stdout == b""
    return said


def mounts_on(path: Path) -> list[tuple[str, str]]:
    """Type and source of every mount whose mount point is *path*, the topmost last."""
    lines = (line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [(last.split()[0], last.split()[1]) for first, last in lines if first.split()[4] == str(path)]


@contextmanager
def mount_changes() -> Iterator[Callable[[], None]]:
    """Gives a function that blocks until the mount table has changed since it was last called."""
    with open("/proc/self/mountinfo", "rb") as table:
        poll = select.poll()
        poll.register(table, select.POLLPRI)
        poll.poll(0)

        def wait() -> None:
            assert poll.poll(TIMEOUT_SECONDS * 1000), "the mount table does not change"

        yield wait


def children() -> set[int]:
    """The pids of this process's children, zombies too."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found.update(map(int, task.read_text().split()))
    return found


def in_session(leader: int) -> list[int]:
    """The processes of the session that *leader* began; a daemon's children stay in its session."""
    found = []
    for stat in Path("/proc").glob("[1-9]*/stat"):
        try:
            session = int(stat.read_bytes().rpartition(b")")[2].split()[3])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if session == leader:
            found.append(int(stat.parent.name))
    return found


def open_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of *path*, open for reading."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def error_of(action: Callable[[], object]) -> int | None:
    """The errno with which *action* fails; None where it does not."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def read_all(descriptor: int, length: int, offset: int = 0) -> bytes:
    """The *length* bytes at *offset*, fewer only at the end of the file."""
    content = bytearray()
    while len(content) < length and (
        got := os.pread(descriptor, length - len(content), offset + len(content))
    ):
        content += got
    return bytes(content)


def wrong(mapping: HeldMapping, copy: bytes) -> str | None:
    """What is wrong with *copy* of a whole mapping; None where every byte is right."""
    if len(copy) != mapping.length:
        return f"{mapping.kind}: {len(copy)} bytes, not {mapping.length}"
    return mapping.mismatch(0, copy)


class Mount:
    """A memfs that is mounted, and its daemon."""

    def __init__(
        self, directory: Path, *options: str, user: int | None = None, without: str = WITHOUT
    ) -> None:
        """Mount on a new directory in *directory*, which *user* must be able to write in.

        Args:
            without: features that the kernel shall not have for this daemon, see `without`.
        """
        self.path = directory / "mnt"
        self.log = directory / "log"
        self.user = user
        self.status = 0
        """With what exit status the daemon must end."""
        self.lacks = frozenset(lacking(without)) if without else frozenset()
        self._declared: list[str] = []
        if not mounts_on(self.path):
            self.path.mkdir()
        if user is not None:
            os.chown(self.path, user, user)
        before = children()
        options_text = ",".join((f"log={self.log}", *options))
        launcher = (sys.executable, _LAUNCHER, without) if self.lacks and user is None else ()
        done = run(*launcher, MEMFS, "mount", "-o", options_text, self.path, user=user)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done
        (self.daemon,) = children() - before
        (self._fork_server,) = children_of(self.daemon)
        self._reaped = False

    def needs(self, feature: str, why: str) -> None:
        """Skip the test where the daemon has to do without *feature*."""
        if feature in self.lacks:
            pytest.skip(f"without {feature} ({FEATURES[feature].since}) {why}")

    def process(self, pid: int) -> Path:
        """The directory of a process."""
        return self.path / str(pid)

    def vma(self, pid: int, mapping: HeldMapping | Span) -> Path:
        """The file of the VMA that begins with *mapping*."""
        vmas = self.process(pid) / "vmas"
        (name,) = (name for name in os.listdir(vmas) if name.startswith(f"{mapping.start:012x}-"))
        return vmas / name

    @contextmanager
    def snapshot(self, pid: int, name: str = "one") -> Iterator[Path]:
        """A snapshot of a process, for the time of a ``with`` block."""
        path = self.process(pid) / "snapshots" / name
        path.mkdir()
        try:
            yield path
        finally:
            path.rmdir()

    def declare(self, pattern: str) -> None:
        """Say that exactly one line above INFO will match *pattern*."""
        self._declared.append(pattern)

    def declare_denials(self) -> None:
        """The same for each process that even this test, which is root, may not read."""
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            try:
                os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
            except PermissionError:
                self.declare(f"^process {pid} may not be read: ")
            except (FileNotFoundError, ProcessLookupError):
                continue

    def loud_lines(self) -> list[str]:
        """What the daemon logged above INFO, and what is no log line at all."""
        lines = (line for line in self.log.read_text().splitlines() if not _QUIET_LINE.match(line))
        return [found[2] if (found := _LOUD_LINE.match(line)) else f"stray: {line}" for line in lines]

    def reap(self) -> int:
        """Wait until the daemon has ended; its exit status, negative for a signal."""
        ended = os.pidfd_open(self.daemon)
        try:
            assert select.select([ended], [], [], TIMEOUT_SECONDS)[0], "the daemon does not end"
        finally:
            os.close(ended)
        return self._take_status()

    def reap_now(self) -> int | None:
        """The same for a daemon that must have ended already; None where it has not."""
        return self._take_status(os.WNOHANG)

    def _take_status(self, flags: int = 0) -> int | None:
        pid, status = os.waitpid(self.daemon, flags)
        if not pid:
            return None
        self._reaped = True
        with contextlib.suppress(ChildProcessError):  # its parent has waited for it, or was killed
            assert os.waitpid(self._fork_server, 0)[1] == 0
        return os.waitstatus_to_exitcode(status)

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        assert not self._reaped
        os.kill(self.daemon, number)

    def finish(self) -> None:
        """Unmount where that is still to do, and assert that all went as it should."""
        if not self._reaped:
            done = memfs("umount", self.path, user=self.user)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), done
            assert self.reap_now() == self.status
        assert mounts_on(self.path) == []
        assert in_session(self.daemon) == []
        found = Counter(
            next((p for p in self._declared if re.search(p, line)), line) for line in self.loud_lines()
        )
        assert found == Counter(self._declared)

    def clear(self) -> None:
        """After a failure: end what is left, by its number, and leave no mount behind."""
        if not self._reaped:
            self.signal(signal.SIGKILL)
            self.reap()
        while mounts_on(self.path):
            run("umount", "-l", self.path)


@contextmanager
def mounted(
    directory: Path,
    *options: str,
    user: int | None = None,
    limit_seconds: float = LIMIT_SECONDS,
    without: str = WITHOUT,
) -> Iterator[Mount]:
    """A mount for the time of a ``with`` block, and every check at its end.

    A daemon that does not answer would keep this very process in a read that no signal ends. So it is
    killed after *limit_seconds*: then the kernel ends the read, and the test fails.
    """
    mount = Mount(directory, *options, user=user, without=without)
    daemon = os.pidfd_open(mount.daemon)
    watch = threading.Timer(limit_seconds, signal.pidfd_send_signal, (daemon, signal.SIGKILL))
    watch.start()
    try:
        yield mount
        mount.finish()
    finally:
        watch.cancel()
        watch.join()
        os.close(daemon)
        mount.clear()
