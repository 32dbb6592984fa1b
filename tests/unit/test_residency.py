"""What is held is counted anew if that is quick, and else given again for a while; never another's."""

from collections.abc import Iterator

import pytest

from memfs.image.residency import ResidencyCounter
from memfs.linux.pagemap import PageKind, PageRun
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target import kept

_SPAN = Span(0, 8 * PAGE_BYTES)


class _Space:
    """Of which the first pages are there, more with each question; each question takes its time."""

    def __init__(self, clock: list[float], takes_s: float) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self._pages = 0

    def pages(self, span: Span, _scanner: object) -> Iterator[PageRun]:
        self._clock[0] += self._takes_s
        self._pages += 1
        middle = span.start + self._pages * PAGE_BYTES
        yield PageRun(Span(span.start, middle), PageKind.OWN)
        yield PageRun(Span(middle, span.end), PageKind.UNTOUCHED)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    return now


def _ask(counter: ResidencyCounter, space: _Space, owner: str = "one", span: Span = _SPAN) -> int:
    return counter.held_bytes(owner, space, span) // PAGE_BYTES  # type: ignore[arg-type] all that it uses


def test_what_is_counted_quickly_is_counted_each_time(clock: list[float]) -> None:
    counter, space = ResidencyCounter(), _Space(clock, 0.0005)
    assert [_ask(counter, space) for _ in range(3)] == [1, 2, 3]


def test_what_takes_long_is_kept_for_twenty_times_as_long(clock: list[float]) -> None:
    counter, space = ResidencyCounter(), _Space(clock, 0.01)
    assert [_ask(counter, space) for _ in range(3)] == [1, 1, 1]
    clock[0] += 0.19
    assert _ask(counter, space) == 1
    clock[0] += 0.02
    assert _ask(counter, space) == 2


def test_no_one_is_told_what_another_holds(clock: list[float]) -> None:
    counter, space = ResidencyCounter(), _Space(clock, 0.01)
    assert _ask(counter, space) == 1
    assert _ask(counter, space, owner="two") == 2
    assert _ask(counter, space, span=Span(0, 7 * PAGE_BYTES)) == 3
    assert _ask(counter, space) == 1
