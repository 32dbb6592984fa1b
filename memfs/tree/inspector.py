"""What stat(2) tells of each node, found by looking at its process or its snapshot.

It knows nodes and spaces, and nothing of names and directories. No more is read of a process than the
question needs: for most nodes who it is and whose, for a VMA file that VMA alone.
"""

import os
import stat as stat_module
import time
from collections.abc import Callable, Sequence
from typing import overload

from memfs.errors import NoSuchEntry
from memfs.image.residency import ResidencyCounter, held_by_region
from memfs.linux.span import PAGE_BYTES
from memfs.linux.stat import Stat
from memfs.linux.status import Status
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import SnapshotId
from memfs.target.identity import describe
from memfs.target.layout import Kind, Region
from memfs.target.space import Space
from memfs.tree.attributes import (
    DIRECTORY,
    FILE,
    LINK,
    OPEN_DIRECTORY,
    SNAPSHOT_DIRECTORY,
    Attributes,
    Entry,
    Ownership,
)
from memfs.tree.contents import REGION_LINKS, Contents, link_target, region_of
from memfs.tree.inodes import Inodes
from memfs.tree.nodes import Fixed, Name, Node, Owner, ProcessNode, SinceNode, VmaNode
from memfs.vmanames import name_of

_BLOCK_BYTES = 512
_NAME_TIMEOUT_S = 0.5
_PID_TIMEOUT_S = 0.1
_TICK_NS = 10_000_000  # USER_HZ is 100 on every architecture that memfs runs on

_SELF = Fixed(Name.SELF)
_LINKS = (*REGION_LINKS, Name.PROC, Name.NAME_LINK)
_TIMED = (Name.MEM, Name.MAPS)
_NEED_SPACE = (*REGION_LINKS, Name.MEM, Name.MAPS)


