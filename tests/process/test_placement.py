"""Two threads for one reader: beside it and elsewhere, for as long as it is so wished, on real CPUs."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from memfs.fuse.placement import Placement
from memfs.linux.procfs import read_last_cpu

_ALL = os.sched_getaffinity(0)
pytestmark = pytest.mark.skipif(len(_ALL) < 2, reason="there is one CPU: nothing to choose")


@contextmanager
def _thread(cpu: int | None = None) -> Iterator[int]:
    """A thread that does nothing, and has run on *cpu* last; its number."""
    ready, end = threading.Event(), threading.Event()
    number = 0

    def run() -> None:
        nonlocal number
        number = threading.get_native_id()
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        ready.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        yield number
    finally:
        end.set()
        thread.join()


@pytest.fixture
def server() -> Iterator[int]:
    with _thread() as number:
        yield number


@pytest.fixture
def helper() -> Iterator[int]:
    with _thread() as number:
        yield number


@pytest.mark.parametrize("cpu", sorted(_ALL)[:2])
def test_one_is_beside_the_reader_and_the_other_is_not(server: int, helper: int, cpu: int) -> None:
    placement = Placement()
    with _thread(cpu) as reader:
        assert read_last_cpu(reader) == cpu
        placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) == {cpu}
    assert os.sched_getaffinity(helper) == _ALL - {cpu}
    placement.undo()
    assert os.sched_getaffinity(server) == os.sched_getaffinity(helper) == _ALL


def test_they_follow_the_reader_and_only_those_in_use_are_held(server: int, helper: int) -> None:
    placement = Placement()
    first, second = sorted(_ALL)[:2]
    with _thread(first) as reader, _thread(second) as moved, _thread() as other:
        placement.arrange(reader, server, helper)
        placement.arrange(moved, other, helper)
        assert os.sched_getaffinity(server) == _ALL
        assert os.sched_getaffinity(other) == {second}
        assert os.sched_getaffinity(helper) == _ALL - {second}
        placement.undo()


def test_without_the_reader_the_kernel_chooses(server: int, helper: int) -> None:
    placement = Placement()
    with _thread(min(_ALL)) as reader:
        placement.arrange(reader, server, helper)
    placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) == os.sched_getaffinity(helper) == _ALL


def test_no_cpu_is_used_that_is_not_ours(server: int, helper: int) -> None:
    """Whoever confines the process, with taskset(1) say, is obeyed: also at the end."""
    placement = Placement()
    first, second = sorted(_ALL)[:2]
    threads = 0, server, helper
    with _thread(second) as reader:
        placement.arrange(reader, server, helper)
        try:
            for thread in threads:
                os.sched_setaffinity(thread, {first})
            placement.undo()
            assert [os.sched_getaffinity(thread) for thread in threads] == [{first}] * 3
            placement.arrange(reader, server, helper)
            assert [os.sched_getaffinity(thread) for thread in threads] == [{first}] * 3
        finally:
            os.sched_setaffinity(0, _ALL)


def test_a_thread_that_has_ended_is_no_error(helper: int) -> None:
    placement = Placement()
    with _thread(min(_ALL)) as reader:
        with _thread() as ended:
            pass
        placement.arrange(reader, ended, helper)
        assert os.sched_getaffinity(helper) == _ALL
