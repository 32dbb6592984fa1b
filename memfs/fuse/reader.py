"""The data plane: answers READ and LSEEK from the real device, and hands the rest to libfuse.

It knows open files by number and nothing of the tree. LISTXATTR, and GETXATTR of an attribute that no file
has or that was seen a moment ago, it answers too: that takes no look at the process, and ls and getfattr ask
them for each file that they list.

One thread does it all, since a second one would only fight with it for the interpreter's lock; but
where several readers read large pieces at once, two threads copy for them, and seldom need the lock.
And a page fault in a target can last for ever (a userfaultfd that no one serves, a file on a dead
server). So a watch looks on, and when the thread has been in one request for a while, another takes its
place at the device. Until the first comes back, other requests of that target go to threads of its lane,
a few at most, and wait there as values when these are stuck as well (`lanes`).
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from memfs.errors import MemfsError, errno_of
from memfs.fuse import frames
from memfs.fuse.ahead import LookAhead, Trace
from memfs.fuse.cache import CacheDropper
from memfs.fuse.handles import Handles, OpenFile
from memfs.fuse.interrupts import Interrupts, Waiting
from memfs.fuse.lanes import Lane, Ticket
from memfs.fuse.names import USER_XATTRS
from memfs.fuse.options import SpliceMode
from memfs.fuse.placement import Placement
from memfs.fuse.switch import Switch
from memfs.image.source import HEADER_ROOM, CannotSplice, Workspace
from memfs.linux.qos import LatencyRequest

log = logging.getLogger(__name__)

_FRAME_BYTES = (1 << 20) + (1 << 16)
"""The kernel refuses a read of the device with less room than its largest WRITE would take."""

_TICK_S = 0.02
_BUSY_REQUESTS = 8
"""Requests in a tick from which on CPUs are kept awake."""
_BUSY_CHUNKS = 32
"""Chunks read ahead in a tick, 1.7 GB/s, from which on a reader does little else than wait for them.

