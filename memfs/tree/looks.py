"""Looks at processes: what several requests about one process in a row need is opened once.

`cp -r` of a process with 2,000 mappings looks each of them up, asks for its attributes and opens it, and each
time the process has to be opened, checked and described. So what was opened is kept for a moment. It is given
again only while the process runs the same program as far as its stat tells; and what is open of an mm never
shows another one. So a name, an attribute and the mm of an open file are those of at most so long ago.
"""

import threading
import time

from memfs.errors import TargetExited
from memfs.linux.status import Status
from memfs.target.identity import Identity, read_status
from memfs.target.origins import Device
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache

_KEPT_S = 0.01
_MOST_KEPT = 16


class Looks:
    """The looks of a moment. Many threads use it; no lock is held while a process is looked at."""

    def __init__(self, flags: VmaFlagsCache) -> None:
        self._flags = flags
        self._lock = threading.Lock()
        self._spaces: dict[tuple[Identity, bool], tuple[float, AddressSpace]] = {}
        self._statuses: dict[Identity, tuple[float, Status]] = {}

    def space(self, identity: Identity, *, memory: bool, own_device: Device | None) -> AddressSpace:
        """The address space of a process, for someone who closes it; see :class:`AddressSpace`.

        Raises:
            TargetExited, TargetReplaced, AccessDenied: it cannot be had.
        """
        for has_memory in (True,) if memory else (True, False):
            until, kept = self._spaces.get((identity, has_memory), _NO_SPACE)
            if kept is not None and time.monotonic() < until and (again := kept.again()) is not None:
                return again
        space = AddressSpace(identity, self._flags, memory=memory, own_device=own_device)
        try:
            again = space.again()
        except TargetExited:
            space.close()
            raise
        if again is not None:
            with self._lock:
                _, replaced = self._spaces.get((identity, memory), _NO_SPACE)
                self._spaces[identity, memory] = time.monotonic() + _KEPT_S, again
            if replaced is not None:
                replaced.close()
            if len(self._spaces) > _MOST_KEPT:
                self.forget_old()
        return space

    def status(self, identity: Identity) -> Status:
        """Whose process it is, and how much memory it holds, now or a moment ago.

        Raises:
            OSError: it has ended.
        """
        until, kept = self._statuses.get(identity, _NO_STATUS)
        if kept is not None and time.monotonic() < until:
            return kept
        status = read_status(identity.pid)
        with self._lock:
            self._statuses[identity] = time.monotonic() + _KEPT_S, status
        return status

    def forget_old(self) -> bool:
        """Close what has been kept for long enough; to be called now and then, until nothing is left.

        Returns whether something is.
        """
        now = time.monotonic()
        with self._lock:
            old = [key for key, (until, _) in self._spaces.items() if until <= now]
            spaces = [self._spaces.pop(key)[1] for key in old]
            for identity in [key for key, (until, _) in self._statuses.items() if until <= now]:
                del self._statuses[identity]
            is_left = bool(self._spaces or self._statuses)
        for space in spaces:
            space.close()
        return is_left


_NO_SPACE: tuple[float, AddressSpace | None] = 0.0, None
_NO_STATUS: tuple[float, Status | None] = 0.0, None
