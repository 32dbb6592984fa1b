"""Several threads that read large pieces of one source: two copy 1.9 times as fast as one on two CPUs."""

import os
import threading
from collections.abc import Sequence

from memfs.image.source import Source, Workspace

_MOST_THREADS = 4
_FEW_PIECES = 4
"""So few are read sooner than threads start."""

Piece = tuple[int, memoryview]
"""An offset, and what is read into from there on."""


class Readers:
    """Its threads live no longer than a read, and so have the priority of whoever asks for it."""

    def __init__(self) -> None:
        count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._workspaces = [Workspace() for _ in range(count)]

    def close(self) -> None:
        """Give all descriptors back."""
        for workspace in self._workspaces:
            workspace.close()

    def read(self, source: Source, pieces: Sequence[Piece]) -> None:
        """Fill all *pieces*.

        Raises:
            MemfsError, OSError: some of it cannot be read.
        """
        count = len(self._workspaces) if len(pieces) > _FEW_PIECES else 1
        errors: list[BaseException] = []

        def work(first: int, workspace: Workspace) -> None:
            try:
                for offset, view in pieces[first::count]:
                    source.read_into(offset, view, workspace)
            except BaseException as error:  # noqa: BLE001 - it is raised again where it was asked for
                errors.append(error)

        others = [
            threading.Thread(target=work, args=(first, self._workspaces[first])) for first in range(1, count)
        ]
        for thread in others:
            thread.start()
        work(0, self._workspaces[0])
        for thread in others:
            thread.join()
        if errors:
            raise errors[0]
