"""What is held is counted anew if that is quick, and else given again for a while; never another's."""

from collections.abc import Iterator

import pytest

from memfs.image.residency import ResidencyCounter, held_by_region
from memfs.linux.maps import Access, Mapping
from memfs.linux.pagemap import PageKind, PageRun, Scanner
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target import kept
from memfs.target.layout import Kind, Region

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


class _OldSpace:
    """A space before Linux 6.7: notes which spans it is asked about."""

    def __init__(self, uses: dict[int, MemoryUse]) -> None:
        self._uses = uses
        self.asked: list[Span] = []

    def uses(self) -> dict[int, MemoryUse]:
        return self._uses

    def pages(self, span: Span, scanner: Scanner) -> Iterator[PageRun]:
        scanner._forms = ()
        self.asked.append(span)
        yield PageRun(span, PageKind.OWN)


def _region(start: int, end: int) -> Region:
    mapping = Mapping(Span(start, end), Access.READ, 0, (0, 0), 0, b"")
    return Region(mapping, Kind.ANONYMOUS)


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


_TIB = 1 << 40


def test_of_a_gap_and_of_a_large_reservation_no_entry_is_read() -> None:
    reserved = Span(_TIB, 2 * _TIB)
    huge = Span(3 * _TIB, 4 * _TIB)
    small = [Span(0, PAGE_BYTES), Span(PAGE_BYTES, 3 * PAGE_BYTES), Span(2 * _TIB, 2 * _TIB + PAGE_BYTES)]
    space = _OldSpace(
        {
            reserved.start: MemoryUse(reserved.start, 5 * PAGE_BYTES, PAGE_BYTES, frozenset()),
            huge.start: MemoryUse(huge.start, 0, 0, frozenset({b"ht"})),
        }
    )
    regions = [_region(span.start, span.end) for span in (*small[:2], reserved, small[2], huge)]
    held = held_by_region(space, regions)  # type: ignore[arg-type] all that it uses
    assert held == [PAGE_BYTES, 2 * PAGE_BYTES, 6 * PAGE_BYTES, PAGE_BYTES, _TIB]
    asked = [
        span
        for span in space.asked
        if span not in (Span(r.start, r.start + PAGE_BYTES) for r in (reserved, huge))
    ]
    assert asked == [Span(0, 3 * PAGE_BYTES), small[2], huge]
