"""Lanes: how many requests may wait for one target, for the targets of one user, and in all.

A request about a process may wait for ever: for a page that a userfaultfd never supplies, for the server of
a file that is mapped. So each target has a lane, with room for a few requests; the others of that target
are parked here, as values, and occupy no thread. This module starts no thread and reads no frame.
"""

import threading
from collections.abc import Iterator
from weakref import WeakValueDictionary

import attrs

from memfs.linux.status import read_status
from memfs.target.identity import Identity

_OF_TARGET = 4
_OF_USER = 64
_IN_ALL = 384
_MOST_REMEMBERED = 4096
_NO_USER = -1
"""Owns the snapshots of processes that have ended."""


class _User:
    """The targets of one uid: how many of their requests run, and the lanes in which others are parked."""

    __slots__ = ("__weakref__", "parked", "running")

    def __init__(self) -> None:
        self.running = 0
        self.parked: dict[Lane, None] = {}


class Lane:
    """One target: how many of its requests run, and those that are parked, by their number.

    Attributes:
        lanes: those to which it belongs.
    """

    __slots__ = ("__weakref__", "lanes", "running", "tickets", "user")

    def __init__(self, lanes: "Lanes", user: _User) -> None:
        self.lanes = lanes
        self.user = user
        self.running = 0
        self.tickets: dict[int, Ticket] = {}

    @property
    def is_delayed(self) -> bool:
        """Whether a request of this target runs, or so many of its user's that no other may."""
        return self.running > 0 or self.user.running >= _OF_USER


@attrs.define(eq=False)
class Ticket:
    """A request that can wait.

    Attributes:
        unique: the kernel's number of it.
        caller: the thread that waits for the reply; 0 where it is not in our pid namespace.
        lane: that of its target.
        frame: the whole request.
        reads: whether it is a READ or an LSEEK.
    """

    unique: int
    caller: int
    lane: Lane
    frame: bytes
    reads: bool = True


HOUSE = Identity(0, 0)
"""The target of requests that take long and ask about no process, or about all of them."""


class Lanes:
    """The lanes of all targets. Many threads use them; no method waits for anything but a short lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: WeakValueDictionary[Identity, Lane] = WeakValueDictionary()
        self._users: WeakValueDictionary[int, _User] = WeakValueDictionary()
        self._uids: dict[Identity, int] = {}
        self._running = 0
        self._parked: dict[int, Ticket] = {}

    def lane_of(self, target: Identity) -> Lane:
        """The lane of *target*; it exists for as long as anyone holds it."""
        lane = self._lanes.get(target)
        if lane is None:
            uid = self._uid_of(target)
            with self._lock:
                lane = self._lanes.get(target)
                if lane is None:
                    user = self._users.get(uid)
                    if user is None:
                        user = self._users[uid] = _User()
                    lane = self._lanes[target] = Lane(self, user)
        return lane

    def _uid_of(self, target: Identity) -> int:
        """Whose process *target* was when it was first seen: becoming another user frees no room."""
        uid = self._uids.get(target)
        if uid is None:
            try:
                uid = read_status(target.pid).uid
            except OSError:
                return _NO_USER
            if len(self._uids) >= _MOST_REMEMBERED:
                self._uids.clear()
            self._uids[target] = uid
        return uid

    def enter(self, ticket: Ticket) -> bool:
        """Count *ticket* as running and return True; or, where its lane is full, park it."""
        lane = ticket.lane
        with self._lock:
            if not lane.tickets and self._has_room(lane):
                self._count(lane, 1)
                return True
            lane.tickets[ticket.unique] = self._parked[ticket.unique] = ticket
            lane.user.parked[lane] = None
            return False

    def occupy(self, lane: Lane) -> None:
        """Count a request as running that was begun without asking."""
        with self._lock:
            self._count(lane, 1)

    def leave(self, lane: Lane) -> Ticket | None:
        """Count a request of *lane* as done; returns the one that may run now, counted already."""
        with self._lock:
            self._count(lane, -1)
            if not self._parked:
                return None
            for candidate in self._candidates(lane):
                if self._has_room(candidate):
                    ticket = self._take(next(iter(candidate.tickets)))
                    self._count(candidate, 1)
                    return ticket
        return None

    def find(self, unique: int) -> Ticket | None:
        """The parked request of that number."""
        return self._parked.get(unique)

    def withdraw(self, unique: int) -> Ticket | None:
        """The same, which is parked no more."""
        with self._lock:
            return self._take(unique) if unique in self._parked else None

    def _take(self, unique: int) -> Ticket:
        ticket = self._parked.pop(unique)
        lane = ticket.lane
        del lane.tickets[unique]
        if not lane.tickets:
            del lane.user.parked[lane]
        return ticket

    def _candidates(self, first: Lane) -> Iterator[Lane]:
        """Lanes with parked requests: *first*, the others of its user, those of all users."""
        if first.tickets:
            yield first
        yield from first.user.parked
        for user in self._users.values():
            if user is not first.user:
                yield from user.parked

    def _has_room(self, lane: Lane) -> bool:
        return lane.running < _OF_TARGET and lane.user.running < _OF_USER and self._running < _IN_ALL

    def _count(self, lane: Lane, change: int) -> None:
        lane.running += change
        lane.user.running += change
        self._running += change
