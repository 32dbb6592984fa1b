"""The control plane: translates pyfuse3's calls into questions to the tree, and its answers back.

No decision is taken here. pyfuse3 knows one kind of exception, and any other would end the mount: so
every handler runs inside :func:`_translated`, which turns whatever comes into an errno. What looks
into a process runs in a thread of its own, since it may wait for that process for ever; the switch lets
only a few requests about each process come here at a time.
"""

import contextlib
import errno
import functools
import itertools
import logging
import os
import stat as stat_module
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import attrs
import pyfuse3
import trio

from memfs.errors import AccessDenied, CannotFreeze, MemfsError, TargetBusy, TooMany, errno_of
from memfs.fuse.attributes import Attributes, Entry
from memfs.fuse.backing import Backings
from memfs.fuse.cache import CacheTrail
from memfs.fuse.habits import ReadCounter, ReadHabits, read_command
from memfs.fuse.handles import Handles, OpenFile
from memfs.fuse.inodes import Name, Node, ProcessNode
from memfs.fuse.names import XATTR_PREFIX
from memfs.fuse.tree import Tree
from memfs.fuse.vmas import USE_NAMES
from memfs.image.source import Backing
from memfs.linux.span import PAGE_BYTES

log = logging.getLogger(__name__)

PREFERRED_READ_BYTES = 1 << 20
"""st_blksize: cp, cat and stdio read in pieces of this size, and so wait a 256th as often."""

NAME_BYTES = 255

MOST_REQUESTS = 1024
"""How many may be under way at once: more than the switch lets through, so that none waits here."""

_ATTRIBUTES_TIMEOUT_S = 0.5
"""How long the kernel may believe attributes that come with a name. OPEN makes it forget what has changed."""
_TIMEOUT_S_PER_VMA = 1e-4
"""Added for each name in a listing of VMAs: find and ls read all names before they look at the first."""
_MOST_REMEMBERED = 4096

_TOLD = (AccessDenied, CannotFreeze, TargetBusy, TooMany)
"""An errno alone does not say enough of these."""

P = ParamSpec("P")
T = TypeVar("T")


Handler = Callable[P, Coroutine[Any, Any, T]]  # Any, Any: what pyfuse3's own signatures say


