"""A few threads that live as long as the copy, each with an aligned buffer: so several writes are in flight.

A thread takes a piece of work, reads it into its buffer and writes it from there, all of it in system
calls that let the others run. What they do is no matter here.
"""

import contextlib
import itertools
import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

CHUNK_BYTES = 1 << 20
"""What a buffer holds: the longest read that the mount answers at once."""

SPARE_BYTES = 64 << 10
"""What there is behind that, for bytes that no one wants."""

THREADS = 4
_LAST_WORDS_S = 0.5

Work = Callable[[memoryview], None]
"""One piece of work. It is given the buffer of the thread, which is its own until it returns."""


def pages(size_bytes: int) -> mmap.mmap:
    """Memory that begins on a page, which O_DIRECT asks for; none is taken until it is used."""
    memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # without huge pages, then
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Job:
    """An iterator of work that several threads share, and what came of it."""

    def __init__(self, work: Iterable[Work], threads: int) -> None:
        self._work: Iterator[Work] = iter(work)
        self._lock = threading.Lock()
        self._left = threads
        self.error: BaseException | None = None
        self.finished = threading.Event()

    def _take(self) -> Work | None:
        with self._lock:
            return next(self._work, None) if self.error is None else None

    def stop(self, error: BaseException) -> None:
        """Take no more; the first reason is the one that counts."""
        if self.error is None:
            self.error = error

    def help(self, buffer: memoryview) -> None:
        """Take work until there is none."""
        try:
            while (work := self._take()) is not None:
                work(buffer)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the work was ordered
            self.stop(error)
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self.finished.set()


class Crew:
    """The threads. They do not keep the process from ending: Ctrl-C ends it, whatever they wait for."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = False

    def _start(self) -> None:
        self._started = True
        for number in range(self._threads):
            threading.Thread(target=self._live, name=f"copy-{number}", daemon=True).start()

    def _live(self) -> None:
        buffer = memoryview(pages(CHUNK_BYTES + SPARE_BYTES))
        while (job := self._jobs.get()) is not None:
            job.help(buffer)

    def run(self, work: Iterable[Work]) -> None:
        """Do all of *work*, in any order; returns when it is done.

        Raises: what the first piece raised that failed; no further ones are begun then.
        """
        if not self._started:
            self._start()
        job = _Job(work, self._threads)
        for _ in itertools.repeat(None, self._threads):
            self._jobs.put(job)
        try:
            job.finished.wait()
        except BaseException as error:
            # What is being read or written now ends soon, unless a page never comes: then without it.
            job.stop(error)
            job.finished.wait(_LAST_WORDS_S)
            raise
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """Let the threads end."""
        if self._started:
            for _ in itertools.repeat(None, self._threads):
                self._jobs.put(None)
