"""Answers that took long: kept, shared by who asks at once, and found anew where they do not suit."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from memfs.target import kept as module
from memfs.target.kept import Kept

_ASKERS = 4


class _Finder:
    """Finds one number after the other, each when it is let go on."""

    def __init__(self) -> None:
        self.found = 0
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self) -> int:
        self.found += 1
        number = self.found
        self.begun.release()
        assert self.go_on.acquire(timeout=30)
        return number


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept[str, int]:
    """Whose answers are never old."""
    monkeypatch.setattr(module, "_SHARE", 1e9)
    return Kept()


@pytest.fixture
def finder() -> _Finder:
    return _Finder()


def _at_once(pool: ThreadPoolExecutor, finder: _Finder, ask: Callable[[], int]) -> list[Future[int]]:
    """One looks for the answer, and the others ask for it meanwhile."""
    first = pool.submit(ask)
    assert finder.begun.acquire(timeout=30)
    return [first, *(pool.submit(ask) for _ in range(_ASKERS - 1))]


def test_who_asks_at_once_is_given_one_answer(kept: Kept[str, int], finder: _Finder) -> None:
    with ThreadPoolExecutor(_ASKERS) as pool:
        answers = _at_once(pool, finder, lambda: kept.get("key", finder))
        finder.go_on.release()
        assert [answer.result(30) for answer in answers] == [1] * _ASKERS
    assert finder.found == 1


def test_what_was_found_quickly_is_kept_for_as_long_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARE", 0)
    short, long = Kept[str, int](), Kept[str, int](least_s=1e9)
    assert long.peek("key") is None
    for kept in (short, long):
        assert kept.get("key", lambda: 1) == 1
    assert (short.peek("key"), long.peek("key")) == (None, 1)
    assert (short.get("key", lambda: 2), long.get("key", lambda: 2)) == (2, 1)


def test_who_asks_for_something_else_does_not_wait(kept: Kept[str, int], finder: _Finder) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(kept.get, "slow", finder)
        assert finder.begun.acquire(timeout=30)
        assert kept.get("quick", lambda: 7) == 7
        finder.go_on.release()
        assert slow.result(30) == 1


def test_an_error_is_told_to_all_who_wait_and_is_not_kept(kept: Kept[str, int], finder: _Finder) -> None:
    def fail() -> int:
        finder()
        raise ProcessLookupError

    with ThreadPoolExecutor(_ASKERS) as pool:
        answers = _at_once(pool, finder, lambda: kept.get("key", fail))
        for _ in answers:
            finder.go_on.release()  # one who came late looks for himself
        assert {type(answer.exception(30)) for answer in answers} == {ProcessLookupError}
    assert kept.get("key", lambda: 5) == 5


def test_what_does_not_suit_is_found_anew_and_replaced(kept: Kept[str, int]) -> None:
    assert kept.get("key", lambda: 1) == 1
    assert kept.get("key", lambda: 2, lambda answer: answer > 1) == 2
    assert kept.get("key", lambda: 3) == 2


def test_an_answer_that_comes_and_does_not_suit_is_not_taken(kept: Kept[str, int], finder: _Finder) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.get, "key", finder)
        assert finder.begun.acquire(timeout=30)
        second = pool.submit(kept.get, "key", finder, lambda answer: answer > 1)
        finder.go_on.release(2)
        assert (first.result(30), second.result(30)) == (1, 2)


def test_what_is_pinned_stays(kept: Kept[str, int], finder: _Finder) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(kept.get, "key", finder)
        assert finder.begun.acquire(timeout=30)
        kept.pin("key", 9)
        finder.go_on.release()
        assert slow.result(30) == 1
    assert kept.get("key", finder, lambda _: False) == 9
