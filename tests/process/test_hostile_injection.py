"""A target attacks whoever makes it run system calls: nothing but these calls is ever run by it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from process.freezing import snapshots
from support.compiled import build
from support.outside import children_of, thread_states

from memfs.errors import MemfsError
from memfs.snapshot.registry import Snapshots
from memfs.target.identity import identify

USER = 65533
MANY = 300
SOME = 20


@contextmanager
def _toggler(how: str, what: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [build("toggler"), how, what]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=USER) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            yield program
        finally:
            program.kill()


@contextmanager
def _victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's, which ends when its stdin does; it leads its process group."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, process_group=0) as victim:
        try:
            yield victim
        finally:
            victim.kill()


def _attempt(registry: Snapshots, pid: int, times: int) -> int:
    """Take and release so many snapshots; returns how many were taken. The others failed with a sentence."""
    identity = identify(pid)
    taken = 0
    for _ in range(times):
        with suppress(MemfsError):
            registry.make(identity, b"one")
            taken += 1
            registry.remove(identity, b"one")
    return taken


@pytest.mark.timeout(600)
def test_a_number_that_comes_out_of_a_target_is_never_signalled() -> None:
    with snapshots() as registry, _victim() as victim, _toggler("bytes", str(victim.pid)) as target:
        _attempt(registry, target.pid, MANY)
        assert victim.poll() is None
        assert target.poll() is None


@pytest.mark.timeout(600)
def test_a_call_that_returns_zero_ends_no_process_group() -> None:
    with snapshots() as registry, _toggler("bytes", "0") as target:
        _attempt(registry, target.pid, SOME)
        assert target.poll() is None


@pytest.mark.timeout(600)
def test_no_call_of_the_targets_choice_is_run_while_its_filter_is_suspended(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    escaped = tmp_path / "escaped"
    with snapshots() as registry, _toggler("bytes", str(escaped)) as target:
        _attempt(registry, target.pid, MANY)
        assert not escaped.exists()
        assert target.poll() is None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["compat", "removed", "replaced", "breakpoint", "illegal", "loop"])
def test_an_instruction_that_changes_in_any_way_runs_nothing_else(how: str) -> None:
    with _victim() as victim, _toggler(how, str(victim.pid)) as target:
        children = children_of(target.pid)
        with snapshots() as registry:
            _attempt(registry, target.pid, SOME)
        assert victim.poll() is None
        if target.poll() is None:  # it may have run into the changed instruction itself
            assert children_of(target.pid) == children
            assert {tracer for _, tracer in thread_states(target.pid).values()} == {0}
        else:
            assert -target.returncode in (signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP)


def test_nothing_is_left_of_the_snapshots_that_failed() -> None:
    with _toggler("bytes", str(os.getpid())) as target:
        children = children_of(target.pid)
        with snapshots() as registry:
            _attempt(registry, target.pid, SOME)
            assert list(registry.owners()) == []
        assert children_of(target.pid) == children