def _translated(handler: Handler[P, T]) -> Handler[P, T]:
    """Turn every exception of *handler* into the one that pyfuse3 knows."""

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (MemfsError, OSError) as error:
            if not isinstance(error, MemfsError):
                log.debug("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(errno_of(error)) from error
        except Exception as error:
            log.exception("%s failed for no known reason", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return wrapper


@attrs.define
class _Listing:
    """An open directory and what was in it when it was last read from its beginning."""

    node: Node
    entries: Sequence[Entry]
    read: bool = False


@attrs.define
class _Opened:
    """An inode that is open: how often, and the attributes that it keeps meanwhile."""

    found: Attributes
    times: int = 0


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, handles: Handles, backings: Backings) -> None:
        super().__init__()
        self._tree = tree
        self._handles = handles
        self._backings = backings
        self._threads = trio.CapacityLimiter(MOST_REQUESTS)
        self._listings: dict[int, _Listing] = {}
        self._listing_numbers = itertools.count(1)
        self._denied: set[str] = set()
        self._habits = ReadHabits()
        self._inode_of: dict[int, int] = {}
        self._opened: dict[int, _Opened] = {}
        self._told: OrderedDict[int, Attributes] = OrderedDict()

    async def _ask(self, question: Callable[..., T], *args: object) -> T:
        try:
            return await trio.to_thread.run_sync(
                question, *args, limiter=self._threads, abandon_on_cancel=True
            )
        except _TOLD as error:
            self._log_denial(error)
            raise

    def _log_denial(self, error: MemfsError) -> None:
        """Say once for each process why it may not be read or frozen, and what would mend it."""
        sentence = str(error)
        if sentence not in self._denied:
            if len(self._denied) >= _MOST_REMEMBERED:
                self._denied.clear()
            self._denied.add(sentence)
            log.warning("%s", sentence)

    # Names and attributes

    @_translated
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if len(name) > NAME_BYTES:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        parent = self._tree.inodes.node_of(parent_inode)
        entry = await self._ask(self._tree.lookup, parent, name)
        return self._describe(entry.attributes, timeout_s=_ATTRIBUTES_TIMEOUT_S)

    @_translated
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        opened = self._opened.get(inode)
        if opened is not None:
            return _to_fuse(opened.found)
        node = self._tree.inodes.node_of(inode)
        return self._describe(await self._ask(self._tree.attributes, node))

    def _describe(self, found: Attributes, *, timeout_s: float = 0) -> pyfuse3.EntryAttributes:
        """The reply that tells *found*; the kernel may believe it for *timeout_s*, if it is settled."""
        found = self._while_open(found)
        self._tell(found)
        return _to_fuse(found, timeout_s=timeout_s if found.settled else 0)

    def _while_open(self, found: Attributes) -> Attributes:
        """A file's size and mtime stand still while it is open.

        Its size is that of what was opened, whatever became of its process: a copier would else
        make zeros of the difference. Its mtime is what was told before it was opened: tar 1.35, which
        looks before it opens a file and when it has read it, would else say that the file changed.
        """
        opened = self._opened.get(found.number)
        return found if opened is None else opened.found

    def _in_listing(self, found: Attributes) -> Attributes:
        """A listing moves no size that was told: of a file, say, that is just about to be opened."""
        found = self._while_open(found)
        told = self._told.get(found.number)
        if found.settled or told is None:
            return found
        return attrs.evolve(found, size_bytes=found.size_bytes or told.size_bytes)

    def _tell(self, found: Attributes) -> None:
        """Remember what is said of a file, for the case that it is opened next."""
        self._told[found.number] = found
        self._told.move_to_end(found.number)
        if len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)

    @_translated
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._ask(self._tree.contents.read_link, self._tree.inodes.node_of(inode), ctx.pid)

    @_translated
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        node = self._tree.inodes.node_of(inode)
        found = await self._ask(self._tree.attributes, node)
        executable = stat_module.S_ISDIR(found.mode) or not mode & os.X_OK
        return executable and (ctx.uid in (0, found.uid) or found.mode & mode == mode)

    # Directories

    @_translated
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self._tree.inodes.node_of(inode)
        number = next(self._listing_numbers)
        self._listings[number] = _Listing(node, await self._ask(self._tree.list, node))
        return number

    @_translated
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        if start_id == 0 and listing.read:  # rewinddir
            listing.entries = await self._ask(self._tree.list, listing.node)
        listing.read = True
        vmas = len(listing.entries) if _is_vmas(listing.node) else 0
        for position in range(start_id, len(listing.entries)):
            entry = listing.entries[position]
            found = self._in_listing(entry.attributes)
            attributes = _to_fuse(found, timeout_s=_ATTRIBUTES_TIMEOUT_S if found.settled else 0)
            if vmas:
                attributes.entry_timeout += vmas * _TIMEOUT_S_PER_VMA
                attributes.attr_timeout += vmas * _TIMEOUT_S_PER_VMA
            if not pyfuse3.readdir_reply(token, entry.name, attributes, position + 1):
                break
            self._tell(found)

    async def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)

    @_translated
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A new directory in ``snapshots`` is a snapshot; *mode* is as every directory of ours has it."""
        parent = self._tree.inodes.node_of(parent_inode)
        entry = await self._ask(self._tree.make_snapshot, parent, name)
        return self._describe(entry.attributes)

    @_translated
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._tree.inodes.node_of(parent_inode)
        await self._ask(self._tree.remove_snapshot, parent, name)

    # Files

    @_translated
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        node = self._tree.inodes.node_of(inode)
        file, backing, found = await self._ask(self._open, node, inode, flags, ctx.pid)
        number = self._handles.add(file)
        try:
            passed_through = self._backings.enter(inode, number, backing, direct=bool(flags & os.O_DIRECT))
        except OSError:
            self._handles.drop(number)
            raise
        if passed_through:
            file.trail = None
        opened = self._opened.setdefault(inode, _Opened(found))
        opened.times += 1
        opened.found = found
        self._inode_of[number] = inode
        if found != self._told.get(inode):
            # The kernel may still believe what it was told before. The notice arrives before the reply.
            self._tell(found)
            with contextlib.suppress(OSError):  # the mount has ended
                pyfuse3.invalidate_inode(inode, attr_only=True)
        return pyfuse3.FileInfo(fh=number, direct_io=file.trail is None, keep_cache=False)

    def _open(
        self, node: Node, inode: int, flags: int, caller: int
    ) -> tuple[OpenFile, Backing | None, Attributes]:
        """Open the file *node*, and choose whether its reader goes through the page cache."""
        source = self._tree.contents.open(node)
        try:
            found = self._told.get(inode) or self._tree.attributes(node)
            uid, gid = self._tree.owner_of(node)
            found = attrs.evolve(found, uid=uid, gid=gid, size_bytes=source.size_bytes)
            backing = source.backing()
            command = read_command(caller)
            uses_cache = (
                not flags & os.O_DIRECT and self._habits.reads_little(command) and source.may_be_cached()
            )
        except BaseException:
            source.close()
            raise
        trail = CacheTrail(inode) if uses_cache else None
        counter = ReadCounter(command, uses_cache=uses_cache)
        target = self._tree.target_of(inode)
        lane = self._handles.lanes.lane_of(target) if target is not None else None
        file = OpenFile(source, counter, trail, fresh=bool(flags & os.O_DIRECT), lane=lane)
        return file, backing, found

    async def flush(self, fh: int) -> None:
        """Nothing is ever dirty. After this answer the kernel sends no FLUSH again (``fuse_flush``)."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        counter = self._handles.drop(fh)
        inode = self._inode_of.pop(fh)
        self._backings.leave(inode, fh)
        self._opened[inode].times -= 1
        if not self._opened[inode].times:
            del self._opened[inode]
        if counter is not None:
            self._habits.learn(counter)
            if counter.uses_cache:
                # Copies of gigabytes that no one will read again would push out what someone will.
                with contextlib.suppress(OSError):  # the mount has ended
                    pyfuse3.invalidate_inode(inode)

    @_translated
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        memory, free = _memory_pages()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = PAGE_BYTES
        data.f_blocks = memory
        data.f_bfree = data.f_bavail = free
        data.f_namemax = NAME_BYTES
        return data

    # Extended attributes

    # LISTXATTR is the data plane's, and so is GETXATTR of what is not user.*, or was seen a moment ago.

    @_translated
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if name.startswith(XATTR_PREFIX):
            found = await self._ask(self._extended_attributes, inode, name)
            if name in found:
                return found[name]
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    def _extended_attributes(self, inode: int, name: bytes) -> dict[bytes, bytes]:
        node = self._tree.inodes.node_of(inode)
        return self._tree.contents.extended_attributes(node, use=name in USE_NAMES)


