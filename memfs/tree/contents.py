"""What is in the files of the tree: memory and texts as sources, where links lead, extended attributes.

It knows nodes, and nothing of names and directories. What is read of a process that runs is what /proc
says at the moment of the question, and these calls may block with it.
"""

import errno

from memfs.errors import NoSuchEntry, TargetExited
from memfs.image.memory import Memory
from memfs.image.source import Source
from memfs.image.text import Text
from memfs.linux.span import Span
from memfs.linux.status import read_status
from memfs.snapshot.core import open_core, size_core
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot, SnapshotId
from memfs.target.identity import describe
from memfs.target.layout import Region
from memfs.target.origins import Device
from memfs.target.process import AddressSpace
from memfs.target.space import Space
from memfs.target.vmaflags import VmaFlagsCache
from memfs.tree.inodes import is_vma
from memfs.tree.looks import Looks
from memfs.tree.names import SNAPSHOT_XATTR
from memfs.tree.nodes import Fixed, Name, Node, Owner, ProcessNode, SinceNode, VmaNode, identity_of
from memfs.tree.vmas import NAMES, SeenVmas, attributes_of
from memfs.vmanames import name_of

REGION_LINKS = (Name.HEAP, Name.STACK, Name.TEXT)
"""Links whose target only a look into the process tells."""

_WATCHED_BYTES = 16 << 20
"""Files from this size on are likely to be read in long pieces: worth a watch for an exec."""

_SELF = Fixed(Name.SELF)


class Contents:
    """The contents of all nodes.

    Attributes:
        own_device: that of the mount which shows them; None as long as there is none.
        looks: what was opened of processes a moment ago.
        seen: what was seen of VMAs a moment ago.
    """

    def __init__(self, snapshots: Snapshots, *, full_cores: bool) -> None:
        """Show *snapshots* too. *full_cores* leaves nothing out of a core file that can be read."""
        self.own_device: Device | None = None
        self._snapshots = snapshots
        self._full_cores = full_cores
        self._flags = VmaFlagsCache()
        self.looks = Looks(self._flags)
        self.seen = SeenVmas()

    def read_link(self, node: Node, caller: int) -> bytes:
        """Where the symbolic link *node* leads; *caller* is the pid or tid of who asks.

        Raises:
            NoSuchEntry: it leads nowhere, or not for this caller.
        """
        if node == _SELF:
            try:
                return b"%d" % read_status(caller).process
            except (FileNotFoundError, ProcessLookupError):
                raise NoSuchEntry("the reader is in another pid namespace") from None
        if not isinstance(node, ProcessNode):
            raise NoSuchEntry("it is no link")
        if node.name not in REGION_LINKS:
            return link_target(node, None)
        with self.space(node.owner) as space:
            return link_target(node, space)

    def open(self, node: Node) -> Source:
        """The content of the file *node*, as a source that the caller closes.

        Raises:
            MemfsError: the process or the mapping is gone, or may not be read.
        """
        if isinstance(node, VmaNode):
            return self._open_memory(node.owner, node)
        if isinstance(node, ProcessNode) and node.name is Name.MEM:
            return self._open_memory(node.owner, None)
        if isinstance(node, ProcessNode) and node.name is Name.CORE:
            return self._open_core(node.owner)
        if isinstance(node, SinceNode):
            return Text(self.since_text(node))
        if isinstance(node, ProcessNode) and node.name is Name.INFO:
            return Text(self.frozen(node.owner).info)
        if isinstance(node, ProcessNode) and node.name is Name.MAPS:
            with self.space(node.owner) as space:
                return Text(space.maps_text())
        raise IsADirectoryError(errno.EISDIR, "it is no regular file")

    def _open_memory(self, owner: Owner, node: VmaNode | None) -> Source:
        watched = node is None or node.end - node.start >= _WATCHED_BYTES
        space = self.space(owner, memory=True, watched=watched)
        try:
            if node is None:
                return Memory(space, space.layout(), Span(0, space.end()), flat=True)
            span = Span(node.start, node.end)
            layout = space.layout_over(span)
            ensure_shown(node, layout.at(node.start))
            return Memory(space, layout, span, flat=False)
        except BaseException:
            space.close()
            raise

    def _open_core(self, owner: Owner) -> Source:
        if isinstance(owner, SnapshotId):
            return open_core(self._snapshots.get(owner), full=self._full_cores)
        snapshot = self._snapshots.share(owner)
        try:
            return open_core(snapshot, full=self._full_cores)
        finally:
            snapshot.drop()

    def extended_attributes(self, node: Node, *, use: bool = True) -> dict[bytes, bytes]:
        """All extended attributes of *node* by name, those that are not listed too.

        Without *use* those of USE_NAMES are left out: the kernel tells them of all VMAs or of none.
        """
        if not isinstance(node, VmaNode):
            return self._snapshot_mark(node)
        with self.space(node.owner) as space:
            region = region_of(space, node)
            mapping = region.mapping
            found = self.seen.use_of(node, space) if use else None
        return {**attributes_of(mapping, found), **self._snapshot_mark(node)}

    def _snapshot_mark(self, node: Node) -> dict[bytes, bytes]:
        if isinstance(node, ProcessNode | VmaNode) and isinstance(node.owner, SnapshotId):
            return {SNAPSHOT_XATTR: self._snapshots.get(node.owner).mark}
        return {}

    def space(self, owner: Owner, *, memory: bool = False, watched: bool = False) -> Space:
        """The address space of a process or a snapshot, which the caller closes.

        With *watched*, long reads of it are faster, see :class:`AddressSpace`.

        Raises:
            NoSuchEntry: it has ended, or was let go.
            AccessDenied: it may not be looked into.
        """
        if isinstance(owner, SnapshotId):
            return self._snapshots.get(owner).open()
        try:
            if not watched:
                return self.looks.space(owner, memory=memory, own_device=self.own_device)
            return AddressSpace(owner, self._flags, memory=memory, watched=True, own_device=self.own_device)
        except TargetExited as error:
            # Nothing is open yet: for who comes by name, a process that has ended is not there.
            raise NoSuchEntry(error.sentence) from None

    def core_bytes(self, owner: Owner) -> int:
        """The size of a core file; of a live one that is not open, what it may be at most."""
        if isinstance(owner, SnapshotId):
            return size_core(self._snapshots.get(owner), full=self._full_cores)
        shared = self._snapshots.shared(owner)
        if shared is not None:
            return size_core(shared, full=self._full_cores)
        return describe(owner.pid)[1].address_bytes

    def since_text(self, node: SinceNode) -> bytes:
        """The names of both snapshots, and what changed from the earlier to this one."""
        mine = self._snapshots.get(node.owner)
        earlier = self._snapshots.get(SnapshotId(node.owner.identity, node.serial))
        changes = mine.history.changes_since(earlier, mine)
        return b"# %s %s\n" % (earlier.mark, mine.mark) + changes.text

    def frozen(self, owner: Owner) -> Snapshot:
        """The snapshot that *owner* is.

        Raises:
            NoSuchEntry: it is none, or was let go.
        """
        if not isinstance(owner, SnapshotId):
            raise NoSuchEntry(f"process {owner.pid} is not frozen")
        return self._snapshots.get(owner)


