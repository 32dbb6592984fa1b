"""Look-ahead: the next piece is copied while the reader works on the last.

A sequential reader of private memory waits for two copies, one out of the process and one to itself.
A thread of its own does the first of them for what is likely to be asked for next. It never goes on
across a seek, and what it has read of live memory is thrown away when it is 10 ms old, or when the
process has exec'ed, unmapped it or ended meanwhile.

All that is shared between threads is guarded by one lock, which is held for a few instructions.
"""

import enum
import logging
import queue
import threading
import time
from typing import Protocol

from memfs.errors import MemfsError
from memfs.image.source import HEADER_ROOM, MAX_READ_BYTES, Buffer, Source, Workspace

log = logging.getLogger(__name__)

LIVE_S = 0.01
"""How long bytes of live memory may wait for their reader."""

_CHUNK_BYTES = MAX_READ_BYTES
_DEPTH = 3
"""How many chunks are read ahead of the one that is being used."""
_FIRST_BYTES = 1 << 19
_FIRST_READS = 2
"""What must have been read in order before anything is read ahead."""
_FIRST_PAUSE_BYTES = 8 << 20
"""For how long nothing is read ahead for one who came too late for what was; doubled each time."""
_ALONE_S = 0.005
"""Readers who come after each other faster than this are there at once."""
_CROWD_S = 0.05
_BULK_BYTES = 1 << 17
_MOST_BUFFERS = 16
_PATIENCE_S = 0.02


class File(Protocol):
    """What is read ahead: a source, which is not closed while someone holds it."""

    source: Source

    def hold(self) -> None:
        """Keep it open."""

    def let_go(self) -> None:
        """Undo one hold."""


class _State(enum.Enum):
    WAITING = enum.auto()
    BEING_READ = enum.auto()
    READ = enum.auto()
    DROPPED = enum.auto()


class _Chunk:
    """A piece of one file that is being read ahead into a buffer.

    Attributes:
        done: a lock that is held until the bytes are there, or never will be.
        is_trusted: whether earlier bytes of the file could be read without waiting for anyone.
        read_s: when their reading began.
    """

    __slots__ = ("buffer", "done", "end", "file", "is_trusted", "read_s", "start", "state")

    def __init__(self, file: File, start: int, end: int, buffer: Buffer, *, is_trusted: bool) -> None:
        self.file = file
        self.is_trusted = is_trusted
        self.start = start
        self.end = end
        self.buffer = buffer
        self.state = _State.WAITING
        self.read_s = 0.0
        self.done = threading.Lock()
        self.done.acquire()


class LookAhead:
    """The thread that reads ahead, and the buffers that it reads into.

    Attributes:
        thread: its number; 0 before it began.
        chunks: how many it was asked for.
    """

    def __init__(self) -> None:
        self.thread = 0
        self.chunks = 0
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        self._free: list[Buffer] = []
        self._made = 0
        self._latest: Trace | None = None
        self._latest_s = 0.0
        self._crowd_until = 0.0
        self._bulk_until = 0.0
        self._workspace = Workspace()

    def start(self) -> None:
        """Begin to work."""
        threading.Thread(target=self._run, name="memfs-ahead", daemon=True).start()

    @property
    def serves_bulk(self) -> bool:
        """Whether several readers read large pieces at once."""
        return time.monotonic() < self._bulk_until

    def is_alone(self, trace: "Trace", size: int) -> bool:
        """Whether the reader of *trace*, who asks for *size* bytes now, is the only one at the moment.

        Where there are several, one of them is always being served: to read ahead would take its turn.
        """
        now = time.monotonic()
        if trace is not self._latest:
            if self._latest is not None and now - self._latest_s < _ALONE_S:
                self._crowd_until = now + _CROWD_S
                if size >= _BULK_BYTES:
                    self._bulk_until = self._crowd_until
            self._latest = trace
        self._latest_s = now
        return now >= self._crowd_until

    def left(self, trace: "Trace") -> None:
        """Its reader has gone."""
        if self._latest is trace:
            self._latest = None

    def order(self, file: File, start: int, end: int, *, is_trusted: bool) -> _Chunk | None:
        """Have a stretch of *file* read; None where there is no buffer for it."""
        with self._lock:
            if self._free:
                buffer = self._free.pop()
            elif self._made < _MOST_BUFFERS:
                self._made += 1
                buffer = Buffer()
            else:
                return None
        chunk = _Chunk(file, start, end, buffer, is_trusted=is_trusted)
        file.hold()
        self._wanted.put(chunk)
        return chunk

    def wait_for(self, chunk: _Chunk) -> bool:
        """Whether the bytes of *chunk* are there or come very soon. One that no one has begun does not."""
        if chunk.state is not _State.READ:
            with self._lock:
                if chunk.state is _State.WAITING:
                    return False
            chunk.done.acquire(timeout=_PATIENCE_S)
        return self._has_come(chunk)

    @staticmethod
    def _has_come(chunk: _Chunk) -> bool:
        return chunk.state is _State.READ

    def drop(self, chunk: _Chunk) -> None:
        """No one wants *chunk* any more."""
        with self._lock:
            state, chunk.state = chunk.state, _State.DROPPED
            if state is _State.READ:
                self._free.append(chunk.buffer)

    def _run(self) -> None:
        self.thread = threading.get_native_id()
        while True:
            chunk = self._wanted.get()
            self.chunks += 1
            with self._lock:
                wanted = chunk.state is _State.WAITING
                if wanted:
                    chunk.state = _State.BEING_READ
            whole = wanted and self._read(chunk)
            with self._lock:
                if whole and chunk.state is _State.BEING_READ:
                    chunk.state = _State.READ
                else:
                    chunk.state = _State.DROPPED
                    self._free.append(chunk.buffer)
            chunk.done.release()
            chunk.file.let_go()

    def _read(self, chunk: _Chunk) -> bool:
        size = chunk.end - chunk.start
        try:
            if not chunk.is_trusted and not chunk.file.source.may_be_cached():
                return False
            chunk.read_s = time.monotonic()
            return chunk.file.source.read_into(chunk.start, chunk.buffer.data[:size], self._workspace) == size
        except (MemfsError, OSError) as error:
            # Its reader will ask again, and be told.
            log.debug("not read ahead: %s", error)
        except Exception:
            log.exception("reading ahead failed for no known reason")
        return False


