"""The descriptor swap: libfuse talks to a socket, and the data plane to /dev/fuse.

pyfuse3 and libfuse answer READ with a copy and know nothing of LSEEK. So after libfuse has mounted,
its descriptor is replaced by one end of a SEQPACKET socket pair. The data plane owns the device,
answers what it knows and hands every other frame over; libfuse never sees the difference.

A reply must go to the very descriptor instance that its request was read from. The device is closed
only by the end of the process: threads may be blocked in it, and closing would not wake them.
"""

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable

from memfs.errors import MemfsError
from memfs.fuse import frames
from memfs.linux.pipe import Pipe

log = logging.getLogger(__name__)

_NO_ONE_WAITS = (errno.ENOENT, errno.ENODEV, errno.EPERM)
"""To a reply: its request was interrupted or aborted meanwhile; or the file system was unmounted."""

_REPLY_BYTES = 1 << 20
_LIST_BYTES = 1 << 17
"""What a READDIR may ask for: a message in the socket is limited by SO_SNDBUF, 212,992 bytes unless set."""


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

    Attributes:
        device: the real /dev/fuse, for the data plane to read.
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        """Take the device over; *on_ready* is called from a thread when INIT has been answered."""
        self._on_ready = on_ready
        session = find_session_descriptor()
        self.device = os.dup(session)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), session, inheritable=False)
        self._offered = 0
        self._init_unique = 0
        self._pump = threading.Thread(target=self._pump_replies, name="memfs-replies", daemon=True)

    def start(self) -> None:
        """Begin to carry libfuse's replies to the device."""
        self._pump.start()

    def forward(self, head: frames.Head, frame: memoryview) -> None:
        """Hand a request to libfuse."""
        if head.opcode in (frames.Opcode.READDIR, frames.Opcode.READDIRPLUS):
            frames.limit_read_size(frame, _LIST_BYTES)
        elif head.opcode == frames.Opcode.INIT:
            self._offered = frames.parse_init(frame)
            self._init_unique = head.unique
        self._ours.send(frame)

    def _pump_replies(self) -> None:
        buffer = bytearray(_REPLY_BYTES)
        view = memoryview(buffer)
        while size := self._ours.recv_into(buffer):
            reply = view[:size]
            is_init = self._init_unique and frames.unique_of_reply(reply) == self._init_unique
            try:
                if is_init:
                    self._init_unique = 0
                    self.reply(frames.amend_init_reply(reply.tobytes(), self._offered))
                    self._on_ready()
                else:
                    self.reply(reply)
            except OSError as error:
                log.error("the kernel refused a reply of libfuse: %s", error)

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
