"""What a reader leaves in the page cache, and when it is dropped."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from memfs.files.cache import CacheTrail
from memfs.fuse.messages import drop_cache_notice
from memfs.linux.span import Span

MIB = 1 << 20


def test_a_sequential_reader_leaves_no_more_than_a_few_mebibytes_behind() -> None:
    trail = CacheTrail(7)
    dropped: list[Span] = []
    for offset in range(0, 256 * MIB, MIB):
        behind = trail.advance(offset)
        if behind is not None:
            dropped.append(behind)
        assert offset - (dropped[-1].end if dropped else 0) <= 8 * MIB
    assert dropped[0].start == 0
    assert all(one.end == other.start for one, other in itertools.pairwise(dropped))


@given(st.lists(st.integers(0, 1 << 40), max_size=50))
def test_what_is_dropped_lies_behind_every_read_that_may_still_be_under_way(offsets: list[int]) -> None:
    trail = CacheTrail(7)
    for offset in offsets:
        behind = trail.advance(offset)
        if behind is not None:
            assert 0 <= behind.start < behind.end <= offset - 4 * MIB


def test_the_notice_is_a_reply_to_no_request() -> None:
    """struct fuse_out_header, and struct fuse_notify_inval_inode_out: all of <linux/fuse.h>."""
    assert drop_cache_notice(3, 4096, 8192) == (
        (40).to_bytes(4, "little")
        + (2).to_bytes(4, "little")
        + bytes(8)
        + (3).to_bytes(8, "little")
        + (4096).to_bytes(8, "little")
        + (8192).to_bytes(8, "little")
    )
