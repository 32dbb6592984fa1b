"""The descriptor swap: libfuse talks to a socket, and the data plane to /dev/fuse.

pyfuse3 and libfuse answer READ with a copy and know nothing of LSEEK. So after libfuse has mounted,
its descriptor is replaced by one end of a SEQPACKET socket pair. The data plane owns the device,
answers what it knows and hands every other frame over; libfuse never sees the difference.

A reply must go to the very descriptor instance that its request was read from. The device is closed
only by the end of the process: threads may be blocked in it, and closing would not wake them.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable

import attrs

from memfs.errors import MemfsError
from memfs.fuse import frames
from memfs.fuse.backing import STACK_DEPTH, Backings
from memfs.fuse.frames import Opcode
from memfs.fuse.lanes import Lanes, Ticket
from memfs.linux.pipe import Pipe
from memfs.target.identity import Identity

log = logging.getLogger(__name__)

_NO_ONE_WAITS = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""To a reply: its request was interrupted or aborted meanwhile; or the file system was unmounted."""

_REPLY_BYTES = 1 << 20
_LIST_BYTES = 1 << 15
"""What a READDIR may ask for: as much as the C library's readdir does."""

_FIXED_ROOM = 1 << 11
_SMALL_ROOM = 1 << 14
_LIST_ROOM = 2 * _LIST_BYTES + _SMALL_ROOM
"""What a reply takes of SO_SNDBUF at most: the kernel counts whole allocations, not bytes."""

_WANTED_ROOM = 1 << 22
_SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
_LISTS = (int(Opcode.READDIR), int(Opcode.READDIRPLUS))
_FIXED = tuple(
    map(int, (Opcode.LOOKUP, Opcode.GETATTR, Opcode.MKDIR, Opcode.RMDIR, Opcode.OPEN, Opcode.OPENDIR))
)
"""Requests whose replies have one size, less than 200 bytes."""
_RELEASES = (int(Opcode.RELEASE), int(Opcode.RELEASEDIR))
_OPEN, _INIT = int(Opcode.OPEN), int(Opcode.INIT)
_OWN_UNIQUE = 1 << 63
"""Set in the numbers of our own requests. The kernel counts its by two from 2 on."""


@attrs.define(eq=False)
class _Forwarded(Ticket):
    """A request for libfuse.

    Attributes:
        room: what its reply takes of the socket at most.
        ended: whether it has been answered with EINTR already.
    """

    opcode: int
    room: int
    ended: bool = False


