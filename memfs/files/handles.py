"""The table of open files, by the numbers that the kernel has for them.

The kernel sends RELEASE only when no READ of that file is under way. But a READ that was interrupted
has been answered, and its thread may still be stuck in it; and someone may be reading ahead. So a file
is closed by whoever leaves it last.

close(2) of a mapped file may wait for the server of that file (FLUSH), and no signal ends that. So what has
opened such files is closed by a thread of its target.
"""

import itertools
import threading
from collections import deque

from memfs.files.ahead import Trace
from memfs.files.cache import CacheTrail
from memfs.files.habits import ReadCounter
from memfs.files.lanes import Lane
from memfs.image.source import Source


class Closer:
    """Closes sources, those of one target one after another in one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Lane, deque[Source]] = {}

    def close(self, source: Source, lane: Lane) -> None:
        """Have *source* closed without waiting for it."""
        with self._lock:
            if lane in self._waiting:
                self._waiting[lane].append(source)
                return
            self._waiting[lane] = deque((source,))
        threading.Thread(target=self._run, args=(lane,), name="memfs-closer", daemon=True).start()

    def _run(self, lane: Lane) -> None:
        while True:
            with self._lock:
                if not self._waiting[lane]:
                    del self._waiting[lane]
                    return
                source = self._waiting[lane].popleft()
            source.close()


_closer = Closer()


class OpenFile:
    """An open file and who uses it.

    Attributes:
        source: its bytes.
        counter: how it is read.
        trail: what its reader leaves in the page cache; None where he reads directly.
        fresh: whether each read shall see what is there at that moment.
        lane: that of its target, for reads; None where no read of it can wait for anyone.
        trace: how it is read, for who reads ahead; None until someone does.
    """

    __slots__ = ("_held", "_lock", "_released", "counter", "fresh", "lane", "source", "trace", "trail")

    def __init__(
        self,
        source: Source,
        counter: ReadCounter,
        trail: CacheTrail | None = None,
        *,
        fresh: bool = False,
        lane: Lane | None = None,
    ) -> None:
        self.source = source
        self.counter = counter
        self.trail = trail
        self.fresh = fresh
        self.lane = lane
        self.trace: Trace | None = None
        self._lock = threading.Lock()
        self._held = 0
        self._released = False

    def hold(self) -> None:
        """A thread uses it, with or without a READ that waits for an answer."""
        with self._lock:
            self._held += 1

    def let_go(self) -> None:
        """That thread is done with it."""
        with self._lock:
            self._held -= 1
            last = self._released and not self._held
        if last:
            self._close()

    def release(self) -> None:
        """No one will ask for it again."""
        if self.trace is not None:
            self.trace.close()
        with self._lock:
            self._released = True
            last = not self._held
        if last:
            self._close()

    def _close(self) -> None:
        if self.lane is not None and self.source.has_cached_pages:
            _closer.close(self.source, self.lane)
        else:
            self.source.close()


class Handles:
    """Open files by number. Numbers are not used again, so a late request finds nothing."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}
        self._numbers = itertools.count(1)
        self.get = self._files.get

    def add(self, file: OpenFile) -> int:
        """Take *file* over and give it a number."""
        number = next(self._numbers)
        self._files[number] = file
        return number

    def drop(self, number: int) -> ReadCounter | None:
        """Close a file, now or when its last reader leaves it; returns how it was read."""
        file = self._files.pop(number, None)
        if file is None:
            return None
        file.release()
        return file.counter

    def drop_all(self) -> None:
        """Close what is still open: the mount is gone."""
        for number in list(self._files):
            self.drop(number)
