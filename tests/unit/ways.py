"""The two ways by which the bytes of a source come out, for the tests that compare them."""

import os
from collections.abc import Callable

from memfs.image.source import HEADER_ROOM, Source, Workspace

_HEADER = b"sixteen bytes of"


def copied(source: Source, offset: int, size: int, workspace: Workspace) -> bytes:
    """*size* bytes from *offset* on, by ``read_into``."""
    view = memoryview(bytearray(size))
    return bytes(view[: source.read_into(offset, view, workspace)])


def spliced(source: Source, offset: int, size: int, workspace: Workspace) -> bytes:
    """The same by ``splice_to``, read back from the pipe, behind a header that must come first."""
    workspace.whole[HEADER_ROOM - len(_HEADER) : HEADER_ROOM] = _HEADER
    total = len(_HEADER) + source.splice_to(offset, size, len(_HEADER), workspace)
    received = bytearray()
    while len(received) < total:
        received += os.read(workspace.pipe.fd, total - len(received))
    assert received.startswith(_HEADER)
    assert not _has_more(workspace.pipe.fd)
    return bytes(received[len(_HEADER) :])


def _has_more(pipe: int) -> bool:
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:
        return False


Way = Callable[[Source, int, int, Workspace], bytes]
WAYS: tuple[Way, ...] = (copied, spliced)
