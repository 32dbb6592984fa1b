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

from memfs.errors import MemfsError
from memfs.fuse import frames
from memfs.fuse.backing import STACK_DEPTH, Backings
from memfs.linux.pipe import Pipe

log = logging.getLogger(__name__)

_NO_ONE_WAITS = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""To a reply: its request was interrupted or aborted meanwhile; or the file system was unmounted."""

_REPLY_BYTES = 1 << 20
_LIST_BYTES = 1 << 15
"""What a READDIR may ask for: as much as the C library's readdir does."""

_SMALL_ROOM = 1 << 14
_LIST_ROOM = 2 * _LIST_BYTES + _SMALL_ROOM
"""What a reply takes of SO_SNDBUF at most: the kernel counts whole allocations, not bytes."""

_WANTED_ROOM = 1 << 22
_SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
_LISTS = (int(frames.Opcode.READDIR), int(frames.Opcode.READDIRPLUS))


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
    there is room for all their replies; the others wait here.

    Attributes:
        device: the real /dev/fuse, for the data plane to read.
    """

    def __init__(self, backings: Backings, on_ready: Callable[[], None]) -> None:
        """Take the device over; *on_ready* is called from a thread when INIT has been answered."""
        self._backings = backings
        self._on_ready = on_ready
        session = find_session_descriptor()
        self.device = os.dup(session)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            with contextlib.suppress(PermissionError):
                theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _WANTED_ROOM)
            self._room = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            os.dup2(theirs.fileno(), session, inheritable=False)
        self._lock = threading.Lock()
        self._taken: dict[int, int] = {}
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._offered = 0
        self._init_unique = 0
        self._opens: set[int] = set()
        self._pump = threading.Thread(target=self._pump_replies, name="memfs-replies", daemon=True)

    def start(self) -> None:
        """Begin to carry libfuse's replies to the device."""
        self._pump.start()

    def forward(self, opcode: int, unique: int, frame: memoryview) -> None:
        """Hand a request to libfuse, now or when there is room for its reply."""
        room = _SMALL_ROOM
        if opcode in _LISTS:
            frames.limit_read_size(frame, _LIST_BYTES)
            room = _LIST_ROOM
        elif opcode == frames.Opcode.INIT:
            self._offered = frames.parse_init(frame)
            self._init_unique = unique
        elif opcode == frames.Opcode.OPEN:
            self._opens.add(unique)
        elif opcode == frames.Opcode.INTERRUPT:  # has no reply
            self._hand_over(frame)
            return
        with self._lock:
            if self._waiting or room > self._room:
                self._waiting.append((unique, room, bytes(frame)))
                return
            self._take(unique, room)
        self._hand_over(frame)

    def _hand_over(self, frame: memoryview | bytes) -> None:
        # Broken: libfuse has ended and the kernel does not know yet. It will, and end the request.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.send(frame)

    def _take(self, unique: int, room: int) -> None:
        self._room -= room
        self._taken[unique] = room

    def _give_back(self, unique: int) -> None:
        """A reply has left the socket: requests that waited for its room may go on."""
        ready = []
        with self._lock:
            self._room += self._taken.pop(unique, 0)
            while self._waiting and self._waiting[0][1] <= self._room:
                waiting, room, frame = self._waiting.popleft()
                self._take(waiting, room)
                ready.append(frame)
        for frame in ready:
            self._hand_over(frame)

    def _pump_replies(self) -> None:
        buffer = bytearray(_REPLY_BYTES)
        view = memoryview(buffer)
        while size := self._ours.recv_into(buffer):
            reply = view[:size]
            unique = frames.unique_of_reply(reply)
            is_init = self._init_unique and unique == self._init_unique
            self._give_back(unique)
            try:
                if is_init:
                    self._init_unique = 0
                    self._accept(reply.tobytes())
                    continue
                if unique in self._opens:
                    self._opens.remove(unique)
                    self._amend_open(reply)
                self.reply(reply)
            except OSError as error:
                log.error("the kernel refused a reply of libfuse: %s", error)

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

    def reply(self, frame: memoryview | bytes) -> None:
        """Write a whole reply to the device. One to a request that is no more goes nowhere.

        Raises:
            OSError: the kernel does not understand it: its request still waits.
        """
        try:
            os.write(self.device, frame)
        except OSError as error:
            if error.errno not in _NO_ONE_WAITS:
                raise

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
