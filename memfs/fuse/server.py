"""A thread that answers requests: at the device, or those of one lane.

It takes one request after another. READ and LSEEK go to :mod:`memfs.fuse.reading`, what the desk knows to
the desk, and the rest to libfuse.
"""

import contextlib
import errno
import logging
import os
import threading
from typing import Protocol

from memfs.errors import MemfsError, errno_of
from memfs.files.handles import Handles, OpenFile
from memfs.files.lanes import Lane, Lanes, Ticket
from memfs.fuse import messages
from memfs.fuse.desk import Desk
from memfs.fuse.interrupts import Interrupts
from memfs.fuse.messages import Head, Opcode
from memfs.fuse.reading import Reading
from memfs.fuse.switch import Switch

log = logging.getLogger(__name__)

_FRAME_BYTES = (1 << 20) + (1 << 16)
"""The kernel refuses a read of the device with less room than its largest WRITE would take."""


class Post(Protocol):
    """What the threads of a mount share."""

    switch: Switch
    handles: Handles
    lanes: Lanes
    desk: Desk
    interrupts: Interrupts
    watch_sleeps: bool

    def is_at_device(self, server: "Server") -> bool:
        """Whether *server* is to take requests from the device."""

    def wake_watch(self) -> None:
        """Requests flow again."""

    def delegate(self, ticket: Ticket) -> None:
        """Have a request served by a thread of its lane, now or later."""

    def park(self, server: "Server") -> bool:
        """Keep *server* for later; False where there are enough and it should end."""

    def note_end(self) -> None:
        """The file system has been unmounted."""


