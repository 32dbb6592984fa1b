"""A process is frozen at once, whatever else the machine is busy with, and its priority is its own."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.freezing import snapshots

from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.target.identity import identify

_LOOPS = 4
_CPU_GROUP = Path("/sys/fs/cgroup/cpu")
_NORMAL, _FIRST = 20, -2  # the kernel's own priorities, as proc(5) has them in stat
_LATE = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
_LOOP = [sys.executable, "-c", "import signal; signal.alarm(600); print(flush=True)\nwhile 1: pass"]


def _may_come_first() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


pytestmark = pytest.mark.skipif(not _may_come_first(), reason="needs CAP_SYS_NICE")


@contextmanager
def _running(*argv: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that has written a line; it is killed in the end."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline()
            yield program
        finally:
            program.kill()


def _take(registry: Snapshots, pid: int) -> Snapshot:
    return registry.get(registry.make(identify(pid), b"one"))


def _priority(tid: int) -> int:
    return int(Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[15])


# Whoever waits for a CPU


def test_a_process_that_gets_no_cpu_is_frozen_at_once() -> None:
    cpu = min(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(_running(*_LATE))
        os.sched_setaffinity(target.pid, {cpu})
        os.sched_setscheduler(target.pid, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(_LOOPS):
            loop = stack.enter_context(_running(*_LOOP))
            os.sched_setaffinity(loop.pid, {cpu})
        registry = stack.enter_context(snapshots())
        for _ in range(3):
            snapshot = _take(registry, target.pid)
            assert snapshot.frozen.copy is not None
            registry.remove(snapshot.id.identity, b"one")
        assert os.sched_getscheduler(target.pid) == os.SCHED_IDLE


def test_a_process_that_has_used_its_quota_of_the_cpu_is_frozen_at_once() -> None:
    group = _CPU_GROUP / f"memfs-test-{os.getpid()}"
    if not (_CPU_GROUP / "cpu.cfs_quota_us").exists():
        pytest.skip("there is no cpu hierarchy of cgroup v1 here")
    with contextlib.ExitStack() as stack:
        group.mkdir()
        stack.callback(group.rmdir)
        (group / "cpu.cfs_period_us").write_text("1000000")
        (group / "cpu.cfs_quota_us").write_text("1000")
        target = stack.enter_context(_running(*_LOOP))
        (group / "cgroup.procs").write_text(str(target.pid))
        registry = stack.enter_context(snapshots())
        for _ in range(3):
            registry.remove(_take(registry, target.pid).id.identity, b"one")


# What it was


def _as(policy: int, priority: int, nice: int) -> str:
    return f"os.sched_setscheduler(0, {policy}, os.sched_param({priority})); os.nice({nice})"


_POLICIES = {
    "nice": _as(os.SCHED_OTHER, 0, 7),
    "not nice": _as(os.SCHED_OTHER, 0, -3),
    "batch": _as(os.SCHED_BATCH, 0, 0),
    "idle": _as(os.SCHED_IDLE, 0, 0),
    "round robin": _as(os.SCHED_RR, 3, 0),
    "first in, first out, children not": _as(os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 2, 0),
    "a slack of its own": "assert libc.prctl(29, ctypes.c_ulong(123456), 0, 0, 0) == 0",
    "a limit of real time": "resource.setrlimit(resource.RLIMIT_RTTIME, (1, 1))",
    "a deadline": "assert libc.syscall(314, 0, DEADLINE, 0) == 0",
}
_HAS_POLICY = """
import ctypes, os, resource, struct, sys, time
libc = ctypes.CDLL(None)
DEADLINE = struct.pack("=2IQiI3Q", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8)  # struct sched_attr
{set}
print(flush=True)
time.sleep(600)
"""


def _scheduling(pid: int) -> tuple[str, ...]:
    """All that the kernel tells of it."""
    shown = subprocess.run(["chrt", "-a", "-p", str(pid)], check=True, capture_output=True, text=True).stdout
    slack = Path(f"/proc/{pid}/timerslack_ns").read_text()
    nice = str(os.getpriority(os.PRIO_PROCESS, pid))
    return (shown, slack, nice, str(_priority(pid)))


@pytest.mark.parametrize("how", _POLICIES)
def test_a_process_keeps_its_policy_and_its_copy_has_none(how: str) -> None:
    source = _HAS_POLICY.format(set=_POLICIES[how])
    with snapshots() as registry, _running(sys.executable, "-c", source) as target:
        before = _scheduling(target.pid)
        snapshot = _take(registry, target.pid)
        assert _scheduling(target.pid) == before
        assert snapshot.frozen.copy is not None
        assert os.sched_getscheduler(snapshot.frozen.copy.pid) == os.SCHED_OTHER
        registry.remove(snapshot.id.identity, b"one")
        assert _scheduling(target.pid) == before
        assert target.poll() is None


# What is lent

_LENDS = """
import os, sys
from memfs.linux.inheritance import Lenders, prepare_to_lend
prepare_to_lend()
lenders = Lenders(2)
for line in sys.stdin:
    pids = line.split()
    for pid in pids:
        lenders.lend(int(pid))
    if not pids:
        lenders.close()
    print(flush=True)
"""


@contextmanager
def _lender() -> Iterator[subprocess.Popen[bytes]]:
    with _running(sys.executable, "-c", "print(flush=True)\n" + _LENDS) as lender:
        yield lender


def _tell(program: subprocess.Popen[bytes], *pids: int) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(" ".join(map(str, pids)).encode() + b"\n")
    program.stdin.flush()
    assert program.stdout.readline()


def test_a_thread_has_the_priority_of_who_lends_it_until_it_is_taken_back() -> None:
    with _running(*_LATE) as one, _running(*_LATE) as another, _running(*_LATE) as third, _lender() as lender:
        _tell(lender, one.pid, another.pid)
        assert [_priority(pid.pid) for pid in (one, another, third)] == [_FIRST, _FIRST, _NORMAL]
        _tell(lender, third.pid)  # there are two to lend
        assert [_priority(pid.pid) for pid in (another, third)] == [_FIRST, _FIRST]
        _tell(lender)
        assert [_priority(pid.pid) for pid in (one, another, third)] == [_NORMAL] * 3


def test_a_borrower_that_ends_is_no_trouble() -> None:
    with _running(*_LATE) as one, _running(*_LATE) as another, _lender() as lender:
        _tell(lender, one.pid)
        one.kill()
        one.wait()
        _tell(lender, another.pid)
        assert _priority(another.pid) == _FIRST
        _tell(lender)
        assert _priority(another.pid) == _NORMAL


def test_nothing_is_left_of_a_loan_when_the_lender_is_killed() -> None:
    with _running(*_LATE) as target, _lender() as lender:
        _tell(lender, target.pid)
        assert _priority(target.pid) == _FIRST
        lender.kill()
        lender.wait()
        assert _priority(target.pid) == _NORMAL
        assert os.sched_getscheduler(target.pid) == os.SCHED_OTHER