_XATTR_NAMES = b"".join(name + b"\0" for name in NAMES)


def attribute_names(number: int) -> bytes:
    """The names of all extended attributes of the inode *number*, each ended by a NUL.

    Neither the process nor a table is looked at: VMA files have attributes, and nothing else has.
    """
    return _XATTR_NAMES if is_vma(number) else b""


def region_of(space: Space, node: VmaNode) -> Region:
    """The region that *node* is the file of.

    Raises:
        NoSuchEntry: there is none any more.
    """
    return ensure_shown(node, space.region_at(node.start))


def ensure_shown(node: VmaNode, region: Region | None) -> Region:
    """*region*, if *node* is the file of it.

    Raises:
        NoSuchEntry: it is not.
    """
    if region is None or not region.has_file or region.span != Span(node.start, node.end):
        pid = identity_of(node.owner).pid
        raise NoSuchEntry(f"process {pid} maps nothing from {node.start:#x} to {node.end:#x} any more")
    return region


def link_target(node: ProcessNode, space: Space | None) -> bytes:
    """Where the link *node* leads; *space* is needed for those of REGION_LINKS.

    Raises:
        NoSuchEntry: nowhere.
    """
    pid = identity_of(node.owner).pid
    if node.name is Name.PROC:
        return b"/proc/%d" % pid
    if node.name is Name.NAME_LINK:
        return b"../../%d" % pid
    region = None
    if space is not None:
        region = {Name.HEAP: space.heap, Name.STACK: space.stack, Name.TEXT: space.text}[node.name]()
    if region is None or not region.has_file:
        raise NoSuchEntry(f"process {pid} has no {node.name.name.lower()}")
    return b"vmas/" + name_of(region.mapping)
