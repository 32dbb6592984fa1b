"""The workers of a mount: what each of them is at, from its first word to its end.

A worker is a process of its own for one snapshot (:mod:`memfs.snapshot.worker`). While it stops a process,
to take a snapshot or to have a copy reaped, no other worker of ours may: it would find the process traced.
So they take turns at each process, and nobody waits for another process's turn.

A thread watches all channels. Where a worker was killed, its copy has ended with it, and the process is
made to reap that.
"""

import collections
import contextlib
import errno
import select
import socket
import threading
from collections.abc import Callable

import attrs

from memfs.errors import CannotFreeze, MemfsError, TargetBusy
from memfs.linux import wire
from memfs.snapshot.values import Frozen, Reaping, Request
from memfs.target.identity import Identity

_TURN_S = 5.0
"""How long to wait for one's turn at a process."""
_END_S = 5.0


@attrs.define(eq=False)
class Hold:
    """A worker, and the copy that it holds.

    Attributes:
        copy_number: of the copy, as its process sees it; 0 for none.
        ends: whether the worker has been told to end, or has lost its copy.
    """

    identity: Identity
    channel: socket.socket
    copy_number: int = 0
    ends: bool = False


class Workers:
    """All workers that have not ended."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        """*connect* makes a worker, and returns a channel to it, see :meth:`ForkServer.connect`."""
        self._connect = connect
        self._busy: collections.Counter[Identity] = collections.Counter()
        self._stuck: set[Identity] = set()
        self._holds: dict[int, Hold] = {}
        self._late: collections.defaultdict[Identity, list[Hold]] = collections.defaultdict(list)
        self._changed = threading.Condition()
        self._epoll: select.epoll | None = None

    def take(self, request: Request, patience_s: float) -> tuple[Frozen, list[int], Hold]:
        """Have a snapshot taken: what is known of it, its descriptors, and who holds it.

        See :meth:`memfs.snapshot.freeze.Freezing.run` for the descriptors.

        Raises:
            TargetBusy: another worker is at that process for too long, or this one is.
            CannotFreeze: the worker was killed.
            MemfsError: what it reports.
        """
        self._begin_turn(request.identity)
        try:
            hold = Hold(request.identity, self._connect())
        except BaseException:
            self._end_turn(request.identity)
            raise
        try:
            return *self._ask(hold, request, patience_s), hold
        except BaseException:
            # It lets go of the process now, and has its turn until it has ended.
            self._watch(hold, ends=True)
            raise

    def _ask(self, hold: Hold, request: Request, patience_s: float) -> tuple[Frozen, list[int]]:
        pid = request.identity.pid
        try:
            hold.channel.settimeout(patience_s)
            wire.send(hold.channel, request)
            answer, descriptors = wire.receive(hold.channel)
        except (EOFError, BrokenPipeError):
            raise CannotFreeze(
                f"the worker that froze process {pid} was killed", "try again", cause=errno.EIO
            ) from None
        except TimeoutError:
            self._stuck.add(request.identity)
            raise _stuck(pid) from None
        if isinstance(answer, MemfsError):
            raise answer
        assert isinstance(answer, Frozen)
        hold.copy_number = answer.copy_number
        self._watch(hold, ends=False)
        self._end_turn(request.identity)
        return answer, descriptors

    def let_go(self, hold: Hold, *, wait: bool = False) -> None:
        """Have the worker take its copy back, soon; or before this returns, with *wait*."""
        with self._changed:
            if not hold.ends:
                hold.ends = True
                if self._busy[hold.identity] and hold.identity not in self._stuck:
                    self._late[hold.identity].append(hold)
                else:
                    self._begin_end(hold)
            if wait:
                self._changed.wait_for(lambda: hold.channel.fileno() < 0, _END_S)

    def _begin_end(self, hold: Hold) -> None:
        self._busy[hold.identity] += 1
        with contextlib.suppress(OSError):
            hold.channel.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Have all workers take their copies back; they end by themselves."""
        with self._changed:
            holds = list(self._holds.values())
        for hold in holds:
            self.let_go(hold)

    # Turns

    def _begin_turn(self, identity: Identity) -> None:
        with self._changed:
            if identity in self._stuck:
                raise _stuck(identity.pid)
            if not self._changed.wait_for(lambda: not self._busy[identity], _TURN_S):
                raise TargetBusy(
                    f"process {identity.pid} is stopped for another snapshot at this moment", "try again"
                )
            self._busy[identity] += 1

    def _end_turn(self, identity: Identity) -> None:
        with self._changed:
            self._busy[identity] -= 1
            if not self._busy[identity]:
                del self._busy[identity]
                self._stuck.discard(identity)
                for hold in self._late.pop(identity, ()):
                    self._begin_end(hold)
            self._changed.notify_all()

    # Ends

    def _watch(self, hold: Hold, *, ends: bool) -> None:
        with self._changed:
            hold.ends = ends
            if ends:
                with contextlib.suppress(OSError):
                    hold.channel.shutdown(socket.SHUT_WR)
            self._holds[hold.channel.fileno()] = hold
            if self._epoll is None:
                self._epoll = select.epoll()
                threading.Thread(
                    target=self._watch_all, args=(self._epoll,), name="memfs-workers", daemon=True
                ).start()
            self._epoll.register(hold.channel, 0)  # EPOLLHUP is told in any case

    def _watch_all(self, epoll: select.epoll) -> None:
        """Wait for the ends of workers, for as long as there are any."""
        while True:
            for number, _ in epoll.poll():
                self._note_end(epoll, number)
            with self._changed:
                if not self._holds:
                    self._epoll = None
                    epoll.close()
                    return

    def _note_end(self, epoll: select.epoll, number: int) -> None:
        with self._changed:
            hold = self._holds.pop(number)
            epoll.unregister(number)
            hold.channel.close()
            was_killed, hold.ends = not hold.ends, True
            if hold in (late := self._late.get(hold.identity, [])):
                late.remove(hold)
                was_killed = True
            self._changed.notify_all()
        if not was_killed:
            self._end_turn(hold.identity)
        elif hold.copy_number:
            self._have_reaped(hold)

    def _have_reaped(self, lost: Hold) -> None:
        with self._changed:
            self._busy[lost.identity] += 1
        try:
            reaper = Hold(lost.identity, self._connect())
            with contextlib.suppress(OSError):
                wire.send(reaper.channel, Reaping(lost.identity, lost.copy_number))
            self._watch(reaper, ends=True)
        except MemfsError:  # no more workers can be had
            self._end_turn(lost.identity)


def _stuck(pid: int) -> TargetBusy:
    return TargetBusy(
        f"a worker waits for memory of process {pid} that does not come",
        "a server of files that it has mapped does not answer: mend that, and try again",
    )
