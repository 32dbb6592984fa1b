"""Where copied bytes lie: each byte of an object once, and all that show it at its place."""

import itertools
import os
from unittest.mock import create_autospec

from hypothesis import given
from hypothesis import strategies as st

from memfs.linux.maps import Access, Mapping
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.places import Wanted, find_cover, group, merge
from memfs.snapshot.precopy import MEMORY, SWAPPED, plan
from memfs.target.identity import identify
from memfs.target.layout import USER_END, Kind, Region
from memfs.target.space import Space

DISK = (8, 1)
_SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: Span(pair[0], pair[0] + pair[1])),
    max_size=12,
)


def shared(start: int, offset: int, size: int, inode: int = 7) -> Region:
    span = Span(start, start + size).moved(0)
    return Region(
        Mapping(span, Access.READ | Access.WRITE | Access.SHARED, offset, DISK, inode, b"x"), Kind.SHARED
    )


@given(_SPANS, st.integers(0, 5))
def test_merged_spans_are_in_order_and_apart_and_hold_what_was_given(spans: list[Span], gap: int) -> None:
    merged = merge(spans, gap)
    assert all(one.end + gap < other.start for one, other in itertools.pairwise(merged))
    for span in spans:
        cover = find_cover(span, merged)
        assert cover is not None
        assert cover.start <= span.start <= span.end <= cover.end
    held = {at for span in spans for at in range(span.start, span.end)}
    assert held <= {at for span in merged for at in range(span.start, span.end)}
    if not gap:
        assert held == {at for span in merged for at in range(span.start, span.end)}
        assert find_cover(Span(90, 91), merged) is None


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(0, 1)), min_size=1, max_size=10)
)
def test_each_byte_of_an_object_has_one_place_and_is_copied_once(shown: list[tuple[int, int, int]]) -> None:
    regions = [
        shared(index << 30, offset * PAGE_BYTES, length * PAGE_BYTES, inode)
        for index, (offset, length, inode) in enumerate(shown, 1)
    ]
    places: dict[int, tuple[int, int]] = {}
    for each in group(Wanted(region, "shared") for region in regions):
        copied: list[int] = []
        for tile in each.tiles(one.region for one in each.wanted):
            copied += range(tile.span.start + tile.shift, tile.span.end + tile.shift, PAGE_BYTES)
        assert len(copied) == len(set(copied))
        assert min(copied) >= USER_END
        for one in each.wanted:
            mapping, shift = one.region.mapping, each.shift_of(one.region)
            assert shift is not None
            for at in range(mapping.span.start, mapping.span.end, PAGE_BYTES):
                of_object = (mapping.inode, mapping.offset + at - mapping.span.start)
                assert at + shift in copied
                assert places.setdefault(at + shift, of_object) == of_object


def test_what_is_swapped_out_or_more_than_may_be_is_not_copied_while_the_process_runs() -> None:
    swapped, large = shared(1 << 30, 0, 1 << 20, 7), shared(2 << 30, 0, 1 << 20, 8)
    groups = group(Wanted(region, "shared") for region in (swapped, large))
    uses = {
        swapped.span.start: MemoryUse(swapped.span.start, 0, 4096, frozenset()),
        large.span.start: MemoryUse(large.span.start, 1 << 20, 0, frozenset()),
    }
    space = create_autospec(Space, instance=True, identity=identify(os.getpid()))
    space.open_backing.side_effect = lambda _: os.open(os.devnull, os.O_RDONLY)
    found = plan([(each, 1 << 20) for each in groups], [], uses, space, 1 << 19)
    assert found.groups == ()
    assert sorted(found.why.values()) == sorted((SWAPPED, MEMORY))
    found = plan([(each, 1 << 20) for each in groups], [], uses, space, 1 << 20)
    assert [each.wanted[0].region for each, _ in found.groups] == [large]