A slower one works on what it reads, and the kernel knows best where.
"""
_QUIET_TICKS = 8
"""Ticks without that many, after which they may sleep again: 160 ms."""
_SPARE_THREADS = 2
_HEAD_AT = HEADER_ROOM - frames.OUT_HEADER_BYTES


class DataPlane:
    """The threads at the device, one of them in charge, and the watch over it."""

    def __init__(
        self,
        switch: Switch,
        handles: Handles,
        *,
        splice: SpliceMode,
        latency: LatencyRequest | None,
        attribute_names: Callable[[int], bytes],
        attribute_at_once: Callable[[int, bytes], bytes | None],
        on_end: Callable[[], None],
    ) -> None:
        """Serve the files of *handles* over *switch*.

        Args:
            splice: whether replies are put together in a pipe. A pipe full of copies is slower than
                the buffer that they lie in, so AUTO takes it for sources with cached pages.
            latency: held while requests flow; None to leave the CPUs alone.
            attribute_names: the answer to LISTXATTR for an inode number, at once.
            attribute_at_once: the answer to GETXATTR for an inode number and a name, if it is known.
            on_end: called from a thread when the file system has been unmounted.
        """
        self.switch = switch
        self.handles = handles
        self.splice = splice
        self.attribute_names = attribute_names
        self.attribute_at_once = attribute_at_once
        self.on_end = on_end
        self.watch_sleeps = True
        self._latency = latency
        self._lock = threading.Lock()
        self._servers: list[_Server] = []
        self._spare: list[_Server] = []
        self._traffic = threading.Event()
        self.dropper = CacheDropper(switch)
        switch.on_page_notice = self.dropper.send
        self.interrupts = Interrupts(self._find_caller, self._interrupt)
        self.ahead = LookAhead()
        self.leader = self._add_server()
        self.second: _Server | None = None
        self._placement = Placement()
        self._placed_chunks = 0

    def start(self) -> None:
        """Begin to serve."""
        self.dropper.start()
        self.ahead.start()
        threading.Thread(target=self._watch, name="memfs-watch", daemon=True).start()
        self.leader.start()

    def wake_watch(self) -> None:
        """Requests flow again."""
        self.watch_sleeps = False
        self._traffic.set()

    def delegate(self, ticket: Ticket) -> None:
        """Have a request served by a thread of its lane, now or later."""
        if self.handles.lanes.enter(ticket):
            self._take_server().start(ticket)

    def _find_caller(self, unique: int) -> Waiting | None:
        """Who waits for a request; None where none does."""
        ticket = self.handles.lanes.find(unique)
        if ticket is not None:
            return Waiting(ticket.caller, reads=True)
        for server in list(self._servers):
            if server.unique == unique:
                return Waiting(server.caller, reads=True)
        caller = self.switch.find_caller(unique)
        return None if caller is None else Waiting(caller, reads=False)

    def _interrupt(self, unique: int) -> None:
        """Answer a request with EINTR, wherever it is."""
        stuck = any(server.give_up(unique) for server in list(self._servers))
        if stuck or self.handles.lanes.withdraw(unique) is not None:
            self.switch.reply(frames.error_reply(unique, errno.EINTR))
        else:
            self.switch.interrupt(unique)

    def park(self, server: "_Server") -> bool:
        """Keep *server* for later; False where there are enough and it should end."""
        with self._lock:
            if len(self._spare) < _SPARE_THREADS:
                self._spare.append(server)
                return True
            self._servers.remove(server)
            return False

    def _add_server(self) -> "_Server":
        server = _Server(self, len(self._servers))
        self._servers.append(server)
        return server

    def _watch(self) -> None:
        quiet_ticks = total = 0
        while True:
            if self.watch_sleeps:
                self._traffic.wait()
                self._traffic.clear()
            time.sleep(_TICK_S)
            self._replace_stuck()
            self._arrange_second()
            leader = self.leader
            self._place(leader)
            self.interrupts.look()
            requests = leader.requests
            before, total = total, sum(server.requests for server in list(self._servers))
            if total - before >= _BUSY_REQUESTS:
                quiet_ticks = 0
                self._keep_awake()
                continue
            quiet_ticks += 1
            if quiet_ticks >= _QUIET_TICKS and not self.interrupts.pending:
                quiet_ticks = 0
                if self._latency is not None:
                    self._latency.release()
                self.watch_sleeps = True
                # A request may have come while this was being decided: then no one will wake us for it.
                if leader.busy or leader is not self.leader or leader.requests != requests:
                    self.watch_sleeps = False

    def _place(self, leader: "_Server") -> None:
        """Give who answers a direct reader and who reads ahead for it a CPU each, while both are busy."""
        before, self._placed_chunks = self._placed_chunks, self.ahead.chunks
        if leader.reader and self._placed_chunks - before >= _BUSY_CHUNKS:
            self._placement.arrange(leader.reader, leader.thread, self.ahead.thread)
        else:
            self._placement.undo()

    def _keep_awake(self) -> None:
        if self._latency is not None:
            try:
                self._latency.hold()
            except OSError as error:
                log.info("CPUs are not kept awake while reads flow: %s", error)
                self._latency = None

    def _arrange_second(self) -> None:
        """Let another thread serve beside the leader as long as that pays."""
        if not self.ahead.serves_bulk:
            if self.second is not None and not self.second.busy:
                self.second = None
        elif self.second is None:
            self.second = self._take_server()
            self.second.start()

    def _take_server(self) -> "_Server":
        with self._lock:
            return self._spare.pop() if self._spare else self._add_server()

    def _replace_stuck(self) -> None:
        """Where a thread at the device has been in one request since the last look, leave it to its lane."""
        leader, second = self.leader, self.second
        if second is not None and second.is_stuck():
            self.second = None
            second.leave_device()
        if leader.is_stuck():
            self.leader = self._take_server()
            log.debug("request %d takes long: %s takes over", leader.unique, self.leader.name)
            leader.leave_device()
            self.leader.start()


class _Server:
    """One thread at the device, or in a lane, with all that it needs to answer.

    Attributes:
        unique: the READ or LSEEK that it is in; 0 for none.
        caller: the thread that waits for it; 0 where it is not in our pid namespace.
        requests: how many it has taken.
        thread: its number; 0 before it began.
        reader: the thread that it had something read ahead for the last time; 0 where the page cache
            lies between them, and the kernel asks.
    """

    def __init__(self, plane: DataPlane, number: int) -> None:
        self.name = f"memfs-data-{number}"
        self.unique = 0
        self.caller = 0
        self.requests = 0
        self.thread = 0
        self.reader = 0
        self._seen = 0
        self._plane = plane
        self._find = plane.handles.get
        self._reply = plane.switch.reply
        self._turn = threading.Event()
        self._started = False
        self._lock = threading.Lock()
        self._file: OpenFile | None = None
        self._given_up = False
        self._ticket: Ticket | None = None
        self._lane: Lane | None = None
        self._workspace = Workspace()
        self._frame = memoryview(bytearray(_FRAME_BYTES))

    @property
    def busy(self) -> bool:
        """Whether it is in a request now."""
        return self.unique != 0

    def start(self, ticket: Ticket | None = None) -> None:
        """Take charge; or serve *ticket*, which its lane counts as running, and what is parked behind it."""
        self._ticket = ticket
        self._turn.set()
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def is_stuck(self) -> bool:
        """Whether it is in the same request as when this was asked the last time."""
        seen, self._seen = self._seen, self.requests
        return self.busy and seen == self.requests

    def leave_device(self) -> None:
        """Count it as a thread of the lane of its request, as long as it is in that."""
        with self._lock:
            if self._file is not None and self._file.lane is not None:
                self._lane = self._file.lane
                self._plane.handles.lanes.occupy(self._lane)

    def give_up(self, unique: int) -> bool:
        """Note that someone else answers *unique*; False where this thread is not in it."""
        with self._lock:
            if self.unique != unique or self._given_up or self._file is None:
                return False
            self._given_up = True
            self._file.hold()
            return True

    def _run(self) -> None:
        self.thread = threading.get_native_id()
        plane = self._plane
        device = plane.switch.device
        room = [self._frame]
        while True:
            self._turn.wait()
            self._turn.clear()
            ticket, self._ticket = self._ticket, None
            if ticket is not None:
                self._serve_lane(ticket)
            while plane.leader is self or plane.second is self:
                try:
                    length = os.readv(device, room)
                except OSError as error:
                    # ENOENT: the request was aborted while it was being read.
                    if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                        continue
                    if error.errno != errno.ENODEV:
                        log.error("cannot read the FUSE device: %s", error)
                    plane.on_end()
                    return
                self.requests += 1
                if plane.watch_sleeps:
                    plane.wake_watch()
                try:
                    self._answer(self._frame[:length])
                except Exception:
                    # Without this thread the whole mount would stand still.
                    log.exception("a request was lost")
            lane, self._lane = self._lane, None
            if lane is not None and (ticket := plane.handles.lanes.leave(lane)) is not None:
                self._serve_lane(ticket)
            if not plane.park(self):
                self._workspace.close()
                return

    def _serve_lane(self, ticket: Ticket | None) -> None:
        """Serve *ticket* and what its lane has parked, until no request of it may run."""
        lanes = self._plane.handles.lanes
        while ticket is not None:
            frame = memoryview(ticket.frame)
            opcode, unique, caller = frames.parse_head(frame)
            self._serve(opcode, unique, caller, frame, in_lane=True)
            ticket = lanes.leave(ticket.lane)

    def _answer(self, frame: memoryview) -> None:
        opcode, unique, caller = frames.parse_head(frame)
        if opcode in (_READ, _LSEEK):
            self._serve(opcode, unique, caller, frame)
        elif opcode == _LISTXATTR:
            inode, size = frames.parse_xattr(frame)
            names = self._plane.attribute_names(inode)
            self._reply(frames.xattr_reply(unique, names, size))
        elif opcode == _GETXATTR:
            self._answer_attribute(unique, caller, frame)
        elif opcode == _INTERRUPT:
            self._plane.interrupts.add(frames.parse_interrupt(frame))
        elif opcode not in _FORGETS:
            self._plane.switch.forward(opcode, unique, caller, frame)

    def _answer_attribute(self, unique: int, caller: int, frame: memoryview) -> None:
        inode, size = frames.parse_xattr(frame)
        name = frames.parse_attribute_name(frame)
        if not name.startswith(USER_XATTRS):
            # ls asks each file for an ACL and a label, but not again once it hears this.
            self._reply(frames.error_reply(unique, errno.EOPNOTSUPP))
            return
        value = self._plane.attribute_at_once(inode, name)
        if value is None:
            self._plane.switch.forward(_GETXATTR, unique, caller, frame)
        else:
            self._reply(frames.xattr_reply(unique, value, size))

    def _serve(
        self, opcode: int, unique: int, caller: int, frame: memoryview, *, in_lane: bool = False
    ) -> None:
        """Answer a READ or an LSEEK, and turn whatever goes wrong into an errno."""
        action: Callable[[OpenFile, int, int, int], None]
        if opcode == _READ:
            action = self._read
            handle, offset, argument = frames.parse_read(frame)
        else:
            action = self._seek
            handle, offset, argument = frames.parse_seek(frame)
        file = self._find(handle)
        if file is None:
            self._reply(frames.error_reply(unique, errno.EBADF))
            return
        lane = file.lane
        if lane is not None and lane.is_delayed and not in_lane:
            self._plane.delegate(Ticket(unique, caller, lane, bytes(frame)))
            return
        self._file = file
        self.caller = caller
        self.unique = unique
        try:
            action(file, unique, offset, argument)
        except (MemfsError, OSError) as error:
            log.debug("%s", error)
            self._reply(frames.error_reply(unique, errno_of(error)))
        except Exception:
            log.exception("a request failed for no known reason")
            self._reply(frames.error_reply(unique, errno.EIO))
        with self._lock:
            self.unique = 0
            self._file = None
            stuck, self._given_up = self._given_up, False
        if stuck:
            file.let_go()

    def _read(self, file: OpenFile, unique: int, offset: int, size: int) -> None:
        file.counter.note(offset, size)
        if file.trail is not None:
            behind = file.trail.advance(offset)
            if behind is not None:
                self._plane.dropper.drop(file.trail.inode, behind)
        splice = self._plane.splice
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
            self.reader = self.caller if file.trail is None else 0
            frames.pack_reply_head(whole, _HEAD_AT, unique, size)
            self._reply(whole[_HEAD_AT:])
        finally:
            trace.leave()

    def _trace_of(self, file: OpenFile) -> Trace | None:
        """Who reads ahead for it; None where each read shall see what is there at that moment."""
        trace = file.trace
        if trace is None and (file.source.keeps or not file.fresh):
            trace = file.trace = Trace(self._plane.ahead, file)
        return trace

    def _copy(self, file: OpenFile, unique: int, offset: int, size: int) -> None:
        workspace = self._workspace
        size = file.source.read_into(offset, workspace.data[:size], workspace)
        frames.pack_reply_head(workspace.whole, _HEAD_AT, unique, size)
        self._reply(workspace.whole[_HEAD_AT : HEADER_ROOM + size])

    def _splice(self, file: OpenFile, unique: int, offset: int, size: int) -> None:
        workspace = self._workspace
        size = file.source.clip(offset, size).size
        frames.pack_reply_head(workspace.whole, _HEAD_AT, unique, size)
        file.source.splice_to(offset, size, frames.OUT_HEADER_BYTES, workspace)
        self._plane.switch.splice_reply(workspace.pipe, frames.OUT_HEADER_BYTES + size)

    def _seek(self, file: OpenFile, unique: int, offset: int, whence: int) -> None:
        source = file.source
        if offset >= source.size_bytes:
            raise OSError(errno.ENXIO, "the offset lies behind the end")
        if whence == frames.Whence.DATA:
            found = source.next_data(offset, self._workspace)
            if found >= source.size_bytes:
                raise OSError(errno.ENXIO, "there is only a hole from here on")
        elif whence == frames.Whence.HOLE:
            found = source.next_hole(offset, self._workspace)
            if (trace := self._trace_of(file)) is not None and trace.enter():
                trace.expect(offset, found)
                trace.leave()
        else:
            raise OSError(errno.EINVAL, "no such whence")
        self._reply(frames.seek_reply(unique, found))


_READ = int(frames.Opcode.READ)
_LSEEK = int(frames.Opcode.LSEEK)
_GETXATTR = int(frames.Opcode.GETXATTR)
_LISTXATTR = int(frames.Opcode.LISTXATTR)
_INTERRUPT = int(frames.Opcode.INTERRUPT)
_FORGETS = (int(frames.Opcode.FORGET), int(frames.Opcode.BATCH_FORGET))
"""They want no answer, and nothing is remembered; a batch may be longer than a message can be."""
