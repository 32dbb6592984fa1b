"""A snapshot is not noticed: not by what a program sees of itself, nor by its children, clients, parent.

MEMFS_SNAPSHOTS sets how many are taken of programs that look for it (25 unless set; 1000 for a long run),
MEMFS_KILLS how often the daemon is killed in between (6 unless set).
"""

import os
import re
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX
from socket import socket as Socket  # noqa: N812 - here a socket is a path

import pytest
from mount.mounted import TIMEOUT_SECONDS, Mount, mounted, run
from support.compiled import why_no_32_bits
from support.drivers import StuckTarget
from support.outside import children_of, thread_states
from support.target import Target
from support.witness import COPY_OFFSET, Witness

_SNAPSHOTS = int(os.environ.get("MEMFS_SNAPSHOTS", "25"))
_KILLS = int(os.environ.get("MEMFS_KILLS", "6"))
_LIMIT_SECONDS = 40 + 0.2 * _SNAPSHOTS
_MOMENTS = 8

pytestmark = pytest.mark.timeout(_LIMIT_SECONDS + 60)


@pytest.fixture
def memfs(tmp_path: Path) -> Iterator[Mount]:
    """A mount that may take as long as so many snapshots take."""
    with mounted(tmp_path, limit_seconds=_LIMIT_SECONDS) as mount:
        yield mount


def snap(mount: Mount, pid: int) -> None:
    """Take a snapshot, and let it go at once."""
    with mount.snapshot(pid):
        pass


def ensure_let_go(pid: int) -> None:
    """No thread is traced, no thread stands still, no copy is left."""
    assert not traced(pid)
    assert not {state for state, _ in thread_states(pid).values()} & {"t", "T"}
    assert children_of(pid) == set()


@pytest.mark.parametrize("bits", [64, 32])
def test_no_call_no_signal_no_wait_and_no_register_tells_of_it(memfs: Mount, bits: int) -> None:
    if bits == 32 and (reason := why_no_32_bits()):
        pytest.skip(reason)
    with Witness("calls", bits=bits) as witness:
        for _ in range(_SNAPSHOTS):
            before = witness.report()
            snap(memfs, witness.pid)
            while witness.report().done["epoll"] == before.done["epoll"]:
                pass  # it is asked again: each kind of wait shall be met in the middle, not only begun
        report = witness.report()
        assert report.surprises == {}
        assert report.sigchld == 0
        assert report.alarms > 0
        assert min(report.done.values()) > 0
        ensure_let_go(witness.pid)


def test_what_a_program_writes_in_order_is_never_seen_out_of_order(memfs: Mount) -> None:
    """Each of eight threads adds one to a number, and then copies it to another page."""
    with Witness("counters") as witness:
        first = witness.ask()
        seen = 0
        for _ in range(_SNAPSHOTS):
            with memfs.snapshot(witness.pid) as directory:
                memory = os.open(directory / "mem", os.O_RDONLY)
                try:
                    numbers = read_counters(memory, first["address"], first["counters"])
                finally:
                    os.close(memory)
            assert all(number - copy in (0, 1) for number, copy in numbers), numbers
            assert numbers[0][0] >= seen
            seen = numbers[0][0]
        assert seen > first["first"]
        ensure_let_go(witness.pid)


def read_counters(memory: int, address: int, count: int) -> list[tuple[int, int]]:
    """Each number and its copy."""

    def number_at(offset: int) -> int:
        return int(struct.unpack("=Q", os.pread(memory, 8, address + offset))[0])

    return [
        (number_at(2 * COPY_OFFSET * i), number_at(2 * COPY_OFFSET * i + COPY_OFFSET)) for i in range(count)
    ]


