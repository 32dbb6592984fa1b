"""The desk: answers every request about names, attributes and open files, values in and bytes out.

It is called by the thread that has the request, mostly the one at the device. It says beforehand which
requests take long by their nature: those are for a thread of the target's lane. It knows neither threads nor
the device.
"""

import errno
import itertools
import logging
import os
import stat as stat_module
from collections.abc import Callable, Sequence

import attrs

from memfs.errors import AccessDenied, CannotFreeze, MemfsError, TargetBusy, TooMany
from memfs.files.lanes import HOUSE
from memfs.files.openings import Openings
from memfs.fuse import messages, replies
from memfs.fuse.messages import Head, Opcode, OpenFlag
from memfs.target.identity import Identity
from memfs.tree.attributes import Attributes, Entry
from memfs.tree.contents import attribute_names
from memfs.tree.names import USER_XATTRS, XATTR_PREFIX
from memfs.tree.nodes import CommDir, Fixed, Name, Node, ProcessNode, SinceNode, target_of
from memfs.tree.tree import Tree
from memfs.tree.vmas import USE_NAMES

log = logging.getLogger(__name__)

_ATTRIBUTES_TIMEOUT_S = 0.5
"""How long the kernel may believe attributes that come with a name. OPEN makes it forget what has changed."""
_TIMEOUT_S_PER_VMA = 1e-4
"""Added for each name in a listing of VMAs: find and ls read all names before they look at the first."""
_MOST_REMEMBERED = 4096

_TOLD = (AccessDenied, CannotFreeze, TargetBusy, TooMany)
"""An errno alone does not say enough of these."""

_ROOT, _BY_NAME = Fixed(Name.ROOT), Fixed(Name.BY_NAME)
_LONG_TO_LOOK_AT = (Name.MAPS,)
_LONG_TO_OPEN = (Name.MEM, Name.CORE, Name.MAPS)
_LONG_TO_LIST = (Name.VMAS, Name.SINCE)

Handler = Callable[[Head, memoryview], bytes]


@attrs.define
class _Listing:
    """An open directory and what was in it when it was last read from its beginning."""

    node: Node
    entries: Sequence[Entry]
    read: bool = False


