"""To a pipe, a socket or whatever takes bytes one after the other: by splice and sendfile where they can.

A stream has no holes. So these are sent as zeros, from memory of ours that is never written.
"""

import contextlib
import errno
import mmap
import os
import socket
import stat as stat_module
from collections.abc import Callable, Iterator
from pathlib import Path

from memfs.copy.crew import CHUNK_BYTES
from memfs.copy.digests import Content
from memfs.copy.meter import Meter
from memfs.copy.reading import Reading, cannot_read, chunks
from memfs.errors import CannotCopy
from memfs.linux.pipe import grow
from memfs.linux.span import Span

_PIPE_BYTES = 1 << 20

Carry = Callable[[int, int, int], int]
"""Moves bytes from a descriptor at an offset, so many at most; returns how many went."""


def send(source: Reading, out: int, name: str, meter: Meter, content: Content | None = None) -> None:
    """Send all of *source* to the descriptor *out*, which messages call *name*; *content* sees it pass.

    Raises:
        CannotCopy: either side fails.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(out, True)  # a descriptor may be shared with someone who wants it otherwise
    meter.expect(source.size_bytes)
    carry = _carrier(out) if content is None else None
    with mmap.mmap(-1, CHUNK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        zeros = bytes(CHUNK_BYTES)
        for number, (piece, is_data) in enumerate(_pieces(source)):
            view = memoryview(buffer)[: piece.size]
            if is_data and carry is not None:
                _carry(source, carry, piece, name, meter)
            else:
                if is_data:
                    source.read_into(piece.start, view)
                shown = view if is_data else memoryview(zeros)[: piece.size]
                if content is not None:
                    content.add(number, piece, shown)
                put(out, shown, name)
                meter.add(piece.size)
            view.release()


def _pieces(source: Reading) -> Iterator[tuple[Span, bool]]:
    at = 0
    for extent in (*source.extents(), Span(source.size_bytes, source.size_bytes)):
        yield from ((piece, False) for piece in chunks([Span(at, extent.start)]))
        yield from ((piece, True) for piece in chunks([extent]))
        at = extent.end


def _carrier(out: int) -> Carry | None:
    """The call that moves pages to *out* without a copy by us; None where there is none."""
    mode = os.fstat(out).st_mode
    if stat_module.S_ISFIFO(mode):
        with contextlib.suppress(OSError):
            grow(out, _PIPE_BYTES)
        return lambda fd, offset, size: os.splice(fd, out, size, offset_src=offset)
    if stat_module.S_ISSOCK(mode):
        return lambda fd, offset, size: os.sendfile(out, fd, offset, size)
    return None


def _carry(source: Reading, carry: Carry, piece: Span, name: str, meter: Meter) -> None:
    at = piece.start
    while at < piece.end:
        try:
            moved = carry(source.fd, at, piece.end - at)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                raise _gone(name) from None
            raise cannot_read(source.path, error) from None
        if not moved:
            raise CannotCopy(f"{source.path} ended before its end", "copy it again")
        at += moved
        meter.add(moved)


def put(out: int, view: memoryview, name: str) -> None:
    """Write all of *view*.

    Raises:
        CannotCopy: no one takes it any more.
    """
    try:
        while view:
            view = view[os.write(out, view) :]
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise _gone(name) from None
        raise CannotCopy(f"{name} takes no more ({error.strerror})", "copy it again") from None


def _gone(name: str) -> CannotCopy:
    return CannotCopy(f"who reads from {name} has ended before the copy did", "see why it ended")


@contextlib.contextmanager
def opened(destination: str) -> Iterator[int]:
    """A descriptor of *destination*: ``-`` for stdout, a pipe, a device, or a socket to connect to.

    Raises:
        CannotCopy: no one is there.
    """
    if destination == "-":
        yield 1
        return
    try:
        if Path(destination).is_socket():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(destination)
                yield client.fileno()
            return
        fd = os.open(destination, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotCopy(
            f"{destination} cannot be opened ({error.strerror})", "see who reads there"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def is_stream(destination: str) -> bool:
    """Whether *destination* takes bytes one after the other: it is there, and no file and no directory."""
    if destination == "-":
        return True
    try:
        mode = os.stat(destination).st_mode
    except OSError:
        return False
    return not (stat_module.S_ISREG(mode) or stat_module.S_ISDIR(mode))