class Inspector:
    """The attributes of all nodes."""

    def __init__(self, snapshots: Snapshots, contents: Contents, inodes: Inodes) -> None:
        """Ask *snapshots* and *contents* about what is in them; the numbers are those of *inodes*."""
        self._snapshots = snapshots
        self._contents = contents
        self._inodes = inodes
        self._residency = ResidencyCounter()
        self._boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._mine = Ownership(os.geteuid(), os.getegid(), time.time_ns(), 0, live=True)

    def attributes(self, node: Node) -> Attributes:
        """What stat(2) tells of *node*.

        Raises:
            MemfsError: the process or the mapping is gone, or may not be looked into.
        """
        if isinstance(node, ProcessNode):
            ownership = self.ownership(node.owner)
            if node.name in _NEED_SPACE:
                with self._contents.space(node.owner) as space:
                    return self._attributes_in(node, ownership, space)
            return self._attributes_in(node, ownership, None)
        if isinstance(node, VmaNode):
            with self._contents.space(node.owner) as space:
                return self.vma_entry(node.owner, space, region_of(space, node)).attributes
        if isinstance(node, SinceNode):
            size = len(self._contents.since_text(node))
            return self._describe(node, FILE, self.ownership(node.owner), size_bytes=size, held_bytes=size)
        return self._describe(node, LINK if node == _SELF else OPEN_DIRECTORY, self._mine)

    def listed(self, node: ProcessNode, ownership: Ownership, space: Space | None = None) -> Attributes:
        """What a listing tells of *node*, whose owner has this *ownership* and, if it is needed, *space*.

        The size of a live process's maps is that of a text which the kernel would have to write: it is
        told to who asks for that file.

        Raises: as :meth:`attributes`.
        """
        if node.name is Name.MAPS and ownership.live:
            return self._describe(node, FILE, ownership, settled=False)
        return self._attributes_in(node, ownership, space)

    def ownership(
        self,
        owner: Owner,
        stat: Stat | None = None,
        status: Status | None = None,
    ) -> Ownership:
        """Who owns the files of a process or a snapshot, now or a moment ago.

        *stat* and *status* are those of the process that has the pid now, if they have been read already.

        Raises:
            NoSuchEntry: it has ended, or was let go.
        """
        if isinstance(owner, SnapshotId):
            frozen = self._snapshots.get(owner).frozen
            return _ownership_of(frozen.owner, frozen.taken_ns, live=False)
        began_ns = self._boot_ns + owner.start_ticks * _TICK_NS
        try:
            if (stat or describe(owner.pid)[1]).start_ticks == owner.start_ticks:
                status = status or self._contents.looks.status(owner)
                return _ownership_of(status, began_ns, live=True)
        except (FileNotFoundError, ProcessLookupError, NoSuchEntry):
            pass
        for _, id_ in self._snapshots.names(owner):
            return _ownership_of(self._snapshots.get(id_).frozen.owner, began_ns, live=False)
        raise NoSuchEntry(f"process {owner.pid} has ended")

    def vma_entry(self, owner: Owner, space: Space, region: Region) -> Entry:
        """The file of *region*, of which alone something is asked in *space*."""
        held = self._residency.held_bytes(owner, space, region.span)
        return self._vma_describer(owner, space)(region, held)

    def vma_entries(self, owner: Owner) -> Sequence[Entry]:
        """The files of all VMAs, in order.

        Raises:
            MemfsError: the process has ended, or may not be looked into.
        """
        with self._contents.space(owner) as space:
            regions = [region for region in space.layout().regions if region.has_file]
            describe_vma = self._vma_describer(owner, space)
            self._inodes.expect_vmas(owner, len(regions))
            return _VmaEntries(describe_vma, regions, held_by_region(space, regions))

    def _attributes_in(self, node: ProcessNode, ownership: Ownership, space: Space | None) -> Attributes:
        held, settled = 0, True
        if node.name in (Name.PROCESS, Name.VMAS, Name.SINCE):
            return self._describe(node, DIRECTORY, ownership)
        if node.name is Name.SNAPSHOTS:
            return self._describe(node, SNAPSHOT_DIRECTORY, ownership)
        if node.name is Name.INFO:
            size = len(self._contents.frozen(node.owner).info)
        elif node.name is Name.CORE:
            size, held = self._contents.core_bytes(node.owner), ownership.held_bytes
            settled = not ownership.live
        elif space is None or node.name in _LINKS:
            return self._describe(node, LINK, ownership, size_bytes=len(link_target(node, space)))
        elif node.name is Name.MAPS:
            size = len(space.maps_text())
        else:
            size, held = space.end(), ownership.held_bytes
            settled = not ownership.live
        time_ns = self._content_time(node)
        return self._describe(
            node, FILE, ownership, size_bytes=size, held_bytes=held, mtime_ns=time_ns, settled=settled
        )

    def _vma_describer(self, owner: Owner, space: Space) -> "_VmaDescriber":
        ownership = self.ownership(owner, space.stat)
        time_of = self._region_times(owner)

        def describe_vma(region: Region, resident: int) -> Entry:
            span = region.mapping.span
            node = VmaNode(owner, span.start, span.end)
            # tar -S takes a file without a block for a hole all through, and does not read it.
            held = resident or (0 if region.kind is Kind.ANONYMOUS else PAGE_BYTES)
            attributes = self._describe(
                node, FILE, ownership, size_bytes=span.size, held_bytes=held, mtime_ns=time_of(span.start)
            )
            return Entry(name_of(region.mapping), node, attributes)

        return describe_vma

    def _describe(
        self,
        node: Node,
        mode: int,
        ownership: Ownership,
        *,
        size_bytes: int = 0,
        held_bytes: int = 0,
        mtime_ns: int | None = None,
        settled: bool = True,
    ) -> Attributes:
        """The attributes of *node*.

        *mtime_ns* is when its content last changed, where that is known; *settled*: whether its size is.
        """
        if mtime_ns is None:
            mtime_ns = time.time_ns() if ownership.live and stat_module.S_ISREG(mode) else ownership.ctime_ns
        is_pid = isinstance(node, ProcessNode) and node.name is Name.PROCESS
        timeout_s = _PID_TIMEOUT_S if is_pid else _NAME_TIMEOUT_S
        return Attributes(
            number=self._inodes.number_of(node),
            mode=mode,
            uid=ownership.uid,
            gid=ownership.gid,
            size_bytes=size_bytes,
            blocks=-(-held_bytes // _BLOCK_BYTES),
            mtime_ns=mtime_ns,
            ctime_ns=ownership.ctime_ns,
            name_timeout_s=timeout_s if settled else 0,
            settled=settled,
        )

    def _content_time(self, node: ProcessNode) -> int | None:
        """When *node* of a snapshot last changed, as far as is known; None for now, or when taken."""
        if not isinstance(node.owner, SnapshotId) or node.name not in _TIMED:
            return None
        times = self._snapshots.content_times(self._snapshots.get(node.owner))
        return times.flat if node.name is Name.MEM else times.maps

    def _region_times(self, owner: Owner) -> Callable[[int], int | None]:
        """The same for VMAs, by the address at which they begin."""
        if not isinstance(owner, SnapshotId):
            return lambda _: None
        snapshot = self._snapshots.get(owner)
        times = self._snapshots.content_times(snapshot).by_start
        return lambda start: times.get(start, snapshot.frozen.taken_ns)


_VmaDescriber = Callable[[Region, int], Entry]
"""The entry of a region, given how many of its bytes are held."""


class _VmaEntries(Sequence[Entry]):
    """Entries that are made one by one when they are asked for, by looking at nothing any more.

    A listing is sent in small batches: entries of 60,000 VMAs, all at once, would take some 40 MiB.
    """

    def __init__(self, describe_vma: _VmaDescriber, regions: Sequence[Region], held: Sequence[int]) -> None:
        """*held*: how many bytes of each of *regions* are in memory or swapped out."""
        self._describe = describe_vma
        self._regions = regions
        self._held = held

    def __len__(self) -> int:
        return len(self._regions)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._describe(self._regions[index], self._held[index])


def _ownership_of(status: Status, ctime_ns: int, *, live: bool) -> Ownership:
    held_bytes = status.resident_bytes + status.swapped_bytes
    return Ownership(status.uid, status.gid, ctime_ns, held_bytes, live)
