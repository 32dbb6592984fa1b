"""The file tree: which names there are, and what each stands for, without a mount.

What stat(2) tells of that is in `inspector`, what files hold in `contents`.

It answers in values and raises MemfsError; it knows neither pyfuse3 nor open files. Nothing is kept
between two calls but inode numbers, snapshots and where to look first: the tree is what /proc says at
the moment of the question. Calls that look into a process may block, on its memory map being changed
or on a dead server: they belong in a thread.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import suppress

from memfs.errors import NoSuchEntry
from memfs.linux.stat import Stat
from memfs.linux.status import Status
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import SnapshotId
from memfs.target.identity import Identity, read_status
from memfs.target.layout import USER_END
from memfs.tree.attributes import Attributes, Entry
from memfs.tree.contents import Contents
from memfs.tree.inodes import Inodes, is_vma
from memfs.tree.inspector import Inspector
from memfs.tree.names import SINCE_NAME
from memfs.tree.nodes import CommDir, Fixed, Name, Node, Owner, ProcessNode, SinceNode, VmaNode, identity_of
from memfs.tree.population import Population, comm_of
from memfs.vmanames import name_of, parse_vma_name

_PID_DIGITS = 7  # PID_MAX_LIMIT is 2**22

_ROOT_NAMES = {b"by-name": Name.BY_NAME, b"self": Name.SELF}
_MEMORY_NAMES = {
    b"mem": Name.MEM,
    b"vmas": Name.VMAS,
    b"core": Name.CORE,
    b"maps": Name.MAPS,
    b"heap": Name.HEAP,
    b"stack": Name.STACK,
    b"text": Name.TEXT,
}
_PROCESS_NAMES = {**_MEMORY_NAMES, b"proc": Name.PROC, b"snapshots": Name.SNAPSHOTS}
_SNAPSHOT_NAMES = {**_MEMORY_NAMES, b"info.json": Name.INFO}


class Tree:
    """The tree of all processes that /proc shows.

    Attributes:
        contents: what is in the files.
        snapshots: those that have been taken.
    """

    def __init__(self, snapshots: Snapshots, *, full_cores: bool = False) -> None:
        """Show *snapshots* too. *full_cores* leaves nothing out of a core file that can be read."""
        self.snapshots = snapshots
        self.contents = Contents(snapshots, full_cores=full_cores)
        self._population = Population(snapshots)
        self.inodes = Inodes(self._population.owners)
        self._inspector = Inspector(snapshots, self.contents, self.inodes)

    def attribute_at_once(self, number: int, name: bytes) -> bytes | None:
        """An extended attribute of the inode *number* that was seen a moment ago; None where it was not."""
        return self.contents.seen.value(number, name, self.inodes.node_of) if is_vma(number) else None

    # Names

    def lookup(self, parent: Node, name: bytes) -> Entry:
        """The entry *name* of the directory *parent*.

        Raises:
            NoSuchEntry: there is no such name.
            MemfsError: the process has ended, or may not be looked into.
        """
        if parent == _ROOT:
            if name in _ROOT_NAMES:
                return self._fixed_entry(name)
            return self._lookup_process(_parse_number(name))
        if parent == _BY_NAME:
            if not self._population.has_name(name):
                raise NoSuchEntry(f"no process is called {_show(name)}")
            return self._comm_entry(name)
        if isinstance(parent, CommDir):
            identity, stat, status = self._population.find_process(_parse_number(name))
            if comm_of(stat) != parent.comm:
                raise NoSuchEntry(f"process {identity.pid} is not called {_show(parent.comm)}")
            return self._process_entry(identity, stat, status, Name.NAME_LINK)
        if isinstance(parent, ProcessNode) and parent.name is Name.PROCESS:
            names = _names_of(parent.owner)
            if isinstance(parent.owner, SnapshotId) and name == SINCE_NAME:
                names = {SINCE_NAME: Name.SINCE}
            if name not in names:
                raise NoSuchEntry(f"a process has no {_show(name)}")
            node = ProcessNode(parent.owner, names[name])
            return Entry(name, node, self.attributes(node))
        if isinstance(parent, ProcessNode) and parent.name is Name.VMAS:
            return self._vma_entry(parent.owner, name)
        if isinstance(parent, ProcessNode) and parent.name is Name.SNAPSHOTS:
            return self._snapshot_entry(name, self.snapshots.find(identity_of(parent.owner), name))
        if isinstance(parent, ProcessNode) and parent.name is Name.SINCE:
            id_ = self.snapshots.find(identity_of(parent.owner), name)
            return self._since_entry(name, self.contents.frozen(parent.owner).id, id_)
        raise NoSuchEntry(f"{_show(name)} is not in a directory")

    def list(self, node: Node) -> Sequence[Entry]:
        """All entries of the directory *node*, in order.

        Raises:
            MemfsError: the process has ended, or may not be looked into.
        """
        if isinstance(node, ProcessNode) and node.name is Name.VMAS:
            return self._inspector.vma_entries(node.owner)
        return list(self._entries(node))

    def _entries(self, node: Node) -> Iterator[Entry]:
        if node == _ROOT:
            yield from map(self._fixed_entry, _ROOT_NAMES)
            yield from self._process_entries()
        elif node == _BY_NAME:
            yield from map(self._comm_entry, sorted(self._population.names()))
        elif isinstance(node, CommDir):
            for identity, stat in self._population.processes():
                if comm_of(stat) == node.comm:
                    with suppress(NoSuchEntry):
                        yield self._process_entry(identity, stat, name=Name.NAME_LINK)
        elif isinstance(node, ProcessNode) and node.name is Name.PROCESS:
            yield from self._entries_of(node.owner)
        elif isinstance(node, ProcessNode) and node.name is Name.SNAPSHOTS:
            for name, id_ in self.snapshots.names(identity_of(node.owner)):
                with suppress(NoSuchEntry):
                    yield self._snapshot_entry(name, id_)
        elif isinstance(node, ProcessNode) and node.name is Name.SINCE:
            for name, id_ in self.snapshots.names(identity_of(node.owner)):
                with suppress(NoSuchEntry):
                    yield self._since_entry(name, self.contents.frozen(node.owner).id, id_)

    def _fixed_entry(self, name: bytes) -> Entry:
        node = Fixed(_ROOT_NAMES[name])
        return Entry(name, node, self.attributes(node))

    def _comm_entry(self, name: bytes) -> Entry:
        return Entry(name, CommDir(name), self.attributes(CommDir(name)))

    def _process_entries(self) -> Iterator[Entry]:
        """The processes that run, and those that have ended and left a snapshot."""
        shown = set()
        for identity, stat in self._population.processes():
            with suppress(NoSuchEntry):
                yield self._process_entry(identity, stat)
                shown.add(identity.pid)
        for identity in self.snapshots.owners():
            if identity.pid not in shown:
                with suppress(NoSuchEntry):
                    yield self._process_entry(identity)

    def _lookup_process(self, pid: int) -> Entry:
        try:
            return self._process_entry(*self._population.find_process(pid))
        except NoSuchEntry:
            for identity in self.snapshots.owners():
                if identity.pid == pid:
                    return self._process_entry(identity)
            raise

    def _process_entry(
        self,
        identity: Identity,
        stat: Stat | None = None,
        status: Status | None = None,
        name: Name = Name.PROCESS,
    ) -> Entry:
        """A process's directory, or the link of that *name* to it; *stat*, *status*: if read already."""
        node = ProcessNode(identity, name)
        ownership = self._inspector.ownership(identity, stat, status)
        return Entry(b"%d" % identity.pid, node, self._inspector.listed(node, ownership))

    def _snapshot_entry(self, name: bytes, id_: SnapshotId) -> Entry:
        node = ProcessNode(id_, Name.PROCESS)
        return Entry(name, node, self.attributes(node))

    def _since_entry(self, name: bytes, owner: SnapshotId, earlier: SnapshotId) -> Entry:
        if earlier.serial >= owner.serial:
            raise NoSuchEntry(f"{_show(name)} is no earlier snapshot")
        node = SinceNode(owner, earlier.serial)
        return Entry(name, node, self.attributes(node))

    def _entries_of(self, owner: Owner) -> Iterator[Entry]:
        """What is in the directory of a process or of a snapshot."""
        ownership = self._inspector.ownership(owner)
        try:
            space = self.contents.space(owner)
        except NoSuchEntry:
            if isinstance(owner, SnapshotId) or not self.snapshots.names(owner):
                raise
            node = ProcessNode(owner, Name.SNAPSHOTS)  # all that is left of it
            yield Entry(b"snapshots", node, self._inspector.listed(node, ownership))
            return
        with space:
            for name, fixed in _names_of(owner).items():
                with suppress(NoSuchEntry):
                    node = ProcessNode(owner, fixed)
                    yield Entry(name, node, self._inspector.listed(node, ownership, space))

    def _vma_entry(self, owner: Owner, name: bytes) -> Entry:
        found = parse_vma_name(name)
        if found is not None and found.span.start < USER_END:
            with self.contents.space(owner) as space:
                region = space.region_at(found.span.start)
                if region is not None and region.has_file and name_of(region.mapping) == name:
                    return self._inspector.vma_entry(owner, space, region)
        raise NoSuchEntry(f"process {identity_of(owner).pid} has no mapping {_show(name)}")

    # Snapshots

    def make_snapshot(self, parent: Node, name: bytes) -> Entry:
        """Take a snapshot of a process: *parent* is its directory ``snapshots``.

        Raises:
            OSError: EROFS in any other directory.
            MemfsError: it cannot be taken.
        """
        return self._snapshot_entry(name, self.snapshots.make(_snapshots_of(parent), name))

    def remove_snapshot(self, parent: Node, name: bytes) -> None:
        """Let a snapshot go.

        Raises:
            OSError: EROFS where it is something else that is to be removed.
            NoSuchEntry: there is none of that name.
        """
        self.snapshots.remove(_snapshots_of(parent), name)

    # Attributes

    def attributes(self, node: Node) -> Attributes:
        """What stat(2) tells of *node*.

        Raises:
            MemfsError: the process or the mapping is gone, or may not be looked into.
        """
        return self._inspector.attributes(node)

    def owner_of(self, node: Node) -> tuple[int, int]:
        """The uid and gid that own *node*, a file of a process or of a snapshot, now.

        Raises:
            NoSuchEntry: it has ended, or was let go; or *node* is of neither.
        """
        if not isinstance(node, ProcessNode | VmaNode | SinceNode):
            raise NoSuchEntry("it is of no process")
        with suppress(FileNotFoundError, ProcessLookupError):
            if not isinstance(node.owner, SnapshotId):
                status = read_status(node.owner.pid)
                return status.uid, status.gid
        ownership = self._inspector.ownership(node.owner)
        return ownership.uid, ownership.gid


_ROOT = Fixed(Name.ROOT)
_BY_NAME = Fixed(Name.BY_NAME)


def _show(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))


def _parse_number(name: bytes) -> int:
    """A pid as the tree writes it: no sign, no leading zero."""
    if not name.isdigit() or name.startswith(b"0") or len(name) > _PID_DIGITS:
        raise NoSuchEntry(f"{_show(name)} is no process")
    return int(name)


def _names_of(owner: Owner) -> dict[bytes, Name]:
    return _SNAPSHOT_NAMES if isinstance(owner, SnapshotId) else _PROCESS_NAMES


def _snapshots_of(parent: Node) -> Identity:
    """The process in whose directory ``snapshots`` something is to be changed."""
    if isinstance(parent, ProcessNode) and parent.name is Name.SNAPSHOTS:
        return identity_of(parent.owner)
    raise OSError(errno.EROFS, "only snapshots can be made and removed")
