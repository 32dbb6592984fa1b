"""All snapshots of a mount by process and name, and the limits on them.

Taking one waits for a worker, up to a second or so: these calls belong in a thread.
"""

import contextlib
import functools
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from memfs.errors import (
    CannotFreeze,
    NameTaken,
    NoSuchEntry,
    TargetExited,
    TargetReplaced,
    TargetStuck,
    TooMany,
)
from memfs.snapshot.history import Times
from memfs.snapshot.missing import find_missing
from memfs.snapshot.snapshot import Snapshot, SnapshotId
from memfs.snapshot.values import Request
from memfs.snapshot.workers import Workers
from memfs.target.identity import Identity, identify, read_status
from memfs.target.origins import Device

log = logging.getLogger(__name__)

MOST_OF_A_PROCESS = 16
MOST_IN_ALL = 64

log = logging.getLogger(__name__)

_STOP_S = (0.05, 0.1, 0.2)
"""How long each attempt waits for the threads to stop: those that have stopped wait meanwhile."""
_PAUSE_S = 0.05
_WORKER_S = 60.0
_WORKER_S_PER_BYTE = 10.0 / (1 << 30)
"""How long a worker may take before it counts as lost. It gives up by itself before that, if it can."""


class Snapshots:
    """The snapshots of one mount.

    Attributes:
        own_device: of the mount.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        *,
        copy_bytes: int,
        fall_back: bool,
        memory_bytes: int | None = None,
    ) -> None:
        """Have workers take them.

        Args:
            connect: makes a worker, and returns a channel to it, see :meth:`ForkServer.connect`.
            copy_bytes: the most that is copied while a process is stopped.
            memory_bytes: the most memory that copies may take that are made while it runs; None for a
                share of what there is.
            fall_back: whether a process that cannot be forked may be copied as a whole instead.
        """
        self.own_device: Device | None = None
        self._workers = Workers(connect)
        self._copy_bytes = copy_bytes
        self._memory_bytes = memory_bytes
        self._fall_back = fall_back
        self._named: dict[Identity, dict[bytes, Snapshot | None]] = {}
        self._shared: dict[Identity, Snapshot] = {}
        self._coming: dict[Identity, Future[None]] = {}
        self._held: dict[SnapshotId, Snapshot] = {}
        self._serials = itertools.count(1)
        self._told_of_bound = False
        self._lock = threading.Lock()

    # By name

    def make(self, identity: Identity, name: bytes) -> SnapshotId:
        """Take a snapshot of a process and give it a name.

        Raises:
            NameTaken, TooMany: there is one of that name, or there are too many.
            TargetBusy, AccessDenied, TargetExited, CannotFreeze: it cannot be taken.
        """
        self._drop_unreachable()
        with self._lock:
            if name in self._named.get(identity, ()):
                raise NameTaken(f"process {identity.pid} has a snapshot of that name", "choose another")
            self._ensure_room(identity)
            names = self._named.setdefault(identity, {})
            names[name] = None  # taken, while we are at it
        try:
            snapshot = self._take(identity)
        except BaseException:
            with self._lock:
                self._forget_name(identity, name)
            raise
        with self._lock:
            names[name] = snapshot
        return snapshot.id

    def remove(self, identity: Identity, name: bytes) -> None:
        """Take a snapshot's name away, and let it go unless someone has a file of it open.

        Raises:
            NoSuchEntry: there is no such name.
        """
        with self._lock:
            snapshot = self._named.get(identity, {}).get(name)
            if snapshot is None:
                raise NoSuchEntry(f"process {identity.pid} has no such snapshot")
            self._forget_name(identity, name)
            after = self._neighbour(snapshot, after=True)
        if after is not None:
            # The next one will not be able to ask this one any more.
            self._find_times(after, snapshot)
        snapshot.drop(wait=True)

    def content_times(self, snapshot: Snapshot) -> Times:
        """When the contents of a snapshot last changed, as far as the earlier ones tell."""
        with self._lock:
            before = self._neighbour(snapshot, after=False)
        return self._find_times(snapshot, before)

    def _find_times(self, snapshot: Snapshot, before: Snapshot | None) -> Times:
        if before is not None and not snapshot.history.has_times:
            self.content_times(before)
        return snapshot.history.times(snapshot, before)

    def _neighbour(self, snapshot: Snapshot, *, after: bool) -> Snapshot | None:
        """Of the snapshots of the same process that have a name, the next one before or after."""
        named = self._named.get(snapshot.id.identity, {}).values()
        others = [
            other
            for other in named
            if other is not None and other is not snapshot and (other.id.serial > snapshot.id.serial) is after
        ]
        choose = min if after else max
        return choose(others, key=lambda other: other.id.serial, default=None)

    def _forget_name(self, identity: Identity, name: bytes) -> None:
        del self._named[identity][name]
        if not self._named[identity]:
            del self._named[identity]

    def names(self, identity: Identity) -> list[tuple[bytes, SnapshotId]]:
        """The snapshots of a process that have a name, in order."""
        with self._lock:
            named = self._named.get(identity, {}).items()
            return sorted((name, found.id) for name, found in named if found is not None)

    def find(self, identity: Identity, name: bytes) -> SnapshotId:
        """The snapshot of that name.

        Raises:
            NoSuchEntry: there is none.
        """
        with self._lock:
            snapshot = self._named.get(identity, {}).get(name)
        if snapshot is None:
            raise NoSuchEntry(f"process {identity.pid} has no such snapshot")
        return snapshot.id

    # By identity

    def get(self, id_: SnapshotId) -> Snapshot:
        """A snapshot that is held by someone.

        Raises:
            NoSuchEntry: it has been let go.
        """
        with self._lock:
            snapshot = self._held.get(id_)
        if snapshot is None:
            raise NoSuchEntry(f"this snapshot of process {id_.identity.pid} was let go")
        return snapshot

    def ids(self) -> list[SnapshotId]:
        """All that are held."""
        with self._lock:
            return list(self._held)

    def owners(self) -> Iterator[Identity]:
        """The processes that have a snapshot with a name, running or not."""
        with self._lock:
            return iter(list(self._named))

    def copies(self) -> frozenset[int]:
        """The pids of the frozen copies themselves."""
        with self._lock:
            held = list(self._held.values())
        return frozenset(found.frozen.copy.pid for found in held if found.frozen.copy is not None)

    # Without a name

    def share(self, identity: Identity) -> Snapshot:
        """The snapshot that all share who read a live process's core now; the caller drops it.

        Raises: as :meth:`make`.
        """
        self._drop_unreachable()
        while True:
            with self._lock:
                snapshot = self._shared.get(identity)
                if snapshot is not None:
                    with contextlib.suppress(TargetExited):  # the last reader has just closed it
                        snapshot.hold()
                        return snapshot
                coming = self._coming.get(identity)
                if coming is None:
                    self._ensure_room(identity)
                    mine = self._coming[identity] = Future[None]()
                    break
            coming.result()
        return self._take_shared(identity, mine)

    def _take_shared(self, identity: Identity, told: "Future[None]") -> Snapshot:
        """Take it, and tell those who have come for it meanwhile that it is there, or why not."""
        try:
            snapshot = self._take(identity)
        except BaseException as error:
            with self._lock:
                del self._coming[identity]
            told.set_exception(error)
            raise
        with self._lock:
            del self._coming[identity]
            self._shared[identity] = snapshot
        told.set_result(None)
        return snapshot

    def shared(self, identity: Identity) -> Snapshot | None:
        """That snapshot, if someone has it open."""
        with self._lock:
            return self._shared.get(identity)

    # Both

    def close(self) -> None:
        """Take all names away, and let go what someone still holds: the mount is gone."""
        with self._lock:
            named, self._named = self._named, {}
        for names in named.values():
            for snapshot in names.values():
                if snapshot is not None:
                    snapshot.drop()
        with self._lock:
            held = list(self._held.values())
        for snapshot in held:
            snapshot.abandon()
        self._workers.close()

    def _drop_unreachable(self) -> None:
        """Let go what no path leads to: the process has ended, and another one has its pid."""
        for identity in self.owners():
            with contextlib.suppress(NoSuchEntry):
                if identify(identity.pid) != identity:
                    with self._lock:
                        names = self._named.pop(identity, {})
                    for snapshot in names.values():
                        if snapshot is not None:
                            snapshot.drop()

    def _ensure_room(self, identity: Identity) -> None:
        coming = [owner for owner, names in self._named.items() for found in names.values() if found is None]
        coming += self._coming
        mine = sum(id_.identity == identity for id_ in self._held) + coming.count(identity)
        if mine >= MOST_OF_A_PROCESS:
            raise TooMany(
                f"process {identity.pid} has {MOST_OF_A_PROCESS} snapshots, the most that one may have",
                "let one go with rmdir",
            )
        if len(self._held) + len(coming) >= MOST_IN_ALL:
            raise TooMany(
                f"there are {MOST_IN_ALL} snapshots, the most that one mount holds",
                "let one go with rmdir",
            )

    def _take(self, identity: Identity) -> Snapshot:
        for attempt, stop_s in enumerate(_STOP_S, 1):
            try:
                return self._attempt(identity, stop_s, copy_all=False)
            except (TargetStuck, TargetReplaced):
                if attempt == len(_STOP_S):
                    raise
            except CannotFreeze:
                if not self._fall_back:
                    raise
                return self._attempt(identity, stop_s, copy_all=True)
            time.sleep(_PAUSE_S)
        raise AssertionError("the last attempt raises")

    def _attempt(self, identity: Identity, stop_s: float, *, copy_all: bool) -> Snapshot:
        request = Request(identity, self.own_device, self._copy_bytes, self._memory_bytes, copy_all, stop_s)
        patience_s = _WORKER_S + self._copy_bytes * _WORKER_S_PER_BYTE
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            patience_s += read_status(identity.pid).resident_bytes * _WORKER_S_PER_BYTE
        frozen, descriptors, hold = self._workers.take(request, patience_s)
        if frozen.why_bound and not self._told_of_bound:
            self._told_of_bound = True
            log.warning(
                "a snapshot of process %d stays in a cgroup that is killed as a whole (%s)",
                identity.pid,
                frozen.why_bound,
            )
        with self._lock:
            id_ = SnapshotId(identity, next(self._serials))
        let_go = functools.partial(self._workers.let_go, hold)
        snapshot = Snapshot(id_, frozen, descriptors, let_go, self._forget)
        with self._lock:
            self._held[id_] = snapshot
        for missing in find_missing(frozen.parts):
            log.warning(
                "a snapshot of process %d lacks %d KiB: %s",
                identity.pid,
                missing.size_bytes >> 10,
                missing.reason,
            )
        return snapshot

    def _forget(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._held.pop(snapshot.id, None)
            if self._shared.get(snapshot.id.identity) is snapshot:
                del self._shared[snapshot.id.identity]
