"""The page cache behind a reader: what it has read is dropped soon, not when memory runs short.

No one is likely to read it again, and a live file is never served from it at a later open. And pages
that come round again are warm: where a hypervisor takes back what is free, each fresh one costs a
fault on the host, 3.5 us on the machine of docs/performance.md, seven times the copy into it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

from memfs.linux.span import Span

_KEPT_BYTES = 4 << 20
"""Behind the last READ the reader itself may be up to two windows of readahead back."""
_STEP_BYTES = 2 << 20
_MOST_WAITING = 64
_MOST_THREADS = 32
_STUCK_S = 1.0
"""How long no thread must have begun with a notice, while many wait, before there is another thread."""

log = logging.getLogger(__name__)


class CacheTrail:
    """What one reader has left in the page cache of a file.

    Attributes:
        inode: the file's number.
    """

    __slots__ = ("_dropped_up_to", "inode")

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self._dropped_up_to = 0

    def advance(self, offset: int) -> Span | None:
        """Note a READ at *offset*; returns the stretch that can be dropped now, if it pays."""
        keep_from = offset - _KEPT_BYTES
        if offset < self._dropped_up_to:
            self._dropped_up_to = offset
        elif keep_from - self._dropped_up_to >= _STEP_BYTES:
            behind = Span(self._dropped_up_to, keep_from)
            self._dropped_up_to = keep_from
            return behind
        return None


class CacheDropper:
    """Threads that tell the kernel what to drop.

    The kernel waits there for pages that are still being read in: for a reply of the thread at the device,
    which therefore must not wait itself. It may wait for ever where a target keeps a READ waiting, and no
    signal ends that. So there is one thread, and another where none has come back for a while.
    """

    def __init__(self, tell: Callable[[int, Span], object]) -> None:
        """*tell* tells the kernel to drop a stretch of a file's cache, and may wait; it raises OSError."""
        self._tell = tell
        self._wanted: queue.Queue[tuple[int, Span]] = queue.Queue(_MOST_WAITING)
        self._threads = 0
        self._latest_s = 0.0

    def start(self) -> None:
        """Begin to work."""
        self._threads += 1
        threading.Thread(target=self._run, name="memfs-cache", daemon=True).start()

    def drop(self, inode: int, span: Span) -> None:
        """Let *span* of a file's cache be dropped some time soon; forgotten where too much waits."""
        try:
            self._wanted.put_nowait((inode, span))
        except queue.Full:
            if time.monotonic() - self._latest_s > _STUCK_S and self._threads < _MOST_THREADS:
                self.start()

    def _run(self) -> None:
        while True:
            inode, span = self._wanted.get()
            self._latest_s = time.monotonic()
            try:
                self._tell(inode, span)
            except OSError as error:
                log.debug("nothing is dropped from the page cache: %s", error)
