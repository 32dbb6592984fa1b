"""Replies that tell attributes: the bodies that libfuse would make, byte for byte (``<linux/fuse.h>``)."""

import stat as stat_module
import struct

from memfs.linux.span import PAGE_BYTES
from memfs.tree.attributes import Attributes, Entry

PREFERRED_READ_BYTES = 1 << 20
"""st_blksize: cp, cat and stdio read in pieces of this size, and so wait a 256th as often."""

NAME_BYTES = 255

_NS = 1_000_000_000

# struct fuse_attr: ino size blocks atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize
# flags
_ATTR = "6Q10I"
# struct fuse_attr_out: attr_valid attr_valid_nsec dummy attr
_ATTR_OUT = struct.Struct("=QI4x" + _ATTR)
# struct fuse_entry_out: nodeid generation entry_valid attr_valid, their nanoseconds, attr
_ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
# struct fuse_dirent, behind the entry of fuse_direntplus: ino off namelen type, and the name
_DIRENT = struct.Struct("=QQII")
# struct fuse_kstatfs: blocks bfree bavail files ffree, bsize namelen frsize padding, spare
_STATFS_OUT = struct.Struct("=5Q4I24x")


def _pack(found: Attributes) -> tuple[int, ...]:
    mtime_s, mtime_ns = divmod(found.mtime_ns, _NS)
    ctime_s, ctime_ns = divmod(found.ctime_ns, _NS)
    return (
        found.number, found.size_bytes, found.blocks, mtime_s, mtime_s, ctime_s, mtime_ns, mtime_ns, ctime_ns,
        found.mode, 1, found.uid, found.gid, 0, PREFERRED_READ_BYTES, 0,
    )  # fmt: skip


def _split(timeout_s: float) -> tuple[int, int]:
    """A time-out as libfuse writes it: seconds, and the rest in nanoseconds."""
    whole = int(timeout_s)
    return whole, min(int((timeout_s - whole) * _NS), _NS - 1)


def attributes_body(found: Attributes, timeout_s: float = 0) -> bytes:
    """The reply to GETATTR; *timeout_s* is how long the kernel may believe it."""
    return _ATTR_OUT.pack(*_split(timeout_s), *_pack(found))


def entry_body(found: Attributes, name_timeout_s: float, timeout_s: float) -> bytes:
    """The reply to LOOKUP and MKDIR; for so long the kernel may believe the name, and the attributes."""
    name_s, name_ns = _split(name_timeout_s)
    attr_s, attr_ns = _split(timeout_s)
    return _ENTRY_OUT.pack(found.number, 0, name_s, attr_s, name_ns, attr_ns, *_pack(found))


def listed_body(
    entry: Entry, found: Attributes, name_timeout_s: float, timeout_s: float, next_at: int
) -> bytes:
    """One entry of the reply to READDIRPLUS; *next_at* is where a listing goes on behind it."""
    kind = stat_module.S_IFMT(found.mode) >> 12
    dirent = _DIRENT.pack(found.number, next_at, len(entry.name), kind)
    body = entry_body(found, name_timeout_s, timeout_s) + dirent + entry.name
    return body + bytes(-len(body) % 8)


def statfs_body(pages: int, free_pages: int) -> bytes:
    """The reply to STATFS: a file system as large as memory, with as much room as it has."""
    return _STATFS_OUT.pack(pages, free_pages, free_pages, 0, 0, PAGE_BYTES, NAME_BYTES, PAGE_BYTES, 0)
