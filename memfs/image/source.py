"""Memory as a file: what every kind of source promises, and how its bytes come out.

A source says of which pieces a stretch of it is made; :meth:`Source.read_into` copies them, and
:meth:`Source.splice_to` puts them into a pipe without copying what need not be copied. Both give
the same bytes. Nothing here knows of FUSE, and a piece knows nothing of where it goes.
"""

import abc
import errno
import functools
import mmap
import os
from typing import NamedTuple, Protocol

from memfs.errors import NoAnswer, RangeUnmapped
from memfs.linux.pagemap import Scanner
from memfs.linux.pipe import Pipe
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import Vmsplice, address_of

MAX_READ_BYTES = 1 << 20
"""The longest stretch that is read at once: FUSE's limit of 256 pages a request."""

_HUGE_PAGE_BYTES = 1 << 21

_SCRATCH_BYTES = 2 * MAX_READ_BYTES
"""So much that the pieces of one read never lie on top of each other, wherever they begin."""

HEADER_ROOM = PAGE_BYTES
"""Room before the data in a workspace's buffer, so that a reply's header can end where data begins."""


class Reader(Protocol):
    """Reads bytes that must not just be read from a descriptor."""

    def read(self, position: int, view: memoryview) -> int:
        """Copy bytes from *position* on into *view*; returns how many, 0 where there are none."""


class Piece(NamedTuple):
    """Neighbouring bytes that come from one place.

    Attributes:
        size: how many bytes.
        fd: the descriptor to read them from; None for zeros.
        position: where in *fd* they begin.
        cached: whether they are pages of a page cache, which splice(2) takes without a copy.
        reader: who reads them, instead of pread(2).
    """

    size: int
    fd: int | None
    position: int
    cached: bool
    reader: Reader | None = None


class Backing(NamedTuple):
    """A file that a source shows from its first byte on.

    Attributes:
        fd: a descriptor of it, the source's.
        object: what tells it from all other files: its device and inode number.
        size_bytes: how much of it the source shows.
        exact: whether it has the source's bytes and no others at this moment, and can be spliced.
    """

    fd: int
    object: tuple[int, int]
    size_bytes: int
    exact: bool


