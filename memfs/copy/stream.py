"""To a pipe, a socket or whatever takes bytes one after the other.

A stream has no holes. So these are sent as zeros, from memory of ours that is never written.

Shared memory of a running process lies in the page cache of its object, and the kernel reads that itself
(files/backing.py): sendfile takes the pages from there, and no one copies them on the way out. All else one
thread reads while another writes. That goes past the page cache of the mount, from which sendfile and
splice would take it: it is faster (docs/performance.md), and leaves nothing behind.
"""

import contextlib
import errno
import mmap
import os
import queue
import threading
from collections.abc import Iterator

from memfs.copy.crew import CHUNK_BYTES
from memfs.copy.destination import Special
from memfs.copy.digests import Content
from memfs.copy.meter import Meter
from memfs.copy.sourcefile import SourceFile, chunks
from memfs.errors import CannotCopy
from memfs.linux.folder import reopen
from memfs.linux.pipe import grow
from memfs.linux.span import Span

_PIPE_BYTES = 1 << 20
_BUFFERS = 4
_GONE = (errno.EPIPE, errno.ECONNRESET)
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class _Ahead:
    """A thread that reads a file piece by piece, a few buffers ahead of who takes them."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[Span, memoryview | None] | BaseException | None]
        self._full = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(mmap.mmap(-1, CHUNK_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
        # It does not keep the process from ending, whatever it waits for.
        threading.Thread(target=self._read, name="read-ahead", daemon=True).start()

    def _read(self) -> None:
        try:
            for piece, is_data in _pieces(self._source):
                buffer = self._free.get() if is_data else None
                if buffer is not None:
                    self._source.read_into(piece.start, buffer[: piece.size])
                self._full.put((piece, buffer))
            self._full.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the bytes are wanted
            self._full.put(error)

    def __iter__(self) -> Iterator[tuple[Span, memoryview | None]]:
        """Each piece and the buffer that holds it, until the next one is asked for; None is a hole."""
        while (found := self._full.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
            if found[1] is not None:
                self._free.put(found[1])


def send(source: SourceFile, out: int, name: str, meter: Meter, content: Content | None = None) -> None:
    """Send all of *source* to the descriptor *out*, which messages call *name*; *content* sees it pass.

    Raises:
        CannotCopy: either side fails.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(out, True)  # a descriptor may be shared with someone who wants it otherwise
    with contextlib.suppress(OSError):
        grow(out, _PIPE_BYTES)
    meter.expect(source.size_bytes)
    zeros = memoryview(bytes(CHUNK_BYTES))
    for number, (piece, buffer) in enumerate(_Ahead(source)):
        view = (zeros if buffer is None else buffer)[: piece.size]
        if content is not None:
            content.add(number, piece, view)
        put(out, view, name)
        meter.add(piece.size)


def send_shared(source: SourceFile, out: int, name: str, meter: Meter) -> None:
    """The same for shared memory, by sendfile(2); *source* is open without O_DIRECT.

    Raises:
        CannotCopy: either side fails.
    """
    with contextlib.suppress(OSError):
        os.set_blocking(out, True)
    with contextlib.suppress(OSError):
        grow(out, _PIPE_BYTES)
    meter.expect(source.size_bytes)
    zeros = memoryview(bytes(CHUNK_BYTES))
    buffer = None
    for piece, is_data in _pieces(source):
        at = piece.start
        while is_data and buffer is None and at < piece.end:
            try:
                sent = os.sendfile(out, source.fd, at, piece.end - at)
            except OSError as error:
                if error.errno in _NO_SENDFILE:
                    buffer = memoryview(bytearray(CHUNK_BYTES))
                    break
                if error.errno in _GONE:
                    raise _gone(name) from None
                # Either side may have failed: to read there again tells which.
                source.read_into(at, memoryview(bytearray(piece.end - at)))
                raise _takes_no_more(name, error) from None
            if not sent:
                raise CannotCopy(f"{source.path} ended before its end", "copy it again")
            at += sent
        if not is_data:
            put(out, zeros[: piece.size], name)
        elif buffer is not None and at < piece.end:
            view = buffer[: piece.end - at]
            source.read_into(at, view)
            put(out, view, name)
        meter.add(piece.size)


def _pieces(source: SourceFile) -> Iterator[tuple[Span, bool]]:
    at = 0
    for extent in (*source.extents(), Span(source.size_bytes, source.size_bytes)):
        yield from ((piece, False) for piece in chunks([Span(at, extent.start)]))
        yield from ((piece, True) for piece in chunks([extent]))
        at = extent.end


def put(out: int, view: memoryview, name: str) -> None:
    """Write all of *view*.

    Raises:
        CannotCopy: no one takes it any more.
    """
    try:
        while view:
            view = view[os.write(out, view) :]
    except OSError as error:
        if error.errno in _GONE:
            raise _gone(name) from None
        raise _takes_no_more(name, error) from None


def _takes_no_more(name: str, error: OSError) -> CannotCopy:
    return CannotCopy(f"{name} takes no more ({error.strerror})", "copy it again")


def _gone(name: str) -> CannotCopy:
    return CannotCopy(f"who reads from {name} has ended before the copy did", "see why it ended")


@contextlib.contextmanager
def opened(special: Special | None, name: str) -> Iterator[int]:
    """A descriptor that bytes can be written to: stdout, a pipe, a device, or a connection to a socket.

    Raises:
        CannotCopy: no one is there.
    """
    if special is None:
        yield 1
        return
    try:
        if special.is_socket:
            import socket

            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{special.fd}")
                yield client.fileno()
            return
        fd = reopen(special.fd, os.O_WRONLY)
    except OSError as error:
        raise CannotCopy(f"{name} cannot be opened ({error.strerror})", "see who reads there") from None
    try:
        yield fd
    finally:
        os.close(fd)
