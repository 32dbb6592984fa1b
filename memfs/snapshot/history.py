"""Snapshots of one process as a history: what changed from one to the next, and when each content last did.

What was once told of a snapshot is remembered with it, so that it stays when the earlier ones go.
"""

import threading
from typing import TYPE_CHECKING

import attrs

from memfs.errors import TargetExited
from memfs.snapshot.changes import Changes, Frames, compare
from memfs.snapshot.values import Fate
from memfs.vmanames import name_of

if TYPE_CHECKING:
    from memfs.snapshot.snapshot import Snapshot

_SECOND_NS = 1_000_000_000
_KEPT = (Fate.FROZEN, Fate.COPIED)


@attrs.frozen
class Times:
    """When contents last changed, as far as earlier snapshots tell; in nanoseconds since the epoch.

    Attributes:
        by_start: of the VMAs that have the same name in the snapshot before, by their start address.
        flat: of the whole address space.
        maps: of the list of mappings.
    """

    by_start: dict[int, int]
    flat: int
    maps: int


class History:
    """What is known of one snapshot and the ones before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: dict[int, Changes] = {}
        self._times: Times | None = None

    def changes_since(self, earlier: "Snapshot", mine: "Snapshot") -> Changes:
        """What of *mine* is not proven to be as it was in *earlier*.

        Raises:
            TargetExited: one of the copies is gone.
        """
        with self._lock:
            return self._changes_since(earlier, mine)

    def _changes_since(self, earlier: "Snapshot", mine: "Snapshot") -> Changes:
        known = self._changes.get(earlier.id.serial)
        if known is None:
            with earlier.open(), mine.open():
                known = compare(_frames(earlier), _frames(mine))
            self._changes[earlier.id.serial] = known
        return known

    def times(self, mine: "Snapshot", before: "Snapshot | None") -> Times:
        """When the contents of *mine* last changed; *before* is the snapshot before it, if that stands."""
        with self._lock:
            if self._times is None:
                self._times = self._find_times(mine, before)
            return self._times

    @property
    def has_times(self) -> bool:
        """Whether they have been told: they do not change any more."""
        return self._times is not None

    def _find_times(self, mine: "Snapshot", before: "Snapshot | None") -> Times:
        taken_ns = mine.frozen.taken_ns
        if before is None:
            return Times({}, taken_ns, taken_ns)
        try:
            changes = self._changes_since(before, mine)
        except TargetExited:
            changes = Changes(part.region.span for part in mine.frozen.parts)
        older = before.history.times(before, None)
        same_layout = before.frozen.maps_text == mine.frozen.maps_text
        same = same_layout and next(iter(changes), None) is None
        names = {name_of(part.region.mapping) for part in before.frozen.parts}
        by_start = {}
        for part in mine.frozen.parts:
            region = part.region
            if name_of(region.mapping) in names:
                known_ns = older.by_start.get(region.span.start, before.frozen.taken_ns)
                changed = part.fate not in _KEPT or changes.meet(region.span)
                by_start[region.span.start] = _later(known_ns, taken_ns) if changed else known_ns
        return Times(
            by_start,
            older.flat if same else _later(older.flat, taken_ns),
            older.maps if same_layout else _later(older.maps, taken_ns),
        )


def _later(before_ns: int, taken_ns: int) -> int:
    """When what was changed by then is said to have changed: not in the same second as before.

    rsync(1) compares whole seconds, and would take two contents of one second for one.
    """
    return max(taken_ns, (before_ns // _SECOND_NS + 1) * _SECOND_NS)


def _frames(snapshot: "Snapshot") -> Frames:
    return Frames(snapshot.frozen, snapshot.copy, snapshot.aside, snapshot.quiet_files)
