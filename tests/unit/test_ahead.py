"""Reading ahead: the right bytes, only in order, only fresh, and nothing once someone else reads."""

import itertools
import random
import threading
from collections.abc import Callable

import pytest

from memfs.files import ahead as module
from memfs.files.ahead import LookAhead, Trace
from memfs.files.habits import ReadCounter
from memfs.files.handles import OpenFile
from memfs.image.source import HEADER_ROOM, Workspace
from memfs.image.text import Text
from memfs.linux.span import Span

_SIZE = 8 << 20
_BLOCK = 1 << 17
_CONTENT = random.Random(4).randbytes(_SIZE)
_ENOUGH = module._FIRST_BYTES // _BLOCK


class _Source(Text):
    """Bytes of which the test decides whether they are still there, and which tell when they were read."""

    def __init__(self) -> None:
        super().__init__(_CONTENT)
        self.there = True
        self.trusted = True
        self.closed = threading.Event()
        self.went_on = threading.Semaphore(0)
        self.asked: list[Span] = []

    def read_into(self, offset: int, view: memoryview, workspace: Workspace) -> int:
        got = super().read_into(offset, view, workspace)
        self.asked.append(Span(offset, offset + len(view)))
        self.went_on.release()
        return got

    def still_there(self, offset: int, size: int) -> bool:  # noqa: ARG002 a Source's
        return self.there

    def may_be_cached(self) -> bool:
        return self.trusted

    def close(self) -> None:
        super().close()
        self.closed.set()


@pytest.fixture
def source() -> _Source:
    return _Source()


@pytest.fixture
def file(source: _Source) -> OpenFile:
    return OpenFile(source, ReadCounter(b"dd", uses_cache=False))


@pytest.fixture
def trace(file: OpenFile, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """It is never too late, and never too long to wait for, unless a test says so."""
    monkeypatch.setattr(module, "LIVE_S", 3600.0)
    monkeypatch.setattr(module, "_PATIENCE_S", 30.0)
    ahead = LookAhead()
    ahead.start()
    file.trace = Trace(ahead, file)
    return file.trace


def _next(trace: Trace, offset: int, size: int = _BLOCK) -> bytes | None:
    """The block at *offset*, if it was read ahead."""
    assert trace.enter()
    try:
        found = trace.advance(offset, size)
        return None if found is None else bytes(found[HEADER_ROOM:])
    finally:
        trace.leave()


def _go(trace: Trace, source: _Source, first: int = 0) -> int:
    """Read in order until something has been read ahead; returns how far."""
    for block in range(_ENOUGH):
        assert _next(trace, first + block * _BLOCK) is None
    assert source.went_on.acquire(timeout=30)
    return first + _ENOUGH * _BLOCK


def test_what_is_read_in_order_has_been_read_ahead_to_the_end(trace: Trace, source: _Source) -> None:
    at = _go(trace, source)
    hits = 0
    while at < _SIZE:
        got = _next(trace, at)
        hits += got is not None
        assert got in (None, _CONTENT[at : at + _BLOCK])
        at += _BLOCK
    assert hits >= module._CHUNK_BYTES // _BLOCK
    assert _next(trace, _SIZE, 0) is None


@pytest.mark.parametrize("where", [lambda at: at + _BLOCK, lambda at: at - _BLOCK, lambda _: 0])
def test_nothing_goes_across_a_seek(trace: Trace, source: _Source, where: Callable[[int], int]) -> None:
    at = _go(trace, source)
    assert _next(trace, at) == _CONTENT[at : at + _BLOCK]
    there = where(at + _BLOCK)
    assert _next(trace, there) is None
    assert _next(trace, there + _BLOCK) is None


def _skip_to(trace: Trace, start: int, end: int) -> None:
    """Ask where the data end that begin at *start*."""
    assert trace.enter()
    trace.expect(start, end)
    trace.leave()


def test_who_skips_holes_finds_the_next_data_read_ahead_and_no_hole(trace: Trace, source: _Source) -> None:
    run, gap = 4 * _BLOCK, 16 * _BLOCK
    _skip_to(trace, 0, run)
    assert [_next(trace, at) for at in range(0, run, _BLOCK)] == [None] * 4
    _skip_to(trace, gap, gap + run)
    assert _next(trace, gap) is None
    assert source.went_on.acquire(timeout=30)
    for at in range(gap + _BLOCK, gap + run, _BLOCK):
        assert _next(trace, at) == _CONTENT[at : at + _BLOCK]
    assert source.asked == [Span(gap + _BLOCK, gap + run)]


def test_who_only_asks_for_holes_has_nothing_read_ahead(trace: Trace, source: _Source) -> None:
    for start in range(0, _SIZE, 16 * _BLOCK):
        _skip_to(trace, start, start + 8 * _BLOCK)
    assert _next(trace, 0) is None
    assert not source.went_on.acquire(blocking=False)


def test_who_reads_on_into_a_hole_has_that_read_ahead_too(trace: Trace, source: _Source) -> None:
    _skip_to(trace, 0, 2 * _BLOCK + 1)
    at = _go(trace, source)
    assert _next(trace, at) == _CONTENT[at : at + _BLOCK]


def test_what_is_too_old_is_not_shown(trace: Trace, source: _Source, monkeypatch: pytest.MonkeyPatch) -> None:
    at = _go(trace, source)
    monkeypatch.setattr(module, "LIVE_S", 0.0)
    assert _next(trace, at) is None
    # And for a while nothing is read ahead any more.
    monkeypatch.setattr(module, "LIVE_S", 3600.0)
    assert [_next(trace, at + block * _BLOCK) for block in range(1, 20)] == [None] * 19


def test_what_had_to_be_found_out_first_makes_nothing_old(
    trace: Trace, source: _Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the bytes may be waited for is asked of smaps, which takes long where much is mapped."""
    clock = itertools.chain([10.0], itertools.repeat(0.0))
    now = 1.0

    def ask() -> bool:
        nonlocal now
        now += next(clock)
        return True

    monkeypatch.setattr(module, "LIVE_S", 1.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(source, "may_be_cached", ask)
    at = _go(trace, source)
    assert _next(trace, at) == _CONTENT[at : at + _BLOCK]


def test_what_never_changes_is_never_too_old(
    file: OpenFile, source: _Source, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.keeps = True
    file.trace = trace = Trace(trace._ahead, file)
    at = _go(trace, source)
    monkeypatch.setattr(module, "LIVE_S", 0.0)
    source.there = False
    assert _next(trace, at) == _CONTENT[at : at + _BLOCK]


def test_what_is_gone_meanwhile_is_not_shown(trace: Trace, source: _Source) -> None:
    at = _go(trace, source)
    source.there = False
    assert _next(trace, at) is None


def test_what_might_be_waited_for_is_not_read_ahead(trace: Trace, source: _Source) -> None:
    source.trusted = False
    assert [_next(trace, block * _BLOCK) for block in range(40)] == [None] * 40
    assert not source.went_on.acquire(blocking=False)


def test_one_thread_at_a_time_reads_and_a_closed_file_keeps_nothing(
    file: OpenFile, trace: Trace, source: _Source
) -> None:
    at = _go(trace, source)
    assert trace.enter()
    assert not trace.enter()
    found = trace.advance(at, _BLOCK)
    file.release()
    assert found is not None
    assert found[HEADER_ROOM:] == _CONTENT[at : at + _BLOCK]
    trace.leave()
    assert source.closed.wait(30)
    assert trace._chunks == []