class Buffer:
    """Page-aligned memory of our own for one read.

    Attributes:
        whole: :data:`HEADER_ROOM` and then MAX_READ_BYTES of data.
        data: the data part of it, which begins at *data_address*.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # In one huge page the kernel finds the buffer's pages at once: 10 % at 1 MiB.
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        address = address_of(self._memory)
        begin = -address % _HUGE_PAGE_BYTES
        self.whole = memoryview(self._memory)[begin : begin + HEADER_ROOM + MAX_READ_BYTES]
        self.data = self.whole[HEADER_ROOM:]
        self.data_address = address + begin + HEADER_ROOM


class Workspace:
    """What one thread needs to carry bytes: a buffer, a pipe, a scanner. Made once, used for each read.

    Attributes:
        whole, data, data_address: those of its buffer.
        zeros: as many bytes that are never written, so that the kernel's zero page backs them all.
    """

    def __init__(self) -> None:
        buffer = Buffer()
        self._zeros = mmap.mmap(-1, MAX_READ_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.whole = buffer.whole
        self.data = buffer.data
        self.data_address = buffer.data_address
        self.zeros = memoryview(self._zeros).toreadonly()
        self.zeros_address = address_of(self._zeros)
        self.scanner = Scanner()
        self.vmsplice = Vmsplice(MAX_READ_BYTES // PAGE_BYTES + 1)
        self.pipe = Pipe(2 * MAX_READ_BYTES)
        self._scratch_at = 0

    @functools.cached_property
    def scratch(self) -> int:
        """A memfd of our own, in which another process puts what this thread then reads."""
        fd = os.memfd_create("memfs-scratch", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SCRATCH_BYTES)
        return fd

    def take_scratch(self, size: int) -> int:
        """An offset in it for *size* bytes, which stay until MAX_READ_BYTES more have been taken."""
        at = self._scratch_at if self._scratch_at + size <= _SCRATCH_BYTES else 0
        self._scratch_at = at + size
        return at

    def drop_scratch(self) -> None:
        """Have another one from now on: someone who is late may still write into this one."""
        fd = self.__dict__.pop("scratch", None)
        if fd is not None:
            os.close(fd)

    def reset_pipe(self) -> None:
        """Forget what is in the pipe, or on its way into it."""
        self.vmsplice.clear()
        self.pipe.reset()

    def close(self) -> None:
        """Give the descriptors back; the memory goes with the last view of it."""
        self.pipe.close()
        self.drop_scratch()


class CannotSplice(Exception):
    """The pieces do not fit into the pipe, or a file does not know splice: copy them instead."""


class Source(abc.ABC):
    """Bytes that can be read at any offset, with holes.

    Attributes:
        size_bytes: how many there are.
        has_cached_pages: whether some of them lie in a page cache, so that a pipe saves a copy.
        keeps: whether they never change.
    """

    size_bytes: int
    has_cached_pages: bool
    keeps: bool = False

    @abc.abstractmethod
    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:
        """The pieces that tile *span*, which lies inside the source.

        Raises:
            MemfsError: a part of it cannot be delivered.
        """

    @abc.abstractmethod
    def still_true(self, span: Span, pieces: list[Piece]) -> bool:
        """Whether *pieces* were right for as long as they were being read.

        Raises:
            MemfsError: what they were pieces of is gone.
        """

    def is_settled(self, span: Span) -> bool:  # noqa: ARG002 for those that change
        """Whether what cannot be read of *span* is no moment between two mappings; asked at a second failure.

        Raises:
            MemfsError: it is gone for good.
        """
        return True

    @abc.abstractmethod
    def recover(self, offset: int, piece: Piece, view: memoryview) -> int:
        """Get bytes at *offset* that *piece* promised and that did not come, some other way.

        Returns how many went into *view*: one at least.

        Raises:
            MemfsError: there is no other way; *view* may be empty, to be told why.
        """

    @abc.abstractmethod
    def next_data(self, offset: int, workspace: Workspace) -> int:
        """The first offset from *offset* on that is not in a hole; size_bytes where there is none."""

    @abc.abstractmethod
    def next_hole(self, offset: int, workspace: Workspace) -> int:
        """The first offset from *offset* on that is in a hole; the end counts as one."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; a second call does nothing."""

    def may_be_cached(self) -> bool:
        """Whether a read can be trusted to end, so that pages of a cache may wait for it."""
        return True

    def backing(self) -> Backing | None:
        """The file whose bytes these are, for someone else to read; None where there is no such one."""
        return None

    def still_there(self, offset: int, size: int) -> bool:  # noqa: ARG002 for those that can tell
        """Whether bytes that were read a moment ago have not gone since."""
        return True

    def clip(self, offset: int, size: int) -> Span:
        """The part of *size* bytes at *offset* that the source has."""
        start = min(offset, self.size_bytes)
        return Span(start, min(offset + size, self.size_bytes) if size else start)

    def read_into(self, offset: int, view: memoryview, workspace: Workspace) -> int:
        """Copy bytes from *offset* on into *view*; returns how many, short only at the end.

        Raises:
            MemfsError, OSError: any of them cannot be delivered.
        """
        span = self.clip(offset, len(view))
        for attempt in range(_TRIES):
            try:
                pieces = self.pieces(span, workspace)
                at = 0
                for piece in pieces:
                    self._copy(span.start + at, piece, view[at : at + piece.size], workspace)
                    at += piece.size
                if self.still_true(span, pieces):
                    return at
            except NoAnswer:
                raise
            except RangeUnmapped:
                if attempt and self.is_settled(span):
                    raise
        raise _restless(span)

    def _copy(self, offset: int, piece: Piece, view: memoryview, workspace: Workspace) -> None:
        """Fill *view*, as long as *piece*; *offset* is where the piece lies in the source."""
        if piece.fd is None:
            view[:] = workspace.zeros[: piece.size]
            return
        done = 0
        while done < piece.size:
            try:
                if piece.reader is None:
                    got = os.preadv(piece.fd, [view[done:]], piece.position + done)
                else:
                    got = piece.reader.read(piece.position + done, view[done:])
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT):
                    raise
                got = 0
            done += got or self.recover(offset + done, piece, view[done:])

    def splice_to(self, offset: int, size: int, header: int, workspace: Workspace) -> int:
        """Put the *header* bytes before the workspace's data into its pipe, then *size* from *offset* on.

        Returns how many bytes of the source went in, short only at the end. After an error the pipe
        is empty.

        Raises:
            CannotSplice: copy instead.
            MemfsError, OSError: as read_into.
        """
        span = self.clip(offset, size)
        for attempt in range(_TRIES):
            try:
                pieces = self.pieces(span, workspace)
                if slots_needed(pieces) >= workspace.pipe.slots:
                    raise CannotSplice
                if self._splice(span, pieces, header, workspace):
                    return span.size
            except NoAnswer:
                raise
            except RangeUnmapped:
                if attempt and self.is_settled(span):
                    raise
        raise _restless(span)

    def _splice(self, span: Span, pieces: list[Piece], header: int, workspace: Workspace) -> bool:
        """Put it all into the pipe; returns whether it was right, otherwise the pipe is empty."""
        try:
            self._queue(span.start, pieces, header, workspace)
            if self.still_true(span, pieces):
                return True
        except BaseException:
            workspace.reset_pipe()
            raise
        workspace.reset_pipe()
        return False

    def _queue(self, offset: int, pieces: list[Piece], header: int, workspace: Workspace) -> None:
        """Copied pieces lie in the buffer where they would lie in a copy of all."""
        queue, pipe = workspace.vmsplice, workspace.pipe.fd
        queue.add(workspace.data_address - header, header)
        queued = header
        at = 0
        for piece in pieces:
            if piece.cached and piece.fd is not None:
                _flush(queue, pipe, queued)
                queued = 0
                moved = _splice_file(piece.fd, piece, pipe)
                if moved < piece.size:
                    self.recover(offset + at + moved, piece, workspace.data[:0])
                    raise CannotSplice
            else:
                address = workspace.zeros_address
                if piece.fd is not None:
                    self._copy(offset + at, piece, workspace.data[at : at + piece.size], workspace)
                    address = workspace.data_address + at
                queue.add(address, piece.size)
                queued += piece.size
            at += piece.size
        _flush(queue, pipe, queued)


_TRIES = 16
"""How often a stretch is read again because its mappings changed meanwhile."""


def _restless(span: Span) -> RangeUnmapped:
    return RangeUnmapped(f"bytes {span} are mapped anew faster than they can be read", "try again")


def slots_needed(pieces: list[Piece]) -> int:
    """How many pages of a pipe *pieces* take: one that begins or ends inside a page takes it whole."""
    needed = at = 0
    for piece in pieces:
        into_page = (piece.position if piece.cached else at) % PAGE_BYTES
        needed += -(-(into_page + piece.size) // PAGE_BYTES)
        at += piece.size
    return needed


def _flush(queue: Vmsplice, pipe: int, size: int) -> None:
    if queue.flush(pipe) != size:
        raise CannotSplice


def _splice_file(fd: int, piece: Piece, pipe: int) -> int:
    done = 0
    while done < piece.size:
        try:
            moved = os.splice(fd, pipe, piece.size - done, offset_src=piece.position + done)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINVAL):
                raise CannotSplice from None
            raise
        if not moved:
            break
        done += moved
    return done
