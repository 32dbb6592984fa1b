"""Spans."""

import itertools
from collections.abc import Iterator

import attrs
from hypothesis import given
from hypothesis import strategies as st

from memfs.linux.span import PAGE_BYTES, Span, tiles

_SMALL = st.integers(0, 60)
spans = st.tuples(_SMALL, _SMALL).map(lambda ends: Span(min(ends), max(ends)))


@given(spans, spans)
def test_a_clip_is_what_both_have(span: Span, other: Span) -> None:
    clip = span.clip(other)
    assert set(range(clip.start, clip.end)) == {at for at in range(60) if at in span and at in other}
    assert bool(clip) == (clip.size > 0)


@given(st.integers(0, 1 << 48), st.integers(0, 1 << 30))
def test_whole_pages_hold_the_span_and_less_than_a_page_more_at_each_end(start: int, size: int) -> None:
    span = Span(start, start + size)
    pages = span.page_aligned()
    assert pages.start % PAGE_BYTES == pages.end % PAGE_BYTES == 0
    assert 0 <= span.start - pages.start < PAGE_BYTES
    assert 0 <= pages.end - span.end < PAGE_BYTES


@given(spans, st.integers(-5, 5))
def test_a_moved_span_keeps_its_size(span: Span, by: int) -> None:
    assert span.moved(by) == Span(span.start + by, span.start + by + span.size)


@attrs.frozen
class Part:
    span: Span


parts = st.lists(_SMALL, unique=True, max_size=12).map(
    lambda ends: [Part(Span(*pair)) for pair in zip(*[iter(sorted(ends))] * 2, strict=False)]
)


@given(spans, parts)
def test_tiles_are_the_parts_and_the_gaps_in_order(whole: Span, parts: list[Part]) -> None:
    found = list(tiles(whole, parts))
    assert all(span for span, _ in found)
    assert [at for span, _ in found for at in range(span.start, span.end)] == list(
        range(whole.start, whole.end)
    )
    for span, part in found:
        for at in range(span.start, span.end):
            assert [each for each in parts if at in each.span] == ([part] if part is not None else [])


@given(spans, parts)
def test_neighbouring_gaps_are_one_tile_and_each_part_is_one(whole: Span, parts: list[Part]) -> None:
    found = list(tiles(whole, parts))
    assert all(one is not None or other is not None for (_, one), (_, other) in itertools.pairwise(found))
    assert [part for _, part in found if part] == [part for part in parts if part.span.clip(whole)]


def test_parts_behind_the_whole_end_the_walk() -> None:
    def endless() -> Iterator[Part]:
        yield Part(Span(9, 10))
        raise AssertionError("asked for too many")

    assert list(tiles(Span(0, 9), endless())) == [(Span(0, 9), None)]


def test_parts_are_not_asked_for_before_they_are_needed() -> None:
    def endless() -> Iterator[Part]:
        yield Part(Span(1, 2))
        raise AssertionError("asked for too early")

    walk = tiles(Span(0, 9), endless())
    assert [next(walk)[0], next(walk)[0]] == [Span(0, 1), Span(1, 2)]
