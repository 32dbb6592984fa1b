"""Open files: closed by whoever leaves last, and never found again under their number."""

import os

from memfs.files.habits import ReadCounter
from memfs.files.handles import Handles, OpenFile
from memfs.image.text import Text


class Watched(Text):
    """A text that tells whether it was closed."""

    _closed = False

    def close(self) -> None:
        super().close()
        self._closed = True

    def is_closed(self) -> bool:
        """Whether it was."""
        return self._closed


def opened(text: Text) -> OpenFile:
    """An open file of *text*, which a command ``cat`` reads."""
    return OpenFile(text, ReadCounter(b"cat", uses_cache=False))


def test_a_file_is_closed_when_it_is_released() -> None:
    handles, text = Handles(), Watched(b"x")
    number = handles.add(opened(text))
    assert not text.is_closed()
    handles.drop(number)
    assert text.is_closed()
    assert handles.get(number) is None


def test_a_file_with_stuck_readers_is_closed_by_the_last_who_leaves() -> None:
    handles, text = Handles(), Watched(b"x")
    number = handles.add(opened(text))
    file = handles.get(number)
    assert file is not None
    file.hold()
    file.hold()
    handles.drop(number)
    file.let_go()
    assert not text.is_closed()
    file.let_go()
    assert text.is_closed()


def test_a_reader_that_comes_back_before_the_release_leaves_the_file_open() -> None:
    handles, text = Handles(), Watched(b"x")
    number = handles.add(opened(text))
    file = handles.get(number)
    assert file is not None
    file.hold()
    file.let_go()
    assert not text.is_closed()
    handles.drop(number)
    assert text.is_closed()


def test_numbers_are_not_used_again_and_dropping_twice_does_nothing() -> None:
    handles = Handles()
    first = handles.add(opened(Text(b"a")))
    handles.drop(first)
    handles.drop(first)
    second = handles.add(opened(Text(b"b")))
    assert second != first
    handles.drop_all()
    assert handles.get(second) is None


def test_closing_costs_no_descriptor() -> None:
    handles = Handles()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        handles.add(opened(Text(b"x")))
    handles.drop_all()
    assert len(os.listdir("/proc/self/fd")) == before
