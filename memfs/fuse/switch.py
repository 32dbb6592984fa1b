"""The descriptor swap: libfuse talks to a socket, and our threads to /dev/fuse.

pyfuse3 and libfuse answer READ with a copy, know nothing of LSEEK, and change threads four times for each
request. So after libfuse has mounted, its descriptor is replaced by one end of a SEQPACKET socket pair. Our
threads own the device, answer what they know and hand every other frame over: INIT, and what is refused since
nothing here can be changed. libfuse never sees the difference.

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
from memfs.files.backing import STACK_DEPTH
from memfs.fuse import messages
from memfs.fuse.messages import Opcode
from memfs.linux.pipe import Pipe
from memfs.linux.span import Span

log = logging.getLogger(__name__)

_NO_ONE_WAITS = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""To a reply: its request was interrupted or aborted meanwhile; or the file system was unmounted."""

_REPLY_BYTES = 1 << 13
_ROOM = 1 << 11
"""What a reply takes of SO_SNDBUF at most: the kernel counts whole allocations, not bytes."""
_INIT = int(Opcode.INIT)


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
    """Owns the device and our end of the socket.

    pyfuse3 writes its replies with the interpreter's lock held. Were the socket full, it would wait for the
    thread that empties it, and that one for the lock. So no more requests go to libfuse than there is room
    for all their replies; the others wait here.

    Attributes:
        device: the real /dev/fuse.
        on_passthrough: called with the device when the kernel agrees to read files by itself.
    """

    def __init__(self, on_ready: Callable[[], None], on_passthrough: Callable[[int], None]) -> None:
        """Take the device over.

        Args:
            on_ready: called from a thread when INIT has been answered.
            on_passthrough: called before that with the device, if the kernel agrees to read files by itself.
        """
        self._on_ready = on_ready
        self._on_passthrough = on_passthrough
        session = find_session_descriptor()
        self.device = os.dup(session)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._free = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // _ROOM
            os.dup2(theirs.fileno(), session, inheritable=False)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._init_unique = 0
        self._offered = 0
        self._pump = threading.Thread(target=self._pump_replies, name="memfs-replies", daemon=True)

    def start(self) -> None:
        """Begin to carry libfuse's replies to the device."""
        self._pump.start()

    def forward(self, opcode: int, frame: memoryview) -> None:
        """Hand a request to libfuse, now or when the socket has room for its reply."""
        if opcode == _INIT:
            self._offered = messages.parse_init(frame)
            self._init_unique = messages.parse_head(frame)[1]
        with self._lock:
            if not self._free:
                self._waiting.append(bytes(frame))
                return
            self._free -= 1
        self._hand_over(frame)

    def _hand_over(self, frame: memoryview | bytes) -> None:
        # Broken: libfuse has ended and the kernel does not know yet. It will, and end the request.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._ours.send(frame)

    def _pump_replies(self) -> None:
        view = memoryview(bytearray(_REPLY_BYTES))
        while size := self._ours.recv_into(view):
            reply = bytes(view[:size])
            with self._lock:
                following = self._waiting.popleft() if self._waiting else None
                if following is None:
                    self._free += 1
            if following is not None:
                self._hand_over(following)
            try:
                self._carry(reply)
            except OSError as error:
                log.error("the kernel refused a reply of libfuse: %s", error)

    def _carry(self, reply: bytes) -> None:
        """Hand a reply of libfuse on to the kernel."""
        if messages.unique_of_reply(reply) != self._init_unique:
            self.reply(reply)
            return
        self._init_unique = 0
        self.reply(messages.amend_init_reply(reply, self._offered, STACK_DEPTH))
        if self._offered & messages.InitFlag.PASSTHROUGH:
            self._on_passthrough(self.device)
        self._on_ready()

    def forget_attributes(self, inode: int) -> None:
        """Have the kernel forget what it was told of a file, before it hears what is written next.

        Raises:
            OSError: it does not know the file, or the file system is gone.
        """
        self.reply(messages.drop_cache_notice(inode, -1, 0))

    def drop_pages(self, inode: int, span: Span) -> None:
        """Have the kernel drop cached pages of a file; waits for those that are being read in.

        Raises:
            OSError: as :meth:`forget_attributes`.
        """
        self.reply(messages.drop_cache_notice(inode, span.start, span.size))

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
