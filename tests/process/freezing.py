"""How the tests of this directory freeze a process: by real workers, without a mount."""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from memfs.snapshot.forkserver import ForkServer
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.snapshot.values import DEFAULT_COPY_BYTES
from memfs.target.identity import identify

LARGE_COPY_BYTES = 1 << 30
"""Enough for everything that a holder shares with others."""


@contextmanager
def snapshots(
    *, copy_bytes: int = DEFAULT_COPY_BYTES, memory_bytes: int | None = None, fall_back: bool = False
) -> Iterator[Snapshots]:
    """A registry whose workers end with the ``with`` block."""
    server = ForkServer()
    registry = Snapshots(
        server.connect, copy_bytes=copy_bytes, memory_bytes=memory_bytes, fall_back=fall_back
    )
    try:
        yield registry
    finally:
        registry.close()
        server.close()


@attrs.define
class Freezer:
    """Freezes each process once, by fork or by copying all of it, and keeps what it has."""

    _registry: Snapshots
    _held: dict[tuple[int, bool], Snapshot] = attrs.field(factory=dict)

    def freeze(self, pid: int, *, copy_all: bool) -> Snapshot:
        """The snapshot of *pid*, taken when it was first asked for."""
        found = self._held.get((pid, copy_all))
        if found is None:
            found = self._registry._attempt(identify(pid), 1.0, copy_all=copy_all)
            self._held[pid, copy_all] = found
        return found

    def let_go(self) -> None:
        """Let all of them go."""
        while self._held:
            self._held.popitem()[1].drop(wait=True)
