"""The file tree: names, attributes and contents of what is in it, without a mount.

It answers in values and raises MemfsError; it knows neither pyfuse3 nor open files. Nothing is kept
between two calls but inode numbers: the tree is what /proc says at the moment of the question.
Calls that look into a process may block, on its memory map being changed or on a dead server: they
belong in a thread.
"""

import errno
import os
import stat as stat_module
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress

import attrs

from memfs.errors import NoSuchEntry, TargetExited
from memfs.fuse.inodes import CommDir, Fixed, Inodes, Name, Node, Owner, ProcessNode, VmaNode
from memfs.fuse.names import XATTR_PREFIX
from memfs.image.memory import Memory, resident_bytes
from memfs.image.source import Source
from memfs.image.text import Text
from memfs.linux import procfs
from memfs.linux.pagemap import Scanner
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.identity import Identity, describe
from memfs.target.layout import Device, Kind, Region, name_of, safe_name, start_of
from memfs.target.process import AddressSpace, VmaFlagsCache

_BLOCK_BYTES = 512
_TICK_NS = 10_000_000  # USER_HZ is 100 on every architecture that memfs runs on
_PID_DIGITS = 7  # PID_MAX_LIMIT is 2**22
_NAME_TIMEOUT_S = 0.5
_PID_TIMEOUT_S = 0.1

_DIRECTORY = stat_module.S_IFDIR | 0o500
_OPEN_DIRECTORY = stat_module.S_IFDIR | 0o555
_FILE = stat_module.S_IFREG | 0o400
_LINK = stat_module.S_IFLNK | 0o777

_ROOT_NAMES = {b"by-name": Name.BY_NAME, b"self": Name.SELF}
_PROCESS_NAMES = {
    b"mem": Name.MEM,
    b"vmas": Name.VMAS,
    b"maps": Name.MAPS,
    b"heap": Name.HEAP,
    b"stack": Name.STACK,
    b"text": Name.TEXT,
    b"proc": Name.PROC,
}


