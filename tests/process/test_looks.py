"""What was opened of a process a moment ago is given again, whole, and only while it is the same program."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.target import Target

from memfs.target.identity import Identity, identify, read_status
from memfs.target.process import VmaFlagsCache
from memfs.tree import looks as module
from memfs.tree.looks import Looks

_THREADS = 4
_TIMES = 500


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _forget_all(looks: Looks) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "monotonic", lambda: float("inf"))
        looks.forget_old()


@pytest.mark.parametrize("memory", [False, True])
def test_what_is_given_is_open_while_others_let_go_of_it(
    tmp_path: Path, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_S", 1e-4)
    interval = sys.getswitchinterval()
    with Target("private-full", directory=tmp_path) as target:
        identity, looks = identify(target.pid), Looks(VmaFlagsCache())
        with looks.space(identity, memory=memory, own_device=None) as space:  # opens what all share, too
            assert space.region_at(target.mapping("private-full").start)
        _forget_all(looks)
        before = _descriptors()
        done = threading.Event()

        def use() -> None:
            for _ in range(_TIMES):
                with looks.space(identity, memory=memory, own_device=None) as space:
                    for fd in (space.pagemap, space.mem) if memory else (space.pagemap,):
                        os.fstat(fd)
                    assert space.region_at(target.mapping("private-full").start)

        def forget() -> None:
            while not done.is_set():
                looks.forget_old()

        with ThreadPoolExecutor() as pool:
            sys.setswitchinterval(1e-6)
            try:
                forgetting = pool.submit(forget)
                for using in [pool.submit(use) for _ in range(_THREADS)]:
                    using.result()
            finally:
                sys.setswitchinterval(interval)
                done.set()
            forgetting.result()
        _forget_all(looks)
        assert _descriptors() == before


def test_what_is_kept_can_be_forgotten_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog forgets it: were that to fail, nothing would look after stuck threads any more."""
    monkeypatch.setattr(module, "_KEPT_S", 1e-4)
    mine = read_status(os.getpid())
    monkeypatch.setattr(module, "read_status", lambda _: mine)
    interval = sys.getswitchinterval()
    looks = Looks(VmaFlagsCache())
    done = threading.Event()

    def ask(first: int) -> None:
        for pid in range(first, first + 20_000):
            looks.status(Identity(pid, 0))

    def forget() -> None:
        while not done.is_set():
            looks.forget_old()

    with ThreadPoolExecutor() as pool:
        sys.setswitchinterval(1e-6)
        try:
            forgetting = pool.submit(forget)
            for asking in [pool.submit(ask, thread << 20) for thread in range(_THREADS)]:
                asking.result()
        finally:
            sys.setswitchinterval(interval)
            done.set()
        forgetting.result()


def test_it_is_opened_once_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_S", 60.0)
    with Target("private-full", directory=tmp_path) as target:
        identity, looks = identify(target.pid), Looks(VmaFlagsCache())
        with looks.space(identity, memory=True, own_device=None) as first:
            for memory in (False, True):
                with looks.space(identity, memory=memory, own_device=None) as again:
                    assert (again.pagemap, again.mem) == (first.pagemap, first.mem)
            assert os.fstat(first.mem)
        _forget_all(looks)
