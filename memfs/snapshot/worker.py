"""The life of a worker: one process for one snapshot, from the stop until it is let go.

It is the tracer of the copy, which ends when its tracer does. What it waits for all its life is the end
of its channel: that comes when the snapshot is let go, and when the daemon ends, in whatever way.
"""

import contextlib
import functools
import gc
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable

from memfs.errors import CannotFreeze, MemfsError, TargetExited
from memfs.linux import ptrace, wire
from memfs.linux.inheritance import prepare_to_lend
from memfs.linux.machine import this_machine
from memfs.snapshot.freeze import Freezing
from memfs.snapshot.reap import reap
from memfs.snapshot.values import Reaping, Request
from memfs.target.bounded import BoundedLooks
from memfs.target.identity import ProcessHandle

_REAP_TRIES = 20
_REAP_PAUSE_S = 0.1
_LATER_S = 1.0


def work(channel: socket.socket) -> None:
    """Serve one request, and hold the snapshot for as long as *channel* is open at the other end."""
    logging.disable()  # the fork server has closed the log, and something else has its descriptor
    gc.disable()  # in the pause it would be in the way, and there is no garbage to speak of
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ptrace.prepare_to_wait()
    prepare_to_lend()
    try:
        request, _ = wire.receive(channel)
    except EOFError:
        return
    if isinstance(request, Reaping):
        _let_go(_reaper(request), channel)
        return
    assert isinstance(request, Request)
    freezing = None
    try:
        freezing = Freezing(request)
        frozen, descriptors = freezing.run()
        wire.send(channel, frozen, descriptors)
        for fd in descriptors:
            os.close(fd)
        _await_end(channel, freezing)
    except ConnectionError:
        pass
    except MemfsError as error:
        _report(channel, error)
    except (FileNotFoundError, ProcessLookupError):  # of its files below /proc, or of a thread
        _report(channel, TargetExited(f"process {request.identity.pid} has ended"))
    except Exception:  # noqa: BLE001 - whatever it is, the daemon logs it
        _report(channel, CannotFreeze(f"the snapshot failed for no known reason: {traceback.format_exc()}"))
    finally:
        if freezing is not None:
            _let_go(freezing.let_go, channel)


def _report(channel: socket.socket, error: MemfsError) -> None:
    with contextlib.suppress(OSError):
        wire.send(channel, error)


def _await_end(channel: socket.socket, freezing: Freezing) -> None:
    """Wait for the end of *channel*. A thread that was killed at the last moment may not have ended yet."""
    while not freezing.take_ends():
        if select.select([channel], [], [], _REAP_PAUSE_S)[0]:
            break
    while channel.recv(1):
        pass


def _reaper(request: Reaping) -> Callable[[], bool]:
    """Reaps the copy of a worker that was killed, and returns whether nothing of it is left."""
    machine = this_machine()
    try:
        process = ProcessHandle(request.identity)
    except MemfsError:
        machine = None
    if machine is None:
        return lambda: True
    looks = BoundedLooks(request.identity.pid)
    return functools.partial(reap, request, process, machine, looks)


def _let_go(attempt: Callable[[], bool], channel: socket.socket) -> None:
    """Take the copy back. A process that cannot be stopped now, for a debugger has it, is tried later."""
    for _ in range(_REAP_TRIES):
        if attempt():
            return
        time.sleep(_REAP_PAUSE_S)
    channel.close()  # who waits for us need not wait for the debugger too
    while not attempt():
        time.sleep(_LATER_S)
