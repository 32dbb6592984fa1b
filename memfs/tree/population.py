"""Who there is: the processes that the tree shows."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress

from memfs.errors import NoSuchEntry
from memfs.linux import procfs
from memfs.linux.stat import Stat
from memfs.linux.status import Status, read_status
from memfs.snapshot.registry import Snapshots
from memfs.target.identity import Identity, describe
from memfs.tree.nodes import Owner
from memfs.vmanames import safe_name


class Population:
    """The processes that run, but for those that are frozen copies.

    The kernel has no index of names: who asks for one has all processes read. But of each name that was
    seen then, one bearer is remembered, and as long as that one has it no other needs to be asked.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._bearers: dict[bytes, Identity] = {}

    def processes(self) -> Iterator[tuple[Identity, Stat]]:
        """The processes that have memory, in order of their pid; frozen copies are none."""
        copies = self._snapshots.copies()
        for pid in procfs.process_ids():
            if pid not in copies:
                with suppress(NoSuchEntry):
                    yield describe(pid)

    def find_process(self, pid: int) -> tuple[Identity, Stat, Status]:
        """The process with that number, which is none of a thread.

        Raises:
            NoSuchEntry: there is none.
        """
        with suppress(FileNotFoundError, ProcessLookupError):
            if pid not in self._snapshots.copies():
                identity, stat = describe(pid)
                status = read_status(stat.thread)
                if status.process == pid:
                    return identity, stat, status
        raise NoSuchEntry(f"there is no process {pid}")

    def names(self) -> AbstractSet[bytes]:
        """What the processes are called, as the tree writes it."""
        # A new table each time: it is never longer than the list of processes.
        self._bearers = {comm_of(stat): identity for identity, stat in self.processes()}
        return self._bearers.keys()

    def has_name(self, comm: bytes) -> bool:
        """Whether any process is called so."""
        bearer = self._bearers.get(comm)
        if bearer is not None:
            with suppress(NoSuchEntry):
                identity, stat = describe(bearer.pid)
                if identity == bearer and comm_of(stat) == comm:
                    return True
        return comm in self.names()

    def owners(self) -> AbstractSet[Owner | bytes]:
        """Who owns inode numbers now: processes, snapshots, and names of processes."""
        alive: set[Owner | bytes] = {*self._snapshots.owners(), *self._snapshots.ids()}
        for identity, stat in self.processes():
            alive.add(identity)
            alive.add(comm_of(stat))
        return alive


def comm_of(stat: Stat) -> bytes:
    """The name of a process as the tree writes it."""
    return safe_name(stat.comm)
