"""A small process that forks workers on demand, made before the daemon has threads or a mount.

Threads and fork do not go together, and a worker must hold nothing of the daemon's: not /dev/fuse,
without which a daemon that was killed would leave its mount unanswered for good.
"""

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket

from memfs.errors import CannotFreeze
from memfs.snapshot.worker import work

_FIRST_FREE = 3
_END_S = 3.0  # a worker tries for 2 seconds to stop a process that a debugger has
_PR_SET_NAME = 15  # <linux/prctl.h>
_NAME = b"snapshot-worker"
"""Not after the daemon: `pkill memfs` must not tear a worker away from a process that it has just stopped."""


class ForkServer:
    """The daemon's end of it."""

    def __init__(self) -> None:
        """Start it. The calling process must have one thread."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                _serve(theirs)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def connect(self) -> socket.socket:
        """A channel to a new worker; it ends when the channel is closed.

        Raises:
            CannotFreeze: the server was killed.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._channel, [b"w"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise CannotFreeze(
                    "the process that takes snapshots was killed", "unmount, and mount again"
                ) from None
        return ours

    def close(self) -> None:
        """End it; returns when all workers have let go, whose channels must be closed, or after 3 seconds.

        A worker that is stuck (in a file system whose server is dead, say) goes on by itself, and ends when
        it no longer is.
        """
        self._channel.close()
        with contextlib.suppress(OSError):
            process = os.pidfd_open(self._pid)
            if select.select([process], [], [], _END_S)[0]:
                os.waitpid(self._pid, 0)
            os.close(process)


def _serve(channel: socket.socket) -> None:
    os.setsid()
    os.chdir("/")
    kept = channel.fileno()
    os.closerange(_FIRST_FREE, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    # Only the end of its channel ends it: a signal to all of a service must not tear a worker away
    # from a process that it has just stopped.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers leave no zombies
    ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    gc.freeze()
    while True:
        try:
            mark, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except ConnectionError:
            break  # the daemon was killed
        if not mark:
            break
        with socket.socket(fileno=descriptors[0]) as theirs:
            if os.fork() == 0:
                channel.close()
                work(theirs)
                os._exit(0)
    with contextlib.suppress(ChildProcessError):
        os.wait()  # with SIGCHLD ignored, it returns when the last has ended