def test_a_shell_that_waits_for_its_children_gets_each_of_them(memfs: Mount) -> None:
    script = "while read n; do (exit $n) & wait $!; echo $?; done"
    with subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for number in range(_SNAPSHOTS):
            shell.stdin.write(b"%d\n" % number)
            shell.stdin.flush()
            snap(memfs, shell.pid)
            assert shell.stdout.readline() == b"%d\n" % number
        shell.stdin.close()
        assert shell.wait(TIMEOUT_SECONDS) == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_a_stopped_process_stays_stopped_and_its_parent_hears_nothing(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        os.kill(target.pid, signal.SIGSTOP)
        assert os.waitpid(target.pid, os.WUNTRACED)[1] >> 8 == signal.SIGSTOP
        with memfs.snapshot(target.pid):
            assert _state(target.pid) == "T"
        assert _state(target.pid) == "T"
        assert os.waitpid(target.pid, os.WUNTRACED | os.WCONTINUED | os.WNOHANG) == (0, 0)
        os.kill(target.pid, signal.SIGCONT)
        assert os.WIFCONTINUED(os.waitpid(target.pid, os.WCONTINUED)[1])
        assert target.digest(target.mappings[0].start, 4096)


_FORKS = """
import os
os.write(1, b"x")
n = 0
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(n % 100)
    found, status = os.waitpid(-1, 0)
    assert found == pid and os.waitstatus_to_exitcode(status) == n % 100, (found, pid, status)
    try:
        os.waitpid(-1, os.WNOHANG)
        raise SystemExit("someone else's child")
    except ChildProcessError:
        n += 1
"""

_THREADS = """
import os, threading
os.write(1, b"x")
while True:
    threads = [threading.Thread(target=int) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("source", [_FORKS, _THREADS], ids=["forks", "threads"])
def test_a_program_that_forks_or_starts_threads_all_the_time_goes_on(memfs: Mount, source: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        try:
            assert program.stdout.read(1) == b"x"
            for _ in range(_SNAPSHOTS):
                snap(memfs, program.pid)
                assert program.poll() is None, program.stderr.read()
        finally:
            program.kill()


def test_redis_serves_its_clients_and_a_copy_holds_no_connection(memfs: Mount, tmp_path: Path) -> None:
    socket = tmp_path / "redis"
    # Debian's redis-tools has the server too, under another name.
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", tmp_path],
        executable="/usr/bin/redis-check-rdb",
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        while b"ready to accept connections" not in (line := server.stdout.readline()):
            assert line, "redis-server ended"
        load = ["redis-benchmark", "-s", socket, "-n", "60000", "-c", "20", "-t", "set,get", "--csv"]
        with subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as benchmark:
            taken = 0
            while benchmark.poll() is None:
                snap(memfs, server.pid)
                taken += 1
            assert benchmark.stdout is not None
            assert benchmark.stderr is not None
            assert (benchmark.returncode, benchmark.stderr.read()) == (0, b"")
            assert re.findall(r'^"(SET|GET)"', benchmark.stdout.read().decode(), re.MULTILINE) == [
                "SET",
                "GET",
            ]
        assert taken > 0
        with Socket(AF_UNIX) as client:
            client.settimeout(TIMEOUT_SECONDS)
            client.connect(str(socket))
            client.send(b"PING\r\n")
            assert client.recv(100) == b"+PONG\r\n"
            with memfs.snapshot(server.pid):
                client.send(b"QUIT\r\n")
                assert client.recv(100) == b"+OK\r\n"
                assert client.recv(100) == b"", "the copy holds the connection open"
        ensure_let_go(server.pid)
    finally:
        server.kill()
        server.communicate()


def test_a_process_that_a_debugger_holds_is_busy_and_the_debugger_keeps_it(
    memfs: Mount, tmp_path: Path
) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        memfs.declare(rf"process {target.pid} is traced by process \d+ already")
        with subprocess.Popen(
            ["gdb", "-q", "-nx", "-p", str(target.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as debugger:
            assert debugger.stdin is not None
            assert debugger.stdout is not None
            debugger.stdin.write(b"echo attached\\n\n")
            debugger.stdin.flush()
            while debugger.stdout.readline().strip().removeprefix(b"(gdb) ") != b"attached":
                pass
            with pytest.raises(OSError, match="Errno 16"):  # EBUSY
                snap(memfs, target.pid)
            assert debugger.communicate(b"print $pid = 1\ndetach\nquit\n")[0].count(b"detached") == 1
        snap(memfs, target.pid)
        ensure_let_go(target.pid)


def test_one_whose_thread_waits_in_a_read_of_this_mount_is_served(memfs: Mount, tmp_path: Path) -> None:
    """The read goes on, and gets its bytes when they come."""
    copy = tmp_path / "copy"
    with StuckTarget() as stuck:
        file = memfs.vma(stuck.pid, stuck.mapping)
        with subprocess.Popen(["dd", f"if={file}", f"of={copy}", "bs=64K", "status=none"]) as reader:
            try:
                stuck.wait_for_fault()
                snap(memfs, reader.pid)
                ensure_let_go(reader.pid)
                stuck.serve(7)
                assert reader.wait(TIMEOUT_SECONDS) == 0
            finally:
                reader.kill()
        assert stuck.mapping.mismatch(0, copy.read_bytes()) is None


def test_the_daemon_itself_and_one_that_asks_for_a_snapshot_of_itself_never_wait_for_ever(
    memfs: Mount,
) -> None:
    for pid in (memfs.daemon, *children_of(memfs.daemon)):
        done = run("mkdir", memfs.process(pid) / "snapshots" / "own")
        assert done.returncode == 0 or b"busy" in done.stderr
        if done.returncode == 0:
            (memfs.process(pid) / "snapshots" / "own").rmdir()
        assert not traced(pid)
    memfs.declare("^thread [0-9]+ of process [0-9]+ does not come out of the kernel")
    done = run("mkdir", memfs.path / "self" / "snapshots" / "own")
    assert done.returncode == 1
    assert b"Device or resource busy" in done.stderr


@pytest.mark.parametrize("moment", range(_KILLS))
def test_a_daemon_that_is_killed_lets_every_process_go(memfs: Mount, moment: int) -> None:
    """In the middle of a snapshot, too: it is killed as soon as a thread has been seen stopped."""
    with Witness("counters") as witness:
        kept = memfs.process(witness.pid) / "snapshots" / "kept"
        kept.mkdir()
        (copy,) = map(os.pidfd_open, children_of(witness.pid))
        taking = subprocess.Popen(
            ["mkdir", *(memfs.process(witness.pid) / "snapshots" / str(n) for n in range(12))],
            stderr=subprocess.DEVNULL,
        )
        with taking:
            for _ in range(moment % _MOMENTS):
                while taking.poll() is None and not traced(witness.pid):
                    pass
            memfs.signal(signal.SIGKILL)
            memfs.status = memfs.reap()
        assert select.select([copy], [], [], TIMEOUT_SECONDS)[0], "the copy lives on"
        os.close(copy)
        while children_of(witness.pid) or traced(witness.pid):
            pass  # what was begun is brought to its end
        ensure_let_go(witness.pid)
        before = witness.ask()["first"]
        while witness.ask()["first"] == before:
            pass  # it counts on
        run("umount", "-l", memfs.path)


def traced(pid: int) -> bool:
    """Whether any thread is traced."""
    return any(tracer for _, tracer in thread_states(pid).values())
