"""The file tree: names and attributes of what is in it, without a mount.

What its files hold is in `contents`.

It answers in values and raises MemfsError; it knows neither pyfuse3 nor open files. Nothing is kept
between two calls but inode numbers and snapshots: the tree is what /proc says at the moment of the
question. Calls that look into a process may block, on its memory map being changed or on a dead
server: they belong in a thread.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from memfs.errors import NoSuchEntry
from memfs.fuse.attributes import (
    DIRECTORY,
    FILE,
    LINK,
    OPEN_DIRECTORY,
    SNAPSHOT_DIRECTORY,
    Attributes,
    Entry,
    Ownership,
    describe_node,
)
from memfs.fuse.contents import REGION_LINKS, Contents, link_target, region_of
from memfs.fuse.inodes import (
    CommDir,
    Fixed,
    Inodes,
    Name,
    Node,
    Owner,
    ProcessNode,
    SinceNode,
    VmaNode,
    identity_of,
)
from memfs.fuse.names import SINCE_NAME
from memfs.fuse.population import Population, comm_of
from memfs.image.memory import resident_bytes
from memfs.linux import procfs
from memfs.linux.pagemap import Scanner
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import SnapshotId
from memfs.target.identity import Identity, describe
from memfs.target.layout import Kind, Region, name_of, start_of
from memfs.target.space import Space

_TICK_NS = 10_000_000  # USER_HZ is 100 on every architecture that memfs runs on
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
        self._boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._mine = Ownership(os.geteuid(), os.getegid(), time.time_ns(), 0, live=True)

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
            if all(comm_of(stat) != name for _, stat in self._population.processes()):
                raise NoSuchEntry(f"no process is called {_show(name)}")
            return self._comm_entry(name)
        if isinstance(parent, CommDir):
            identity, stat = self._population.find_process(_parse_number(name))
            if comm_of(stat) != parent.comm:
                raise NoSuchEntry(f"process {identity.pid} is not called {_show(parent.comm)}")
            return self._name_link_entry(identity)
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

    def list(self, node: Node) -> list[Entry]:
        """All entries of the directory *node*, in order.

        Raises:
            MemfsError: the process has ended, or may not be looked into.
        """
        return list(self._entries(node))

    def _entries(self, node: Node) -> Iterator[Entry]:
        if node == _ROOT:
            yield from map(self._fixed_entry, _ROOT_NAMES)
            yield from self._process_entries()
        elif node == _BY_NAME:
            yield from map(
                self._comm_entry, sorted({comm_of(stat) for _, stat in self._population.processes()})
            )
        elif isinstance(node, CommDir):
            for identity, stat in self._population.processes():
                if comm_of(stat) == node.comm:
                    with suppress(NoSuchEntry):
                        yield self._name_link_entry(identity)
        elif isinstance(node, ProcessNode) and node.name is Name.PROCESS:
            yield from self._entries_of(node.owner)
        elif isinstance(node, ProcessNode) and node.name is Name.VMAS:
            yield from self._vma_entries(node.owner)
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

    def _name_link_entry(self, identity: Identity) -> Entry:
        node = ProcessNode(identity, Name.NAME_LINK)
        return Entry(b"%d" % identity.pid, node, self.attributes(node))

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

    def _process_entry(self, identity: Identity, stat: procfs.Stat | None = None) -> Entry:
        node = ProcessNode(identity, Name.PROCESS)
        ownership = self._ownership(identity, stat)
        return Entry(b"%d" % identity.pid, node, self._describe(node, DIRECTORY, ownership))

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
        ownership = self._ownership(owner)
        try:
            space = self.contents.space(owner)
        except NoSuchEntry:
            if isinstance(owner, SnapshotId) or not self.snapshots.names(owner):
                raise
            node = ProcessNode(owner, Name.SNAPSHOTS)  # all that is left of it
            yield Entry(b"snapshots", node, self._attributes_in(node, ownership, None))
            return
        with space:
            for name, fixed in _names_of(owner).items():
                with suppress(NoSuchEntry):
                    node = ProcessNode(owner, fixed)
                    yield Entry(name, node, self._attributes_in(node, ownership, space))

    def _vma_entry(self, owner: Owner, name: bytes) -> Entry:
        start = start_of(name)
        if start is not None:
            with self.contents.space(owner) as space:
                region = space.region_at(start)
                if region is not None and region.has_file and name_of(region.mapping) == name:
                    resident = resident_bytes(space, region.span, Scanner())
                    return self._describe_vma(owner, region, self._ownership(owner, space.stat), resident)
        raise NoSuchEntry(f"process {identity_of(owner).pid} has no mapping {_show(name)}")

    def _vma_entries(self, owner: Owner) -> Iterator[Entry]:
        with self.contents.space(owner) as space:
            regions = [region for region in space.layout().regions if region.has_file]
            ownership = self._ownership(owner, space.stat)
            residents = _resident_byregion_of(space, regions)
        for region, resident in zip(regions, residents, strict=True):
            yield self._describe_vma(owner, region, ownership, resident)

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
        if isinstance(node, ProcessNode):
            ownership = self._ownership(node.owner)
            if node.name in _NEED_SPACE:
                with self.contents.space(node.owner) as space:
                    return self._attributes_in(node, ownership, space)
            return self._attributes_in(node, ownership, None)
        if isinstance(node, VmaNode):
            with self.contents.space(node.owner) as space:
                region = region_of(space, node)
                resident = resident_bytes(space, region.span, Scanner())
                ownership = self._ownership(node.owner, space.stat)
                return self._describe_vma(node.owner, region, ownership, resident).attributes
        if isinstance(node, SinceNode):
            size = len(self.contents.since_text(node))
            return self._describe(node, FILE, self._ownership(node.owner), size_bytes=size, held_bytes=size)
        return self._describe(node, LINK if node == _SELF else OPEN_DIRECTORY, self._mine)

    def _attributes_in(self, node: ProcessNode, ownership: Ownership, space: Space | None) -> Attributes:
        held = 0
        mtime_ns = self._content_time(node.owner, node.name)
        if node.name in (Name.PROCESS, Name.VMAS, Name.SINCE):
            return self._describe(node, DIRECTORY, ownership)
        if node.name is Name.SNAPSHOTS:
            return self._describe(node, SNAPSHOT_DIRECTORY, ownership)
        if node.name is Name.INFO:
            size = len(self.contents.frozen(node.owner).info)
        elif node.name is Name.CORE:
            size, held = self.contents.core_bytes(node.owner), ownership.held_bytes
        elif space is None or node.name in _LINKS:
            return self._describe(node, LINK, ownership, size_bytes=len(link_target(node, space)))
        elif node.name is Name.MAPS:
            size = len(space.maps_text())
        else:
            size, held = space.end(), ownership.held_bytes
        return self._describe(node, FILE, ownership, size_bytes=size, held_bytes=held, mtime_ns=mtime_ns)

    def _describe_vma(self, owner: Owner, region: Region, ownership: Ownership, resident: int) -> Entry:
        node = VmaNode(owner, region.span.start, region.span.end)
        # tar -S takes a file without a block for a hole all through, and does not read it.
        held = resident or (0 if region.kind is Kind.ANONYMOUS else PAGE_BYTES)
        attributes = self._describe(
            node,
            FILE,
            ownership,
            size_bytes=region.span.size,
            held_bytes=held,
            mtime_ns=self._content_time(owner, region),
        )
        return Entry(name_of(region.mapping), node, attributes)

    def _describe(
        self,
        node: Node,
        mode: int,
        ownership: Ownership,
        *,
        size_bytes: int = 0,
        held_bytes: int = 0,
        mtime_ns: int | None = None,
    ) -> Attributes:
        number = self.inodes.number_of(node)
        return describe_node(
            number, node, mode, ownership, size_bytes=size_bytes, held_bytes=held_bytes, mtime_ns=mtime_ns
        )

    def _content_time(self, owner: Owner, what: Name | Region) -> int | None:
        """When that content of a snapshot last changed, as far as is known; None for now, or when taken."""
        if not isinstance(owner, SnapshotId) or (what not in _TIMED and not isinstance(what, Region)):
            return None
        snapshot = self.snapshots.get(owner)
        times = self.snapshots.content_times(snapshot)
        if isinstance(what, Region):
            return times.by_start.get(what.span.start, snapshot.frozen.taken_ns)
        return times.flat if what is Name.MEM else times.maps

    def _ownership(self, owner: Owner, stat: procfs.Stat | None = None) -> Ownership:
        """Who owns the files of a process or a snapshot.

        *stat* says who has the pid now, if that has been asked already.
        """
        if isinstance(owner, SnapshotId):
            frozen = self.snapshots.get(owner).frozen
            return _ownership_of(frozen.owner, frozen.taken_ns, live=False)
        began_ns = self._boot_ns + owner.start_ticks * _TICK_NS
        try:
            if (stat or describe(owner.pid)[1]).start_ticks == owner.start_ticks:
                return _ownership_of(procfs.read_status(owner.pid), began_ns, live=True)
        except (FileNotFoundError, ProcessLookupError, NoSuchEntry):
            pass
        for _, id_ in self.snapshots.names(owner):
            return _ownership_of(self.snapshots.get(id_).frozen.owner, began_ns, live=False)
        raise NoSuchEntry(f"process {owner.pid} has ended")


_ROOT = Fixed(Name.ROOT)
_BY_NAME = Fixed(Name.BY_NAME)
_SELF = Fixed(Name.SELF)
_LINKS = (*REGION_LINKS, Name.PROC, Name.NAME_LINK)
_TIMED = (Name.MEM, Name.MAPS)
_NEED_SPACE = (*REGION_LINKS, Name.MEM, Name.MAPS)


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


def _ownership_of(status: procfs.Status, ctime_ns: int, *, live: bool) -> Ownership:
    held_bytes = status.resident_bytes + status.swapped_bytes
    return Ownership(status.uid, status.gid, ctime_ns, held_bytes, live)


def _resident_byregion_of(space: Space, regions: Sequence[Region]) -> list[int]:
    """Bytes that each of *regions*, in order, holds: one walk through the page tables for all."""
    held = [0] * len(regions)
    if not regions:
        return held
    at = 0
    for run in space.pages(Span(regions[0].span.start, regions[-1].span.end), Scanner()):
        if not run.held:
            continue
        while regions[at].span.end <= run.span.start:
            at += 1
        while at < len(regions) and regions[at].span.start < run.span.end:
            held[at] += regions[at].span.clip(run.span).size
            if regions[at].span.end > run.span.end:
                break
            at += 1
        if at == len(regions):
            break
    return held