class Desk:
    """The handlers of one mount. Many threads use it.

    Attributes:
        handlers: by opcode. Each returns the body of the reply, or raises MemfsError or OSError.
    """

    def __init__(self, tree: Tree, openings: Openings) -> None:
        self._tree = tree
        self._openings = openings
        self._listings: dict[int, _Listing] = {}
        self._listing_numbers = itertools.count(1)
        self._denied: set[str] = set()
        self.handlers: dict[int, Handler] = {
            int(Opcode.LOOKUP): self._lookup,
            int(Opcode.GETATTR): self._getattr,
            int(Opcode.READLINK): self._readlink,
            int(Opcode.ACCESS): self._access,
            int(Opcode.OPEN): self._open,
            int(Opcode.RELEASE): self._release,
            int(Opcode.FLUSH): self._flush,
            int(Opcode.OPENDIR): self._opendir,
            int(Opcode.READDIRPLUS): self._readdirplus,
            int(Opcode.RELEASEDIR): self._releasedir,
            int(Opcode.MKDIR): self._mkdir,
            int(Opcode.RMDIR): self._rmdir,
            int(Opcode.GETXATTR): self._getxattr,
            int(Opcode.LISTXATTR): self._listxattr,
            int(Opcode.STATFS): self._statfs,
        }

    # Before a request is carried out

    def target_of(self, head: Head, body: memoryview) -> tuple[Identity | None, bool]:
        """The process that may keep a request waiting, None for none; and whether it takes long anyway.

        What takes long and asks about no process has a target too: see :data:`HOUSE`.
        """
        opcode = head.opcode
        if opcode in _AT_ONCE or (opcode == _GETXATTR and self._attribute_at_once(head, body) is not None):
            return None, False
        try:
            node = self._tree.inodes.node_of(head.node)
        except MemfsError:
            return None, False
        target = target_of(node)
        long = self._takes_long(opcode, node, body)
        return (HOUSE if long and target is None else target), long

    def _takes_long(self, opcode: int, node: Node, body: memoryview) -> bool:
        if opcode in (_MKDIR, _RMDIR) or isinstance(node, SinceNode):
            return True
        name = node.name if isinstance(node, ProcessNode) else None
        if opcode == _GETATTR:
            return name in _LONG_TO_LOOK_AT
        if opcode == _LOOKUP:
            if name is Name.PROCESS:
                return messages.parse_name(body) == b"maps"
            return node == _BY_NAME or name is Name.SINCE
        if opcode == _OPEN:
            return name in _LONG_TO_OPEN
        if opcode == _OPENDIR:
            return node in (_ROOT, _BY_NAME) or isinstance(node, CommDir) or name in _LONG_TO_LIST
        if opcode == _READDIRPLUS:
            handle, offset, _ = messages.parse_read(body, 0)
            listing = self._listings.get(handle)
            return not offset and listing is not None and listing.read
        return opcode == _GETXATTR and messages.parse_attribute_name(body) in USE_NAMES

    def note_failure(self, error: MemfsError | OSError) -> None:
        """Say once for each process why it may not be read or frozen, and what would mend it."""
        sentence = str(error)
        if not isinstance(error, _TOLD):
            log.debug("%s", sentence)
        elif sentence not in self._denied:
            if len(self._denied) >= _MOST_REMEMBERED:
                self._denied.clear()
            self._denied.add(sentence)
            log.warning("%s", sentence)

    def undo(self, head: Head, request: memoryview, reply: bytes) -> None:
        """Let go of what a request has opened or made whose caller no longer waits; *reply* is its body."""
        if head.opcode == _OPEN:
            self._openings.release(messages.parse_handle(reply))
        elif head.opcode == _OPENDIR:
            self._listings.pop(messages.parse_handle(reply), None)
        elif head.opcode == _MKDIR:
            self._tree.remove_snapshot(self._node(head), messages.parse_mkdir(request))
        else:
            return
        log.debug("request %d was interrupted, and is undone", head.unique)

    def _node(self, head: Head) -> Node:
        return self._tree.inodes.node_of(head.node)

    def tidy(self) -> bool:
        """Let go of what was kept for a moment; to be called with each tick, until it returns False."""
        return self._tree.contents.looks.forget_old()

    # Names and attributes

    def _lookup(self, head: Head, body: memoryview) -> bytes:
        name = messages.parse_name(body)
        if len(name) > replies.NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        found = self._openings.tell(self._tree.lookup(self._node(head), name).attributes)
        return replies.entry_body(found, found.name_timeout_s, _timeout_s(found))

    def _getattr(self, head: Head, body: memoryview) -> bytes:
        kept = self._openings.kept(head.node)
        if kept is None:
            kept = self._openings.tell(self._tree.attributes(self._node(head)))
        return replies.attributes_body(kept)

    def _readlink(self, head: Head, body: memoryview) -> bytes:
        return self._tree.contents.read_link(self._node(head), head.caller)

    def _access(self, head: Head, body: memoryview) -> bytes:
        mask = messages.parse_flags(body)
        if mask & os.W_OK:
            raise OSError(errno.EROFS, "nothing can be written")
        found = self._tree.attributes(self._node(head))
        executable = stat_module.S_ISDIR(found.mode) or not mask & os.X_OK
        if not executable or (head.uid not in (0, found.uid) and found.mode & mask != mask):
            raise OSError(errno.EACCES, "the mode forbids it")
        return b""

    # Directories

    def _opendir(self, head: Head, body: memoryview) -> bytes:
        node = self._node(head)
        listing = _Listing(node, self._tree.list(node))
        number = next(self._listing_numbers)
        self._listings[number] = listing
        return messages.open_body(number)

    def _readdirplus(self, head: Head, body: memoryview) -> bytes:
        handle, start, room = messages.parse_read(body, 0)
        listing = self._listing(handle)
        if not start and listing.read:  # rewinddir
            listing.entries = self._tree.list(listing.node)
        listing.read = True
        more_s = len(listing.entries) * _TIMEOUT_S_PER_VMA if _is_vmas(listing.node) else 0.0
        parts = []
        for position in range(start, len(listing.entries)):
            entry = listing.entries[position]
            found = self._openings.tell_listed(entry.attributes)
            part = replies.listed_body(
                entry, found, found.name_timeout_s + more_s, _timeout_s(found) + more_s, position + 1
            )
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        return b"".join(parts)

    def _listing(self, handle: int) -> _Listing:
        listing = self._listings.get(handle)
        if listing is None:
            raise OSError(errno.EBADF, "no such directory is open")
        return listing

    def _releasedir(self, head: Head, body: memoryview) -> bytes:
        self._listings.pop(messages.parse_release(body), None)
        return b""

    def _mkdir(self, head: Head, body: memoryview) -> bytes:
        """A new directory in ``snapshots`` is a snapshot; its mode is as every directory of ours has it."""
        name = messages.parse_mkdir(body)
        if len(name) > replies.NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        found = self._openings.tell(self._tree.make_snapshot(self._node(head), name).attributes)
        return replies.entry_body(found, found.name_timeout_s, 0)

    def _rmdir(self, head: Head, body: memoryview) -> bytes:
        self._tree.remove_snapshot(self._node(head), messages.parse_name(body))
        return b""

    # Files

    def _open(self, head: Head, body: memoryview) -> bytes:
        flags = messages.parse_flags(body)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise OSError(errno.EROFS, "nothing can be written")
        opening = self._openings.open(self._node(head), head.node, flags, head.caller)
        passed = opening.passed
        if passed is None:
            return messages.open_body(opening.handle, OpenFlag.DIRECT_IO if opening.direct else 0)
        reading = OpenFlag.DIRECT_IO if passed.direct else 0
        return messages.open_body(opening.handle, OpenFlag.PASSTHROUGH | reading, passed.number)

    def _release(self, head: Head, body: memoryview) -> bytes:
        self._openings.release(messages.parse_release(body))
        return b""

    def _flush(self, head: Head, body: memoryview) -> bytes:
        """Nothing is ever dirty. After this answer the kernel sends no FLUSH again (``fuse_flush``)."""
        raise OSError(errno.ENOSYS, "nothing is to be flushed")

    def _statfs(self, head: Head, body: memoryview) -> bytes:
        return replies.statfs_body(os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES"))

    # Extended attributes

    def _listxattr(self, head: Head, body: memoryview) -> bytes:
        return messages.sized_body(attribute_names(head.node), messages.parse_room(body))

    def _getxattr(self, head: Head, body: memoryview) -> bytes:
        name = messages.parse_attribute_name(body)
        if not name.startswith(USER_XATTRS):
            # ls asks each file for an ACL and a label, but not again once it hears this.
            raise OSError(errno.EOPNOTSUPP, "no such namespace")
        value = self._attribute_at_once(head, body)
        if value is None and name.startswith(XATTR_PREFIX):
            node, use = self._node(head), name in USE_NAMES
            value = self._tree.contents.extended_attributes(node, use=use).get(name)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return messages.sized_body(value, messages.parse_room(body))

    def _attribute_at_once(self, head: Head, body: memoryview) -> bytes | None:
        """The value that a GETXATTR asks for, if it was seen a moment ago."""
        return self._tree.attribute_at_once(head.node, messages.parse_attribute_name(body))


def _timeout_s(found: Attributes) -> float:
    return _ATTRIBUTES_TIMEOUT_S if found.settled else 0


def _is_vmas(node: Node) -> bool:
    """Whether *node* is a directory ``vmas``. A name in it stands for two addresses, whoever maps them."""
    return isinstance(node, ProcessNode) and node.name is Name.VMAS


_LOOKUP, _GETATTR, _OPEN = int(Opcode.LOOKUP), int(Opcode.GETATTR), int(Opcode.OPEN)
_MKDIR, _RMDIR, _OPENDIR = int(Opcode.MKDIR), int(Opcode.RMDIR), int(Opcode.OPENDIR)
_READDIRPLUS, _GETXATTR = int(Opcode.READDIRPLUS), int(Opcode.GETXATTR)
_AT_ONCE = tuple(map(int, (Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.FLUSH, Opcode.STATFS, Opcode.LISTXATTR)))
"""These wait for no process, or make room for what does."""
