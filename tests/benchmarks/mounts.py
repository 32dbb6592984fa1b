"""The mounts: memfs, its pyfuse3 peer, a tmpfs. Each stands inside a context, and is gone after it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
from commands import CommandFailed

_MEMFS = Path(sys.executable).with_name("memfs")
_END_S = 30


@attrs.frozen
class MemfsMount:
    """A mount of memfs.

    Attributes:
        daemon: the pid of its daemon.
        log: where that logs.
    """

    path: Path
    daemon: int
    log: Path

    def resident_bytes(self) -> tuple[int, int]:
        """The daemon's RSS, and the highest that it ever was."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.daemon}/status").read_text().splitlines()
        )
        now, peak = (int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
        return now, peak

    def descriptors(self) -> int:
        """How many descriptors the daemon has open."""
        return len(os.listdir(f"/proc/{self.daemon}/fd"))

    def complaints(self) -> list[str]:
        """The lines of the log that say that something was wrong."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(word in line for word in ("WARNING", "ERROR", "CRITICAL"))]


@contextlib.contextmanager
def memfs_mount(directory: Path) -> Iterator[MemfsMount]:
    """Mount memfs below *directory*, by the console script beside this Python.

    Raises:
        CommandFailed: it does not mount.
    """
    path = directory / "memfs"
    log = directory / "memfs.log"
    path.mkdir()
    daemon = None
    try:
        _command(_MEMFS, "mount", "-o", f"log={log}", path)
        daemon = _daemon_of(path)
        yield MemfsMount(path, daemon, log)
    finally:
        if os.path.ismount(path):
            try:
                _command(_MEMFS, "umount", path)
            except CommandFailed as error:
                print(error, file=sys.stderr)
                _force(path, daemon)
        path.rmdir()


def _daemon_of(path: Path) -> int:
    """The process whose arguments end with the mount point, but for the fork server that it has made."""
    found = {}
    for process in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "cmdline").read_bytes().endswith(b"\0%s\0" % os.fsencode(path)):
                stat = (process / "stat").read_text()
                found[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    (daemon,) = (pid for pid, parent in found.items() if parent not in found)
    return daemon


@contextlib.contextmanager
def plain_mount(directory: Path, pid: int, start: int, size_bytes: int) -> Iterator[Path]:
    """Serve a range of a process by pyfuse3 alone; gives the file.

    Raises:
        CommandFailed: it does not mount.
    """
    path = directory / f"plain-{pid}"
    path.mkdir()
    try:
        with _served("plain_pyfuse3.py", path, pid, start, size_bytes):
            yield path / "memory"
    finally:
        path.rmdir()


@contextlib.contextmanager
def bare_mount(directory: Path, pid: int, start: int, size_bytes: int, loops: int = 1) -> Iterator[Path]:
    """Serve a range of a process by the shortest loop, in as many processes; gives the file.

    Raises:
        CommandFailed: it does not mount.
    """
    path = directory / f"bare-{loops}-{pid}"
    path.touch()
    try:
        with _served("bare_loop.py", path, pid, start, size_bytes, loops):
            yield path
    finally:
        path.unlink()


@contextlib.contextmanager
def _served(
    server_name: str, path: Path, pid: int, start: int, size_bytes: int, *more: int
) -> Iterator[None]:
    server_path = Path(__file__).with_name(server_name)
    argv = [sys.executable, str(server_path), *map(str, (pid, start, size_bytes, path, *more))]
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert server.stdout is not None
        if not server.stdout.readline():
            raise CommandFailed(f"the peer {server_name} did not mount, status {server.wait()}")
        yield
    finally:
        if os.path.ismount(path):
            _command(*_unmounter(), path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_END_S)
        server.kill()
        server.communicate()


@contextlib.contextmanager
def tmpfs_mount(directory: Path, size_bytes: int) -> Iterator[Path]:
    """An empty tmpfs that takes no more than *size_bytes*: a copy that should be sparse and is not must
    not take the memory of the machine.

    Raises:
        CommandFailed: it cannot be mounted; that needs root.
    """
    path = directory / "tmpfs"
    path.mkdir()
    try:
        _command("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "memfs-bench", path)
        yield path
    finally:
        if os.path.ismount(path):
            _command("umount", path)
        path.rmdir()


def _unmounter() -> list[str]:
    return ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]


def _force(path: Path, daemon: int | None) -> None:
    """Take away a mount that would not go: for the machine's sake, after it has been complained about."""
    with contextlib.suppress(CommandFailed):
        _command(*_unmounter(), "-l" if os.geteuid() == 0 else "-z", path)
    if daemon is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGKILL)


def _command(*argv: str | Path) -> None:
    # A session of its own: Ctrl-C is for us, and we unmount then.
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode:
        raise CommandFailed(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
