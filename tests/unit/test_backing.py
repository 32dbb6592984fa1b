"""One inode is passed through to one object, or not at all: the bookkeeping, without a device."""

import errno
import os

import pytest

from memfs.files.backing import LEAST_BYTES, Backings, PassedThrough
from memfs.image.source import Backing


class _Device(Backings):
    """Registers what it is given under numbers of its own."""

    def __init__(self) -> None:
        super().__init__(wanted=True)
        self.registered: dict[int, Backing] = {}

    def _register(self, backing: Backing) -> int:
        self.registered[len(self.registered) + 1] = backing
        return len(self.registered)

    def _let_go(self, number: int) -> None:
        del self.registered[number]


def _object(number: int = 1, *, exact: bool = True) -> Backing:
    return Backing(-1, (8, number), LEAST_BYTES, exact)


def test_all_readers_of_an_inode_are_passed_through_to_one_object_until_the_last_has_gone() -> None:
    backings = _Device()
    assert backings.enter(5, _object(), direct=False) == PassedThrough(1, direct=False)
    assert backings.enter(5, _object(), direct=True) == PassedThrough(1, direct=True)
    assert backings.enter(5, _object(exact=False), direct=False) == PassedThrough(1, direct=True)
    for other in (None, _object(2)):
        with pytest.raises(OSError, match="before") as refused:
            backings.enter(5, other, direct=False)
        assert refused.value.errno == errno.EBUSY
    for _ in range(2):
        backings.leave(5)
    assert list(backings.registered) == [1]
    backings.leave(5)
    assert backings.registered == {}


@pytest.mark.parametrize("first", [None, _object()])
def test_who_reads_otherwise_keeps_an_inode_from_being_passed_through(first: Backing | None) -> None:
    backings = _Device()
    assert not backings.enter(5, first, direct=True)
    assert not backings.enter(5, _object(), direct=False)
    assert backings.enter(6, _object(), direct=False)
    backings.leave(5)
    backings.leave(5)
    assert backings.enter(5, _object(), direct=False)


def test_nothing_is_registered_that_is_small_or_not_exact_or_not_wanted() -> None:
    null = os.open(os.devnull, os.O_RDWR)  # knows no such request
    try:
        for wanted, backing in (
            (True, Backing(0, (1, 1), LEAST_BYTES - 1, True)),
            (True, Backing(0, (1, 1), LEAST_BYTES, False)),
            (False, Backing(0, (1, 1), LEAST_BYTES, True)),
            (True, Backing(0, (1, 1), LEAST_BYTES, True)),
        ):
            backings = Backings(wanted=wanted)
            backings.accept(null)
            assert not backings.enter(5, backing, direct=False)
            backings.leave(5)
    finally:
        os.close(null)
