"""How a command reads is learnt from what it did, and only from enough of it."""

from hypothesis import given
from hypothesis import strategies as st

from memfs.files.habits import SMALL_READ_BYTES, ReadCounter, ReadHabits

MANY = 100


def read_by(sizes: list[int], *, uses_cache: bool = False, gap: int = 0) -> ReadCounter:
    """What the counter says of a program ``prog`` that read *sizes*, and left *gap* bytes after each."""
    counter = ReadCounter(b"prog", uses_cache=uses_cache)
    at = 0
    for size in sizes:
        counter.note(at, size)
        at += size + gap
    return counter


@given(st.integers(1, 1 << 20))
def test_many_small_direct_reads_are_little_and_large_ones_are_not(size: int) -> None:
    assert read_by([size] * MANY).reads_little is (size <= SMALL_READ_BYTES)


@given(st.integers(1, 1 << 20), st.booleans(), st.sampled_from([-4096, 1, 1 << 30]))
def test_for_who_jumps_the_kernel_cannot_read_ahead(size: int, uses_cache: bool, gap: int) -> None:
    assert read_by([size] * MANY, uses_cache=uses_cache, gap=gap).reads_little is False


def test_small_reads_through_the_cache_show_in_the_first_window_of_readahead() -> None:
    assert read_by([1 << 17, *[1 << 20] * MANY], uses_cache=True).reads_little is True
    assert read_by([1 << 20] * MANY, uses_cache=True).reads_little is False
    assert read_by([1 << 17], uses_cache=True).reads_little is None


def test_one_read_tells_nothing() -> None:
    assert read_by([]).reads_little is None
    assert read_by([4096]).reads_little is None


def test_what_was_learnt_of_a_command_is_remembered_for_it_alone() -> None:
    habits = ReadHabits()
    habits.learn(read_by([4096] * MANY))
    assert habits.reads_little(b"prog")
    assert not habits.reads_little(b"other")
    habits.learn(read_by([1 << 20] * MANY))
    assert not habits.reads_little(b"prog")
    habits.learn(read_by([4096]))
    assert not habits.reads_little(b"prog")


def test_small_readers_are_known_whatever_their_arguments() -> None:
    habits = ReadHabits()
    assert habits.reads_little(b"nc\0-N\0localhost")
    assert not habits.reads_little(b"dd\0bs=1M")
