"""The page cache behind a reader: what it has read is dropped soon, not when memory runs short.

No one is likely to read it again, and a live file is never served from it at a later open. And pages
that come round again are warm: where a hypervisor takes back what is free, each fresh one costs a
fault on the host, 3.5 us on the machine of docs/performance.md, seven times the copy into it.
"""

import queue
import threading

from memfs.fuse import frames
from memfs.fuse.switch import Switch
from memfs.linux.span import Span

_KEPT_BYTES = 4 << 20
"""Behind the last READ the reader itself may be up to two windows of readahead back."""
_STEP_BYTES = 2 << 20
_MOST_WAITING = 64


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
    """A thread that tells the kernel what to drop.

    The kernel waits there for pages that are still being read in: for an answer of the data plane,
    which therefore must not wait itself.
    """

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._wanted: queue.Queue[tuple[int, Span]] = queue.Queue(_MOST_WAITING)

    def start(self) -> None:
        """Begin to work."""
        threading.Thread(target=self._run, name="memfs-cache", daemon=True).start()

    def drop(self, inode: int, span: Span) -> None:
        """Let *span* of a file's cache be dropped some time soon; forgotten where too much waits."""
        try:
            self._wanted.put_nowait((inode, span))
        except queue.Full:
            return

    def _run(self) -> None:
        while True:
            inode, span = self._wanted.get()
            self._switch.reply(frames.drop_cache_notice(inode, span.start, span.size))
