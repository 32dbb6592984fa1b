"""Questions to what may never answer: asked in a child process, which is left behind when time is up."""

import contextlib
import os
import pickle
import select
import signal
from collections.abc import Callable
from typing import TypeVar

from memfs.errors import MemfsError

T = TypeVar("T")

_PIECE_BYTES = 1 << 16
_KILLED_S = 0.5


def call(action: Callable[[], T], limit_s: float) -> T:
    """What *action* returns, or raises, within *limit_s* seconds. It runs in a forked child.

    A system call that waits for a FUSE server cannot be interrupted once the server has seen the request,
    not even by SIGKILL: then the child stays until the connection is aborted. The caller does not.

    Raises:
        TimeoutError: the time is up; the child has been sent SIGKILL.
        MemfsError, OSError: what *action* raises.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):  # what cannot be told is an end without an answer
            _answer(action, writer)
        os._exit(0)
    os.close(writer)
    text = b""
    try:
        while select.select([reader], [], [], limit_s)[0]:
            piece = os.read(reader, _PIECE_BYTES)
            if not piece:
                os.waitpid(child, 0)
                break
            text += piece
        else:
            _kill(child)
            raise TimeoutError
    finally:
        os.close(reader)
    if not text:
        raise MemfsError("a helper process of memfs was killed", "try again")
    result, error = pickle.loads(text)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]  # pickle does not know that it is a T


def _kill(child: int) -> None:
    process = os.pidfd_open(child)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    if select.select([process], [], [], _KILLED_S)[0]:
        os.waitpid(child, 0)
    os.close(process)


def _answer(action: Callable[[], T], writer: int) -> None:
    answer: tuple[T | None, Exception | None]
    try:
        answer = action(), None
    except Exception as error:  # noqa: BLE001 - the parent raises it
        answer = None, error
    with open(writer, "wb") as pipe:
        pipe.write(pickle.dumps(answer))
