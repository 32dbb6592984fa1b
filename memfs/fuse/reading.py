"""READ and LSEEK: the bytes of an open file, put together for the device in one of three ways.

A reply is copied into the buffer of the thread, spliced from a pipe, or was read ahead already.
"""

import contextlib
import errno

from memfs.files.ahead import LookAhead, Trace
from memfs.files.cache import CacheDropper
from memfs.files.handles import OpenFile
from memfs.fuse import messages
from memfs.fuse.options import SpliceMode
from memfs.fuse.switch import Switch
from memfs.image.source import HEADER_ROOM, CannotSplice, Workspace

_HEAD_AT = HEADER_ROOM - messages.OUT_HEADER_BYTES


class Reading:
    """How one thread answers READ and LSEEK; it owns its workspace.

    Attributes:
        reader: the thread that it had something read ahead for the last time; 0 where the page cache
            lies between them, and the kernel asks.
    """

    def __init__(self, switch: Switch, splice: SpliceMode, ahead: LookAhead, dropper: CacheDropper) -> None:
        self.reader = 0
        self._switch = switch
        self._reply = switch.reply
        self._splice_mode = splice
        self._ahead = ahead
        self._dropper = dropper
        self._workspace: Workspace | None = None

    def close(self) -> None:
        """Give the workspace back."""
        if self._workspace is not None:
            self._workspace.close()

    @property
    def _space(self) -> Workspace:
        """The workspace: a thread that reads nothing needs none."""
        if self._workspace is None:
            self._workspace = Workspace()
        return self._workspace

    def read(self, file: OpenFile, unique: int, caller: int, offset: int, size: int) -> None:
        """Answer the READ *unique* of thread *caller*.

        Raises:
            MemfsError, OSError: the bytes cannot be delivered.
        """
        file.counter.note(offset, size)
        if file.trail is not None:
            behind = file.trail.advance(offset)
            if behind is not None:
                self._dropper.drop(file.trail.inode, behind)
        splice = self._splice_mode
        if splice is SpliceMode.ON or (splice is SpliceMode.AUTO and file.source.has_cached_pages):
            with contextlib.suppress(CannotSplice):
                self._splice(file, unique, offset, size)
                return
        trace = self._trace_of(file)
        if trace is None or not trace.enter():
            self._copy(file, unique, offset, size)
            return
        try:
            size = min(size, max(0, file.source.size_bytes - offset))
            whole = trace.advance(offset, size)
            if whole is None:
                self._copy(file, unique, offset, size)
                return
            self.reader = caller if file.trail is None else 0
            messages.pack_reply_head(whole, _HEAD_AT, unique, size)
            self._reply(whole[_HEAD_AT:])
        finally:
            trace.leave()

    def _trace_of(self, file: OpenFile) -> Trace | None:
        """How it is read ahead; None where each read shall see what is there at that moment."""
        trace = file.trace
        if trace is None and (file.source.keeps or not file.fresh):
            trace = file.trace = Trace(self._ahead, file)
        return trace

    def _copy(self, file: OpenFile, unique: int, offset: int, size: int) -> None:
        workspace = self._space
        size = file.source.read_into(offset, workspace.data[:size], workspace)
        messages.pack_reply_head(workspace.whole, _HEAD_AT, unique, size)
        self._reply(workspace.whole[_HEAD_AT : HEADER_ROOM + size])

    def _splice(self, file: OpenFile, unique: int, offset: int, size: int) -> None:
        workspace = self._space
        size = file.source.clip(offset, size).size
        messages.pack_reply_head(workspace.whole, _HEAD_AT, unique, size)
        file.source.splice_to(offset, size, messages.OUT_HEADER_BYTES, workspace)
        self._switch.splice_reply(workspace.pipe, messages.OUT_HEADER_BYTES + size)

    def seek(self, file: OpenFile, unique: int, offset: int, whence: int) -> None:
        """Answer the LSEEK *unique*.

        Raises:
            MemfsError, OSError: it cannot be told.
        """
        source = file.source
        if offset >= source.size_bytes:
            raise OSError(errno.ENXIO, "the offset lies behind the end")
        if whence == messages.Whence.DATA:
            found = source.next_data(offset, self._space)
            if found >= source.size_bytes:
                raise OSError(errno.ENXIO, "there is only a hole from here on")
        elif whence == messages.Whence.HOLE:
            found = source.next_hole(offset, self._space)
            if (trace := self._trace_of(file)) is not None and trace.enter():
                trace.expect(offset, found)
                trace.leave()
        else:
            raise OSError(errno.EINVAL, "no such whence")
        self._reply(messages.seek_reply(unique, found))
