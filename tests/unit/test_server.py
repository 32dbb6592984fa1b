"""A thread at the device: whatever goes wrong in a request, its caller hears of it, and it is undone."""

import errno
import struct
from typing import Any

import pytest

from memfs.errors import NoSuchEntry
from memfs.files.handles import Handles
from memfs.files.lanes import Lanes
from memfs.fuse import messages
from memfs.fuse.messages import Head, Opcode
from memfs.fuse.server import Server
from memfs.target.identity import Identity

_UNIQUE = 42


class _Switch:
    """Keeps what is written to the device; the first reply may be refused."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.heard = True
        self.refuses = False

    def reply(self, frame: bytes) -> bool:
        """Take a reply."""
        if self.refuses:
            self.refuses = False
            raise OSError(errno.EINVAL, "refused")
        self.replies.append(bytes(frame))
        return self.heard


class _Desk:
    """Answers OPEN with a handle, or raises what it is told to, and notes what is undone."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.early: Exception | None = None
        self.undone: list[bytes] = []
        self.handlers = {int(Opcode.OPEN): self._open}

    def target_of(self, _head: Head, _body: memoryview) -> tuple[Identity | None, bool]:
        """No target, or a fault."""
        if self.early is not None:
            raise self.early
        return None, False

    def _open(self, _head: Head, _body: memoryview) -> bytes:
        if self.fault is not None:
            raise self.fault
        return messages.open_body(7)

    def undo(self, _head: Head, _request: memoryview, reply: bytes) -> None:
        """Note it."""
        self.undone.append(reply)

    def note_failure(self, error: Exception) -> None:
        """Nobody reads that."""


class _Post:
    """What a thread shares with others: here, nothing."""

    def __init__(self) -> None:
        self.switch = _Switch()
        self.desk = _Desk()
        self.handles = Handles()
        self.lanes = Lanes()


@pytest.fixture
def post() -> _Post:
    """Without a device."""
    return _Post()


def _ask(post: Any) -> None:  # Any: a part of what a Post is
    body = struct.pack("<II", 0, 0)
    head = struct.pack("<IIQQIIIHH", 40 + len(body), Opcode.OPEN, _UNIQUE, 5, 0, 0, 77, 0, 0)
    Server(post, 0, None)._answer_anyway(memoryview(head + body))  # type: ignore[arg-type] it reads nothing


def _error(number: int) -> bytes:
    return messages.error_reply(_UNIQUE, number)


def test_an_answer_is_sent_once_and_kept(post: _Post) -> None:
    _ask(post)
    assert post.switch.replies == [messages.reply_to(_UNIQUE, messages.open_body(7))]
    assert post.desk.undone == []


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (NoSuchEntry("gone"), errno.ENOENT),
        (OSError(errno.EBUSY, "busy"), errno.EBUSY),
        (KeyError(), errno.EIO),
    ],
)
def test_a_fault_is_an_errno(post: _Post, fault: Exception, number: int) -> None:
    post.desk.fault = fault
    _ask(post)
    assert post.switch.replies == [_error(number)]


@pytest.mark.parametrize("early", [ValueError("odd"), RuntimeError("can't start new thread")])
def test_a_fault_before_it_is_begun_is_an_errno_too(post: _Post, early: Exception) -> None:
    post.desk.early = early
    _ask(post)
    assert post.switch.replies == [_error(errno.EIO)]


def test_what_nobody_waits_for_any_more_is_undone(post: _Post) -> None:
    post.switch.heard = False
    _ask(post)
    assert post.desk.undone == [messages.open_body(7)]


def test_what_the_kernel_refuses_is_undone_and_an_errno(post: _Post) -> None:
    post.switch.refuses = True
    _ask(post)
    assert post.desk.undone == [messages.open_body(7)]
    assert post.switch.replies == [_error(errno.EINVAL)]
