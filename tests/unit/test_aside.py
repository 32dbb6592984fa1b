"""How what is copied aside is read: few calls, and every byte of it, and no other is written."""

from hypothesis import given
from hypothesis import strategies as st

from memfs.image.source import MAX_READ_BYTES
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.aside import _stretches

_LENGTHS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 600)), max_size=12
)  # a gap, and an extent behind it, in pages


def _extents(lengths: list[tuple[int, int]]) -> list[Span]:
    found, at = [], 0
    for gap, length in lengths:
        at += gap * PAGE_BYTES
        found.append(Span(at, at + length * PAGE_BYTES))
        at += length * PAGE_BYTES
    return found


@given(_LENGTHS)
def test_the_pieces_are_the_extents_and_lie_in_what_is_read(lengths: list[tuple[int, int]]) -> None:
    extents = _extents(lengths)
    pages: list[int] = []
    end = 0
    for stretch, pieces in _stretches(extents):
        assert end <= stretch.start
        assert 0 < stretch.size <= MAX_READ_BYTES
        assert (stretch.start, stretch.end) == (pieces[0].start, pieces[-1].end)
        for piece in pieces:
            pages += range(piece.start // PAGE_BYTES, piece.end // PAGE_BYTES)
        end = stretch.end
    assert pages == [
        page for extent in extents for page in range(extent.start // PAGE_BYTES, extent.end // PAGE_BYTES)
    ]


def test_small_extents_with_small_gaps_are_read_at_once_and_far_ones_are_not() -> None:
    near = [Span(2 * n * PAGE_BYTES, (2 * n + 1) * PAGE_BYTES) for n in range(10)]
    far = Span(1 << 30, (1 << 30) + PAGE_BYTES)
    assert [pieces for _, pieces in _stretches([*near, far])] == [near, [far]]