class Trace:
    """How far one open file was read in order, and what is read ahead of that.

    One thread uses it at a time, between :meth:`enter` and :meth:`leave`.
    """

    __slots__ = (
        "_ahead", "_bytes", "_chunks", "_closed", "_file", "_keeps", "_pause_bytes", "_position", "_reads",
        "_resume_at", "_size", "_skips", "_stop", "_trusted", "_used",
    )  # fmt: skip

    def __init__(self, ahead: LookAhead, file: File) -> None:
        self._used = threading.Lock()
        self._closed = False
        self._pause_bytes = _FIRST_PAUSE_BYTES
        self._resume_at = 0
        self._trusted = False
        self._ahead = ahead
        self._file = file
        self._keeps = file.source.keeps
        self._chunks: list[_Chunk] = []
        self._position = -1
        self._reads = 0
        self._bytes = 0
        self._size = 0
        self._stop = file.source.size_bytes
        self._skips = False

    def enter(self) -> bool:
        """Use it; False where another thread does."""
        return self._used.acquire(blocking=False)

    def leave(self) -> None:
        """What advance gave is not needed any more."""
        self._used.release()
        if self._closed:
            self.close()

    def close(self) -> None:
        """Drop everything, now or when the thread that uses it is done: the file is closed."""
        self._closed = True
        self._ahead.left(self)
        if self.enter():
            self._forget()
            self._used.release()

    def advance(self, offset: int, size: int) -> memoryview | None:
        """Note a READ; returns its bytes behind HEADER_ROOM bytes, if they have been read ahead.

        They stay where they are until :meth:`leave`.
        """
        if offset != self._position:
            self._begin_at(offset)
        self._position = offset + size
        if self._position == self._stop:
            self._skips = True
        elif self._position > self._stop:
            self._stop = self._file.source.size_bytes
        self._size = size
        self._reads += 1
        self._bytes += size
        found = self._take(offset, size)
        alone = self._ahead.is_alone(self, size)
        if (
            alone
            and self._reads >= _FIRST_READS
            and self._bytes >= _FIRST_BYTES
            and offset >= self._resume_at
        ):
            self._order_more(offset + size)
        return found

    def expect(self, start: int, end: int) -> None:
        """Note that its reader was told that the data from *start* on end at *end*, in a hole.

        One who has skipped a hole before will read them next, and no further.
        """
        if start != self._position:
            self._begin_at(start)
        self._stop = end
        if self._skips and self._ahead.is_alone(self, self._size):
            self._order_more(start + self._size)

    def _take(self, offset: int, size: int) -> memoryview | None:
        """What :meth:`advance` gives; what lies before *offset* is dropped."""
        chunks = self._chunks
        while chunks and chunks[0].end <= offset:
            self._ahead.drop(chunks.pop(0))
        if not chunks or chunks[0].start >= offset + size:
            return None
        chunk = chunks[0]
        if not chunk.start <= offset <= offset + size <= chunk.end:
            self._forget()
            return None
        if not self._ahead.wait_for(chunk):
            self._ahead.drop(chunks.pop(0))
            if not self._trusted:
                self._pause(offset)
            return None
        if not self._is_good(chunk, offset, size):
            self._forget()
            return None
        self._trusted = True
        at = offset - chunk.start
        return chunk.buffer.whole[at : HEADER_ROOM + at + size]

    def _begin_at(self, offset: int) -> None:
        self._forget()
        self._position = offset
        self._reads = self._bytes = self._resume_at = 0
        self._stop = self._file.source.size_bytes

    def _is_good(self, chunk: _Chunk, offset: int, size: int) -> bool:
        """Whether what was read ahead may still be shown."""
        if self._keeps:
            return True
        if time.monotonic() - chunk.read_s > LIVE_S:
            self._pause(offset)
            return False
        return self._file.source.still_there(offset, size)

    def _pause(self, offset: int) -> None:
        """Read nothing ahead for a while: it does not pay here."""
        self._resume_at = offset + self._pause_bytes
        self._pause_bytes *= 2

    def _order_more(self, at: int) -> None:
        chunks = self._chunks
        if chunks:
            at = max(at, chunks[-1].end)
        ahead = len(chunks) - (1 if chunks and chunks[0].start < self._position else 0)
        while ahead < _DEPTH:
            end = min(at + _CHUNK_BYTES, self._stop)
            chunk = None
            if end > at:
                chunk = self._ahead.order(self._file, at, end, is_trusted=self._trusted)
            if chunk is None:
                return
            chunks.append(chunk)
            at = end
            ahead += 1

    def _forget(self) -> None:
        """Drop all that was read ahead."""
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            self._ahead.drop(chunk)