def find_session_descriptor() -> int:
    """The descriptor on /dev/fuse that libfuse has just opened in this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    if len(found) != 1:
        raise MemfsError(f"expected one descriptor on /dev/fuse, found {len(found)}")
    return found[0]


class Switch:
    """Owns the device and the data plane's end of the socket.

    pyfuse3 writes its replies with the interpreter's lock held. Were the socket full, it would wait
    for the thread that empties it, and that one for the lock. So no more requests go to libfuse than
    there is room for all their replies; the others wait here. And of one target only a few go there at
    a time, since each of them may block a thread: its others are parked in its lane.

    A request can be answered with EINTR while libfuse has it. The kernel refuses the late reply then
    (ENOENT), since it never uses a number again, and what the request has made is undone.

    Attributes:
        device: the real /dev/fuse, for the data plane to read.
        on_page_notice: takes libfuse's notices to drop cached pages; writing one to the device may block.
    """

    def __init__(
        self, backings: Backings, target_of: Callable[[int], Identity | None], on_ready: Callable[[], None]
    ) -> None:
        """Take the device over.

        Args:
            target_of: the process that an inode is about; None for one about none.
            on_ready: called from a thread when INIT has been answered.
        """
        self._backings = backings
        self._target_of = target_of
        self._on_ready = on_ready
        session = find_session_descriptor()
        self.device = os.dup(session)
        self.on_page_notice: Callable[[bytes], object] = self.reply
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            with contextlib.suppress(PermissionError):
                theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _WANTED_ROOM)
            self._room = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            os.dup2(theirs.fileno(), session, inheritable=False)
        self._lock = threading.Lock()
        self._lanes: Lanes[_Forwarded] = Lanes()
        self._asked: dict[int, _Forwarded] = {}
        self._waiting: deque[_Forwarded] = deque()
        self._offered = 0
        self._own_unique = _OWN_UNIQUE
        self._pump = threading.Thread(target=self._pump_replies, name="memfs-replies", daemon=True)

    def start(self) -> None:
        """Begin to carry libfuse's replies to the device."""
        self._pump.start()

    def forward(self, opcode: int, unique: int, caller: int, frame: memoryview) -> None:
        """Hand a request to libfuse, now or when its lane and the socket have room for it."""
        room = _SMALL_ROOM
        if opcode in _FIXED:
            room = _FIXED_ROOM
        elif opcode in _LISTS:
            frames.limit_read_size(frame, _LIST_BYTES)
            room = _LIST_ROOM
        elif opcode == _INIT:
            self._offered = frames.parse_init(frame)
        lane = None
        if opcode not in _RELEASES:  # these block no thread, and make room
            target = self._target_of(frames.parse_node(frame))
            lane = self._lanes.lane_of(target) if target is not None else None
        request = _Forwarded(unique, caller, lane, bytes(frame), opcode, room)
        if self._lanes.enter(request):
            self._send_in_turn(request)

    def find_caller(self, unique: int) -> int | None:
        """The thread that waits for a request which libfuse has or will get; 0 where it is not known."""
        request = self._lanes.find(unique) or self._asked.get(unique)
        return None if request is None or request.ended else request.caller

    def interrupt(self, unique: int) -> None:
        """Answer such a request with EINTR."""
        if self._lanes.withdraw(unique) is None:
            with self._lock:
                request = self._asked.get(unique)
                if request is None:
                    return
                request.ended = True
        self.reply(frames.error_reply(unique, errno.EINTR))

    def _send_in_turn(self, request: _Forwarded) -> None:
        """Hand *request* to libfuse, now or when there is room for its reply."""
        with self._lock:
            self._asked[request.unique] = request
            if self._waiting or request.room > self._room:
                self._waiting.append(request)
                return
            self._room -= request.room
        self._hand_over(request.frame)

    def _hand_over(self, frame: bytes) -> None:
        # Broken: libfuse has ended and the kernel does not know yet. It will, and end the request.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.send(frame)

    def _give_back(self, unique: int) -> _Forwarded | None:
        """A reply has left the socket: requests that waited for its room, or in its lane, may go on."""
        ready = []
        with self._lock:
            request = self._asked.pop(unique, None)
            if request is None:
                return None
            self._room += request.room
            while self._waiting and self._waiting[0].room <= self._room:
                ready.append(self._waiting.popleft())
                self._room -= ready[-1].room
        for each in ready:
            self._hand_over(each.frame)
        following = self._lanes.leave(request.lane)
        if following is not None:
            self._send_in_turn(following)
        return request

    def _pump_replies(self) -> None:
        buffer = bytearray(_REPLY_BYTES)
        view = memoryview(buffer)
        while size := self._ours.recv_into(buffer):
            reply = view[:size]
            try:
                self._carry(reply)
            except OSError as error:
                log.error("the kernel refused a reply of libfuse: %s", error)

    def _carry(self, reply: memoryview) -> None:
        """Hand a reply or a notice of libfuse on to the kernel."""
        unique = frames.unique_of_reply(reply)
        request = self._give_back(unique)
        if request is None:
            if frames.is_page_notice(reply):
                self.on_page_notice(bytes(reply))
            elif not unique & _OWN_UNIQUE:
                self.reply(reply)
            return
        if request.opcode == _INIT:
            self._accept(bytes(reply))
            return
        if request.opcode == _OPEN:
            self._amend_open(reply)
        if not self.reply(reply):
            self._undo(request, reply)

    def _undo(self, request: _Forwarded, reply: memoryview) -> None:
        """Let go of what *request*, which has been answered with EINTR, has opened or made after all."""
        self._own_unique += 1
        undoing = frames.undo_request(request.frame, reply, self._own_unique)
        if undoing is not None:
            log.debug("request %d was interrupted, and is undone", request.unique)
            self._hand_over(undoing)

    def _accept(self, reply: bytes) -> None:
        self.reply(frames.amend_init_reply(reply, self._offered, STACK_DEPTH))
        if self._offered & frames.InitFlag.PASSTHROUGH:
            self._backings.accept(self.device)
        self._on_ready()

    def _amend_open(self, reply: memoryview) -> None:
        """Name the file that the kernel shall read by itself, if the reply to an OPEN opens such a one."""
        handle = frames.parse_open_reply(reply)
        backing = self._backings.of_handle(handle) if handle is not None else None
        if handle is not None and backing is not None:
            frames.amend_open_reply(reply, handle, *backing)

    def reply(self, frame: memoryview | bytes) -> bool:
        """Write a whole reply to the device; False where its request is no more, and it goes nowhere.

        Raises:
            OSError: the kernel does not understand it: its request still waits.
        """
        try:
            os.write(self.device, frame)
        except OSError as error:
            if error.errno not in _NO_ONE_WAITS:
                raise
            return False
        return True

    def splice_reply(self, pipe: Pipe, size: int) -> None:
        """Move a whole reply of *size* bytes from *pipe* to the device.

        Raises:
            OSError: as :meth:`reply`; the pipe is empty then.
        """
        try:
            os.splice(pipe.fd, self.device, size)
        except OSError as error:
            pipe.reset()
            if error.errno not in _NO_ONE_WAITS:
                raise
