"""Files that the kernel reads by itself: FUSE_PASSTHROUGH (Linux 6.9) to the object that a file shows.

A descriptor of the object is registered with the device, and the reply to OPEN names its number. From
then on neither READ nor mmap comes to the daemon, and splice(2) takes the object's own pages. The
kernel has one rule: as long as any open file of an inode is passed through, all of them are, to one
object; and none can begin to be while another is open in any other way (``fs/fuse/iomode.c``). With
FOPEN_DIRECT_IO besides, the reads of one open file still come to the daemon.
"""

import contextlib
import errno
import logging
import threading

import attrs

from memfs.image.source import Backing
from memfs.linux.fusefd import close_backing, open_backing

log = logging.getLogger(__name__)

LEAST_BYTES = 8 << 20
"""Below this a file is read in 3 ms anyway. What is passed through no longer notices that the process
unmaps it, so that promise is given up only where much is gained."""

STACK_DEPTH = 2
"""FILESYSTEM_MAX_STACK_DEPTH: the object may lie on an overlay, as in a container."""


@attrs.frozen
class PassedThrough:
    """How an open file is passed through.

    Attributes:
        number: of the registered object.
        direct: whether its reads come to the daemon all the same.
    """

    number: int
    direct: bool


@attrs.define
class _Inode:
    """An inode that is open: how often, and to what object it is passed through; number 0 for none."""

    number: int
    object: tuple[int, int] | None
    times: int = 0


class Backings:
    """Which inodes are passed through, and to what. Many threads enter and leave them."""

    def __init__(self, *, wanted: bool) -> None:
        """*wanted* is whether anything shall be passed through at all."""
        self._wanted = wanted
        self._device = -1
        self._lock = threading.Lock()
        self._inodes: dict[int, _Inode] = {}

    def accept(self, device: int) -> None:
        """The kernel agrees; *device* is the descriptor to register objects with."""
        self._device = device

    def enter(self, inode: int, backing: Backing | None, *, direct: bool) -> PassedThrough | None:
        """Note that *inode* is opened; returns how it is passed through, None where it is not.

        Args:
            backing: the object that the file shows, if it shows one that could be.
            direct: whether each read shall come to us.

        Raises:
            OSError: EBUSY where the inode is passed through, for an earlier reader, to another object.
        """
        with self._lock:
            entry = self._inodes.get(inode)
            if entry is None:
                number = 0 if direct or backing is None else self._register(backing)
                entry = self._inodes[inode] = _Inode(number, backing and backing.object)
            elif entry.number and (backing is None or backing.object != entry.object):
                raise OSError(errno.EBUSY, "a reader still has open what was mapped there before")
            entry.times += 1
        if not entry.number:
            return None
        return PassedThrough(entry.number, direct or backing is None or not backing.exact)

    def leave(self, inode: int) -> None:
        """Undo :meth:`enter`."""
        with self._lock:
            entry = self._inodes[inode]
            entry.times -= 1
            if not entry.times:
                del self._inodes[inode]
                if entry.number:
                    self._let_go(entry.number)

    def _register(self, backing: Backing) -> int:
        """The number of an object; 0 where it cannot or shall not be passed through."""
        if not self._wanted or self._device < 0 or not backing.exact or backing.size_bytes < LEAST_BYTES:
            return 0
        try:
            return open_backing(self._device, backing.fd)
        except OSError as error:
            # EPERM: no CAP_SYS_ADMIN, which will not change. Else it is this object's file system.
            log.debug("not passed through: %s", error)
            self._wanted = error.errno != errno.EPERM
            return 0

    def _let_go(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the mount has gone, and all that was registered with it
            close_backing(self._device, number)
