"""What is open: opened, released, and what its readers were told of it meanwhile.

A file's size and mtime stand still while it is open. Its size is that of what was opened, whatever became
of its process: a copier would else make zeros of the difference. Its mtime is what was told before it was
opened: tar 1.35, which looks at a file before it opens it and after it has read it, would else say that it
changed.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import attrs

from memfs.files.backing import Backings, PassedThrough
from memfs.files.cache import CacheTrail
from memfs.files.habits import Commands, ReadCounter, ReadHabits
from memfs.files.handles import Handles, OpenFile
from memfs.files.lanes import Lanes
from memfs.linux.span import Span
from memfs.tree.attributes import Attributes
from memfs.tree.nodes import Node, target_of
from memfs.tree.tree import Tree

_MOST_REMEMBERED = 4096
_ALL = Span(0, 0)


@attrs.frozen
class Opening:
    """An open file as the kernel is told of it.

    Attributes:
        handle: its number.
        direct: whether its reads come to the daemon, and not through the page cache.
        passed: how the kernel reads it by itself; None where it does not.
    """

    handle: int
    direct: bool
    passed: PassedThrough | None


@attrs.define
class _Opened:
    """An inode that is open: how often, and the attributes that it keeps meanwhile."""

    found: Attributes
    times: int = 0


class Openings:
    """The open files of a mount. Many threads use it; no lock is held while a target is looked at."""

    def __init__(
        self,
        tree: Tree,
        handles: Handles,
        backings: Backings,
        lanes: Lanes,
        *,
        forget_attributes: Callable[[int], object],
        drop_pages: Callable[[int, Span], object],
    ) -> None:
        """Open files of *tree*, and put them into *handles*.

        Args:
            lanes: those of the targets.
            forget_attributes: has the kernel forget the attributes of an inode; raises OSError.
            drop_pages: has it drop cached pages of an inode, soon.
        """
        self._tree = tree
        self._handles = handles
        self._backings = backings
        self._lanes = lanes
        self._forget_attributes = forget_attributes
        self._drop_pages = drop_pages
        self._habits = ReadHabits()
        self._commands = Commands()
        self._lock = threading.Lock()
        self._inode_of: dict[int, int] = {}
        self._opened: dict[int, _Opened] = {}
        self._told: OrderedDict[int, Attributes] = OrderedDict()

    # What is told

    def kept(self, number: int) -> Attributes | None:
        """The attributes of an inode that is open; None for any other."""
        opened = self._opened.get(number)
        return None if opened is None else opened.found

    def tell(self, found: Attributes) -> Attributes:
        """What to tell where *found* was found; remembered for the case that the file is opened next."""
        found = self.kept(found.number) or found
        told = self._told
        with self._lock:
            told[found.number] = found
            told.move_to_end(found.number)
            if len(told) > _MOST_REMEMBERED:
                told.popitem(last=False)
        return found

    def tell_listed(self, found: Attributes) -> Attributes:
        """The same in a listing, which moves no size that was told: the file may be about to be opened."""
        kept = self.kept(found.number)
        if kept is None and not found.settled:
            told = self._told.get(found.number)
            if told is not None:
                found = attrs.evolve(found, size_bytes=found.size_bytes or told.size_bytes)
        return self.tell(kept or found)

    # Open files

    def open(self, node: Node, inode: int, flags: int, caller: int) -> Opening:
        """Open the file *node*, and choose whether its reader goes through the page cache.

        Args:
            flags: of open(2).
            caller: the thread that opens.

        Raises:
            MemfsError, OSError: it is gone, or may not be read.
        """
        source = self._tree.contents.open(node)
        try:
            found = self._told.get(inode) or self._tree.attributes(node)
            uid, gid = self._tree.owner_of(node)
            found = attrs.evolve(found, uid=uid, gid=gid, size_bytes=source.size_bytes)
            backing = source.backing()
            direct = bool(flags & os.O_DIRECT)
            command = self._commands.of(caller)
            uses_cache = not direct and self._habits.reads_little(command) and source.may_be_cached()
            passed = self._backings.enter(inode, backing, direct=direct)
        except BaseException:
            source.close()
            raise
        trail = CacheTrail(inode) if uses_cache and passed is None else None
        target = target_of(node)
        file = OpenFile(
            source,
            ReadCounter(command, uses_cache=uses_cache),
            trail,
            fresh=direct,
            lane=self._lanes.lane_of(target) if target is not None else None,
        )
        handle = self._handles.add(file)
        with self._lock:
            self._inode_of[handle] = inode
            opened = self._opened.setdefault(inode, _Opened(found))
            opened.times += 1
            opened.found = found
        if found != self._told.get(inode):
            # The kernel may still believe what it was told before. The notice arrives before the reply.
            self.tell(found)
            with contextlib.suppress(OSError):  # the mount has ended
                self._forget_attributes(inode)
        return Opening(handle, trail is None, passed)

    def release(self, handle: int) -> None:
        """Undo :meth:`open`; a number that is not open is no error."""
        with self._lock:
            inode = self._inode_of.pop(handle, None)
            if inode is None:
                return
            self._opened[inode].times -= 1
            if not self._opened[inode].times:
                del self._opened[inode]
        counter = self._handles.drop(handle)
        self._backings.leave(inode)
        if counter is not None:
            with self._lock:
                self._habits.learn(counter)
            if counter.uses_cache:
                # Copies of gigabytes that no one will read again would push out what someone will.
                self._drop_pages(inode, _ALL)
