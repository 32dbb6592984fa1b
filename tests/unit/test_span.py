"""Spans."""

from hypothesis import given
from hypothesis import strategies as st

from memfs.linux.span import PAGE_BYTES, Span

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