@attrs.frozen
class Attributes:
    """What stat(2) tells of a node.

    Attributes:
        mtime_ns: of a file now, since live memory changes all the time; else when the process began.
        ctime_ns: when the process began. It must not move: tar takes a file whose ctime moves for
            one that was changed while it was read.
        name_timeout_s: how long the kernel may believe that the name still stands for this node.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    name_timeout_s: float


@attrs.frozen
class Entry:
    """A name in a directory, and what it stands for."""

    name: bytes
    node: Node
    attributes: Attributes


@attrs.frozen
class _Owner:
    """What all the files of a process have in common, and how much memory it holds."""

    uid: int
    gid: int
    ctime_ns: int
    held_bytes: int


class Tree:
    """The tree of all processes that /proc shows.

    Attributes:
        own_device: that of the mount which shows the tree; None as long as there is none.
    """

    def __init__(self) -> None:
        self.own_device: Device | None = None
        self.inodes = Inodes(_living)
        self._flags = VmaFlagsCache()
        self._boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._mine = _Owner(os.geteuid(), os.getegid(), time.time_ns(), 0)

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
            return self._pid_entry(*describe(_parse_pid(name)))
        if parent == _BY_NAME:
            if all(_comm_of(stat) != name for _, stat in _processes()):
                raise NoSuchEntry(f"no process is called {_show(name)}")
            return self._comm_entry(name)
        if isinstance(parent, CommDir):
            identity, stat = describe(_parse_pid(name))
            if _comm_of(stat) != parent.comm:
                raise NoSuchEntry(f"process {identity.pid} is not called {_show(parent.comm)}")
            return self._name_link_entry(identity)
        if isinstance(parent, ProcessNode) and parent.name is Name.PROCESS:
            return self._process_entry(parent.identity, name)
        if isinstance(parent, ProcessNode) and parent.name is Name.VMAS:
            return self._vma_entry(parent.identity, name)
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
            for identity, stat in _processes():
                with suppress(NoSuchEntry):
                    yield self._pid_entry(identity, stat)
        elif node == _BY_NAME:
            yield from map(self._comm_entry, sorted({_comm_of(stat) for _, stat in _processes()}))
        elif isinstance(node, CommDir):
            for identity, stat in _processes():
                if _comm_of(stat) == node.comm:
                    with suppress(NoSuchEntry):
                        yield self._name_link_entry(identity)
        elif isinstance(node, ProcessNode) and node.name is Name.PROCESS:
            with self._space(node.identity) as space:
                owner = self._owner(node.identity)
                for name, fixed in _PROCESS_NAMES.items():
                    with suppress(NoSuchEntry):
                        found = ProcessNode(node.identity, fixed)
                        yield Entry(name, found, self._process_attributes(found, owner, space))
        elif isinstance(node, ProcessNode) and node.name is Name.VMAS:
            yield from self._vma_entries(node.identity)

    def _fixed_entry(self, name: bytes) -> Entry:
        node = Fixed(_ROOT_NAMES[name])
        return Entry(name, node, self.attributes(node))

    def _comm_entry(self, name: bytes) -> Entry:
        return Entry(name, CommDir(name), self.attributes(CommDir(name)))

    def _pid_entry(self, identity: Identity, stat: procfs.Stat) -> Entry:
        node = ProcessNode(identity, Name.PROCESS)
        owner = self._owner(identity, stat)
        return Entry(b"%d" % identity.pid, node, self._make(node, _DIRECTORY, owner=owner))

    def _name_link_entry(self, identity: Identity) -> Entry:
        node = ProcessNode(identity, Name.NAME_LINK)
        return Entry(b"%d" % identity.pid, node, self.attributes(node))

    def _process_entry(self, identity: Identity, name: bytes) -> Entry:
        if name not in _PROCESS_NAMES:
            raise NoSuchEntry(f"a process has no {_show(name)}")
        node = ProcessNode(identity, _PROCESS_NAMES[name])
        return Entry(name, node, self.attributes(node))

    def _vma_entry(self, identity: Identity, name: bytes) -> Entry:
        start = start_of(name)
        if start is not None:
            with self._space(identity) as space:
                region = space.region_at(start)
                if region is not None and region.has_file and name_of(region.mapping) == name:
                    resident = resident_bytes(space, region.span, Scanner())
                    return self._describe(identity, region, self._owner(identity), resident)
        raise NoSuchEntry(f"process {identity.pid} has no mapping {_show(name)}")

    def _vma_entries(self, identity: Identity) -> Iterator[Entry]:
        with self._space(identity) as space:
            regions = [region for region in space.layout().regions if region.has_file]
            owner = self._owner(identity)
            residents = _resident_by_region(space, regions)
        for region, resident in zip(regions, residents, strict=True):
            yield self._describe(identity, region, owner, resident)

    # Attributes

    def attributes(self, node: Node) -> Attributes:
        """What stat(2) tells of *node*.

        Raises:
            MemfsError: the process or the mapping is gone, or may not be looked into.
        """
        if isinstance(node, ProcessNode):
            owner = self._owner(node.identity, describe(node.identity.pid)[1])
            if node.name in _NEED_SPACE:
                with self._space(node.identity) as space:
                    return self._process_attributes(node, owner, space)
            return self._process_attributes(node, owner, None)
        if isinstance(node, VmaNode):
            with self._space(node.identity) as space:
                region = _region(space, node)
                resident = resident_bytes(space, region.span, Scanner())
                return self._describe(node.identity, region, self._owner(node.identity), resident).attributes
        return self._make(node, _LINK if node == _SELF else _OPEN_DIRECTORY)

    def _process_attributes(self, node: ProcessNode, owner: _Owner, space: AddressSpace | None) -> Attributes:
        if node.name in (Name.PROCESS, Name.VMAS):
            return self._make(node, _DIRECTORY, owner=owner)
        if space is None or node.name in _LINKS:
            return self._make(node, _LINK, owner=owner, size_bytes=len(_link_target(node, space)))
        if node.name is Name.MAPS:
            return self._make(node, _FILE, owner=owner, size_bytes=len(space.maps_text()))
        return self._make(node, _FILE, owner=owner, size_bytes=space.end(), held_bytes=owner.held_bytes)

    def _describe(self, identity: Identity, region: Region, owner: _Owner, resident: int) -> Entry:
        node = VmaNode(identity, region.span.start)
        # tar -S takes a file without a block for a hole all through, and does not read it.
        held = resident or (0 if region.kind is Kind.ANONYMOUS else PAGE_BYTES)
        attributes = self._make(node, _FILE, owner=owner, size_bytes=region.span.size, held_bytes=held)
        return Entry(name_of(region.mapping), node, attributes)

    def _make(
        self,
        node: Node,
        mode: int,
        *,
        owner: _Owner | None = None,
        size_bytes: int = 0,
        held_bytes: int = 0,
    ) -> Attributes:
        mine = owner or self._mine
        is_pid = isinstance(node, ProcessNode) and node.name is Name.PROCESS
        return Attributes(
            number=self.inodes.number_of(node),
            mode=mode,
            uid=mine.uid,
            gid=mine.gid,
            size_bytes=size_bytes,
            blocks=-(-held_bytes // _BLOCK_BYTES),
            mtime_ns=time.time_ns() if stat_module.S_ISREG(mode) else mine.ctime_ns,
            ctime_ns=mine.ctime_ns,
            name_timeout_s=_PID_TIMEOUT_S if is_pid else _NAME_TIMEOUT_S,
        )

    def _owner(self, identity: Identity, stat: procfs.Stat | None = None) -> _Owner:
        """Who owns the files of a process; *stat* is looked at to see that it still is the same."""
        ended = NoSuchEntry(f"process {identity.pid} has ended")
        if stat is not None and stat.start_ticks != identity.start_ticks:
            raise ended
        try:
            status = procfs.read_status(identity.pid)
        except (FileNotFoundError, ProcessLookupError):
            raise ended from None
        return _Owner(
            status.uid,
            status.gid,
            self._boot_ns + identity.start_ticks * _TICK_NS,
            status.resident_bytes + status.swapped_bytes,
        )

    # Contents

    def read_link(self, node: Node, caller: int) -> bytes:
        """Where the symbolic link *node* leads; *caller* is the pid or tid of who asks.

        Raises:
            NoSuchEntry: it leads nowhere, or not for this caller.
        """
        if node == _SELF:
            try:
                return b"%d" % procfs.read_status(caller).process
            except (FileNotFoundError, ProcessLookupError):
                raise NoSuchEntry("the reader is in another pid namespace") from None
        if not isinstance(node, ProcessNode):
            raise NoSuchEntry("it is no link")
        if node.name not in _REGION_LINKS:
            return _link_target(node, None)
        with self._space(node.identity) as space:
            return _link_target(node, space)

    def open(self, node: Node) -> Source:
        """The content of the file *node*, as a source that the caller closes.

        Raises:
            MemfsError: the process or the mapping is gone, or may not be read.
        """
        if isinstance(node, VmaNode):
            return self._open_memory(node.identity, node)
        if isinstance(node, ProcessNode) and node.name is Name.MEM:
            return self._open_memory(node.identity, None)
        if isinstance(node, ProcessNode) and node.name is Name.MAPS:
            with self._space(node.identity) as space:
                return Text(space.maps_text())
        raise IsADirectoryError(errno.EISDIR, "it is no regular file")

    def _open_memory(self, identity: Identity, node: VmaNode | None) -> Source:
        space = self._space(identity, memory=True)
        try:
            if node is None:
                return Memory(space, space.layout(), Span(0, space.end()), flat=True)
            span = _region(space, node).span
            return Memory(space, space.layout_over(span), span, flat=False)
        except BaseException:
            space.close()
            raise

    def extended_attribute_names(self, node: Node) -> Sequence[bytes]:
        """The names of all extended attributes of *node*: a VMA file has them."""
        return _XATTR_NAMES if isinstance(node, VmaNode) else ()

    def extended_attributes(self, node: Node) -> dict[bytes, bytes]:
        """All extended attributes of *node* by name."""
        if not isinstance(node, VmaNode):
            return {}
        with self._space(node.identity) as space:
            region = _region(space, node)
            mapping = region.mapping
            use = space.use_of(mapping.span.start)
        values = {
            b"start": b"%012x" % mapping.span.start,
            b"end": b"%012x" % mapping.span.end,
            b"perms": str(mapping.access).encode(),
            b"offset": b"%08x" % mapping.offset,
            b"device": b"%02x:%02x" % mapping.device,
            b"inode": b"%d" % mapping.inode,
            b"path": mapping.path,
        }
        if use is not None:
            values[b"rss"] = b"%d" % use.resident_bytes
            values[b"swap"] = b"%d" % use.swapped_bytes
            values[b"flags"] = b" ".join(sorted(use.flags))
        return {XATTR_PREFIX + name: value for name, value in values.items()}

    def _space(self, identity: Identity, *, memory: bool = False) -> AddressSpace:
        try:
            return AddressSpace(identity, self._flags, memory=memory, own_device=self.own_device)
        except TargetExited as error:
            # Nothing is open yet: for who comes by name, a process that has ended is not there.
            raise NoSuchEntry(error.sentence) from None


_XATTR_NAMES = tuple(
    XATTR_PREFIX + name
    for name in (
        b"start", b"end", b"perms", b"offset", b"device", b"inode", b"path", b"rss", b"swap", b"flags",
    )
)  # fmt: skip
_ROOT = Fixed(Name.ROOT)
_BY_NAME = Fixed(Name.BY_NAME)
_SELF = Fixed(Name.SELF)
_REGION_LINKS = (Name.HEAP, Name.STACK, Name.TEXT)
_LINKS = (*_REGION_LINKS, Name.PROC, Name.NAME_LINK)
_NEED_SPACE = (*_REGION_LINKS, Name.MEM, Name.MAPS)


def _show(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))


def _comm_of(stat: procfs.Stat) -> bytes:
    return safe_name(stat.comm)


def _parse_pid(name: bytes) -> int:
    """A pid as the tree writes it: no sign, no leading zero, of a process and not of a thread."""
    if not name.isdigit() or name.startswith(b"0") or len(name) > _PID_DIGITS:
        raise NoSuchEntry(f"{_show(name)} is no process")
    pid = int(name)
    with suppress(FileNotFoundError, ProcessLookupError):
        if procfs.read_status(pid).process == pid:
            return pid
    raise NoSuchEntry(f"there is no process {pid}")


def _processes() -> Iterator[tuple[Identity, procfs.Stat]]:
    """The processes that have memory, in order of their pid."""
    for pid in procfs.process_ids():
        with suppress(NoSuchEntry):
            yield describe(pid)


def _living() -> AbstractSet[Owner]:
    """Who owns inode numbers now."""
    alive: set[Owner] = set()
    for identity, stat in _processes():
        alive.add(identity)
        alive.add(_comm_of(stat))
    return alive


def _region(space: AddressSpace, node: VmaNode) -> Region:
    region = space.region_at(node.start)
    if region is None or not region.has_file or region.span.start != node.start:
        raise NoSuchEntry(f"process {node.identity.pid} maps nothing from {node.start:#x} on any more")
    return region


def _link_target(node: ProcessNode, space: AddressSpace | None) -> bytes:
    pid = node.identity.pid
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


def _resident_by_region(space: AddressSpace, regions: Sequence[Region]) -> list[int]:
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