class Server:
    """One thread, with all that it needs to answer.

    Attributes:
        unique: the request that it is in; 0 for none.
        caller: the thread that waits for it; 0 where it is not in our pid namespace.
        reads: whether that request is a READ or an LSEEK.
        requests: how many it has taken.
        thread: its number; 0 before it began.
        reading: how it answers READ and LSEEK.
    """

    def __init__(self, post: Post, number: int, reading: Reading) -> None:
        self.name = f"memfs-data-{number}"
        self.unique = 0
        self.caller = 0
        self.reads = False
        self.requests = 0
        self.thread = 0
        self.reading = reading
        self._seen = 0
        self._post = post
        self._find = post.handles.get
        self._reply = post.switch.reply
        self._turn = threading.Event()
        self._started = False
        self._lock = threading.Lock()
        self._file: OpenFile | None = None
        self._target_lane: Lane | None = None
        self._given_up = False
        self._ticket: Ticket | None = None
        self._lane: Lane | None = None
        self._frame: memoryview | None = None

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
            if self.unique and self._target_lane is not None:
                self._lane = self._target_lane
                self._lane.lanes.occupy(self._lane)

    def give_up(self, unique: int) -> bool:
        """Note that someone else answers *unique*; False where this thread is not in it."""
        with self._lock:
            if self.unique != unique or self._given_up:
                return False
            self._given_up = True
            if self._file is not None:
                self._file.hold()
            return True

    def _run(self) -> None:
        self.thread = threading.get_native_id()
        post = self._post
        while True:
            self._turn.wait()
            self._turn.clear()
            ticket, self._ticket = self._ticket, None
            if ticket is not None:
                self._serve_lane(ticket)
            if post.is_at_device(self) and not self._serve_device():
                post.note_end()
                return
            lane, self._lane = self._lane, None
            if lane is not None and (ticket := lane.lanes.leave(lane)) is not None:
                self._serve_lane(ticket)
            if not post.park(self):
                self.reading.close()
                return

    def _serve_device(self) -> bool:
        """Take requests from the device as long as that is our place; False where the mount has ended."""
        if self._frame is None:
            self._frame = memoryview(bytearray(_FRAME_BYTES))
        post, device, frame = self._post, self._post.switch.device, self._frame
        room = [frame]
        while post.is_at_device(self):
            try:
                length = os.readv(device, room)
            except OSError as error:
                # ENOENT: the request was aborted while it was being read.
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno != errno.ENODEV:
                    log.error("cannot read the FUSE device: %s", error)
                return False
            self.requests += 1
            if post.watch_sleeps:
                post.wake_watch()
            self._answer_anyway(frame[:length])
        return True

    def _serve_lane(self, ticket: Ticket | None) -> None:
        """Serve *ticket* and what its lane has parked, until no request of it may run."""
        while ticket is not None:
            self._answer_anyway(memoryview(ticket.frame), ticket.lane)
            ticket = ticket.lane.lanes.leave(ticket.lane)

    def _answer_anyway(self, frame: memoryview, lane: Lane | None = None) -> None:
        """Do :meth:`_answer`; what goes wrong there ends neither this thread nor the wait of the caller."""
        try:
            self._answer(frame, lane)
        except Exception:
            log.exception("a request failed for no known reason")
            with contextlib.suppress(messages.FrameError, OSError):
                self._reply(messages.error_reply(messages.parse_head(frame)[1], errno.EIO))

    def _answer(self, frame: memoryview, lane: Lane | None = None) -> None:
        """Answer one request, as a thread of *lane* if that is given."""
        opcode, unique, caller = messages.parse_head(frame)
        if opcode in (_READ, _LSEEK):
            self._answer_read(opcode, unique, caller, frame, in_lane=lane is not None)
        elif opcode in self._post.desk.handlers:
            self._answer_at_desk(frame, lane)
        elif opcode == _INTERRUPT:
            self._post.interrupts.add(messages.parse_interrupt(frame))
        elif opcode not in _FORGETS:
            self._post.switch.forward(opcode, frame)

    def _answer_read(
        self, opcode: int, unique: int, caller: int, frame: memoryview, *, in_lane: bool
    ) -> None:
        """Answer a READ or an LSEEK, and turn whatever goes wrong into an errno."""
        parse = messages.parse_read if opcode == _READ else messages.parse_seek
        handle, offset, argument = parse(frame)
        file = self._find(handle)
        if file is None:
            self._reply(messages.error_reply(unique, errno.EBADF))
            return
        lane = file.lane
        if lane is not None and lane.is_delayed and not in_lane:
            self._post.delegate(Ticket(unique, caller, lane, bytes(frame)))
            return
        self._file = file
        self._target_lane = lane
        self.caller = caller
        self.reads = True
        self.unique = unique
        try:
            if opcode == _READ:
                self.reading.read(file, unique, caller, offset, argument)
            else:
                self.reading.seek(file, unique, offset, argument)
        except (MemfsError, OSError) as error:
            log.debug("%s", error)
            self._reply(messages.error_reply(unique, errno_of(error)))
        finally:
            if self._done():
                file.let_go()

    def _answer_at_desk(self, frame: memoryview, lane: Lane | None) -> None:
        """The same for a request about a name or an open file, here or, if it may take long, in a lane."""
        desk = self._post.desk
        head, body = messages.parse_request(frame)
        if lane is None:
            target, takes_long = desk.target_of(head, body)
            if target is not None:
                lane = self._post.lanes.lane_of(target)
                if takes_long or lane.is_delayed:
                    self._post.delegate(Ticket(head.unique, head.caller, lane, bytes(frame), reads=False))
                    return
        self._file = None
        self._target_lane = lane
        self.caller = head.caller
        self.reads = False
        self.unique = head.unique
        try:
            self._carry_out(desk, head, body)
        except (MemfsError, OSError) as error:
            desk.note_failure(error)
            self._reply(messages.error_reply(head.unique, errno_of(error)))
        finally:
            self._done()

    def _carry_out(self, desk: Desk, head: Head, body: memoryview) -> None:
        reply = desk.handlers[head.opcode](head, body)
        is_heard = False
        try:
            is_heard = self._reply(messages.reply_to(head.unique, reply))
        finally:
            if not is_heard:
                desk.undo(head, body, reply)

    def _done(self) -> bool:
        """It is in no request any more; returns whether someone else has answered the one that it was in."""
        with self._lock:
            self.unique = 0
            self._file = None
            self._target_lane = None
            given_up, self._given_up = self._given_up, False
        return given_up


_READ = int(Opcode.READ)
_LSEEK = int(Opcode.LSEEK)
_INTERRUPT = int(Opcode.INTERRUPT)
_FORGETS = (int(Opcode.FORGET), int(Opcode.BATCH_FORGET))
"""They want no answer, and nothing is remembered; a batch may be longer than a message can be."""