def _refuse_change(name: str) -> None:
    """Make the handler *name* answer that nothing here can be changed."""

    async def refuse(*_: object) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    refuse.__name__ = name
    setattr(Operations, name, refuse)


for _name in (
    "create", "link", "mknod", "removexattr", "rename", "setattr", "setxattr", "symlink", "unlink",
):  # fmt: skip
    _refuse_change(_name)


def _to_fuse(found: Attributes, *, timeout_s: float = 0) -> pyfuse3.EntryAttributes:
    """*timeout_s* is how long the kernel may believe the attributes: no longer than a listing takes."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = found.number
    entry.st_mode = found.mode
    entry.st_uid = found.uid
    entry.st_gid = found.gid
    entry.st_size = found.size_bytes
    entry.st_blocks = found.blocks
    entry.st_blksize = PREFERRED_READ_BYTES
    entry.st_atime_ns = entry.st_mtime_ns = found.mtime_ns
    entry.st_ctime_ns = found.ctime_ns
    entry.entry_timeout = found.name_timeout_s
    entry.attr_timeout = timeout_s
    return entry


def _is_vmas(node: Node) -> bool:
    """Whether *node* is a directory ``vmas``. A name in it stands for two addresses, whoever maps them."""
    return isinstance(node, ProcessNode) and node.name is Name.VMAS


def _memory_pages() -> tuple[int, int]:
    """The pages of memory that the machine has, and those that are free."""
    return os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
