"""Values and descriptors from one process of ours to another, over a socket of theirs alone."""

import os
import pickle
import socket
from collections.abc import Sequence

from memfs.linux.procfs import read_whole

_MARK = b"v"
_MOST_DESCRIPTORS = 80


def send(channel: socket.socket, value: object, descriptors: Sequence[int] = ()) -> None:
    """Send *value*, which may be large, and *descriptors*.

    Raises:
        OSError: EPIPE where no one listens any more.
    """
    message = os.memfd_create("memfs-message", os.MFD_CLOEXEC)
    try:
        with open(message, "wb", closefd=False) as file:
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
        socket.send_fds(channel, [_MARK], [message, *descriptors])
    finally:
        os.close(message)


def receive(channel: socket.socket) -> tuple[object, list[int]]:
    """The value that was sent, and the descriptors, which the caller closes.

    Raises:
        EOFError: the other side has ended.
    """
    try:
        mark, descriptors, _, _ = socket.recv_fds(channel, len(_MARK), _MOST_DESCRIPTORS)
    except ConnectionError:
        mark, descriptors = b"", []
    if not mark or not descriptors:
        raise EOFError("the other side has ended")
    message, *rest = descriptors
    try:
        # What is unpickled was pickled by a process of ours, on a socket that no one else has.
        return pickle.loads(read_whole(message)), rest
    finally:
        os.close(message)
