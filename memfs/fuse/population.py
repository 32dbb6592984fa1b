"""Who there is: the processes that the tree shows."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress

from memfs.errors import NoSuchEntry
from memfs.fuse.inodes import Owner
from memfs.linux import procfs
from memfs.snapshot.registry import Snapshots
from memfs.target.identity import Identity, describe
from memfs.target.layout import safe_name


class Population:
    """The processes that run, but for those that are frozen copies."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def processes(self) -> Iterator[tuple[Identity, procfs.Stat]]:
        """The processes that have memory, in order of their pid; frozen copies are none."""
        copies = self._snapshots.copies()
        for pid in procfs.process_ids():
            if pid not in copies:
                with suppress(NoSuchEntry):
                    yield describe(pid)

    def find_process(self, pid: int) -> tuple[Identity, procfs.Stat]:
        """The process with that number, which is none of a thread."""
        with suppress(FileNotFoundError, ProcessLookupError):
            if procfs.read_status(pid).process == pid and pid not in self._snapshots.copies():
                return describe(pid)
        raise NoSuchEntry(f"there is no process {pid}")

    def owners(self) -> AbstractSet[Owner | bytes]:
        """Who owns inode numbers now: processes, snapshots, and names of processes."""
        alive: set[Owner | bytes] = {*self._snapshots.owners(), *self._snapshots.ids()}
        for identity, stat in self.processes():
            alive.add(identity)
            alive.add(comm_of(stat))
        return alive


def comm_of(stat: procfs.Stat) -> bytes:
    """The name of a process as the tree writes it."""
    return safe_name(stat.comm)
