"""The messages of the FUSE protocol: requests to values, values to replies, no I/O.

``<linux/fuse.h>``, protocol 7.31 and later. Everything that has no name here goes to libfuse as it came.
What tells attributes is in :mod:`memfs.fuse.replies`.
"""

import enum
import errno
import struct
from typing import NamedTuple


class Opcode(enum.IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    MKDIR = 9
    RMDIR = 11
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46


class Whence(enum.IntEnum):
    """``<unistd.h>``; the kernel answers the others itself."""

    DATA = 3
    HOLE = 4


# struct fuse_in_header: len opcode unique, nodeid uid gid, pid, total_extlen padding
_IN_HEADER = struct.Struct("=IIQ16xI4x")
# The same, whole: opcode unique nodeid uid gid pid
_HEAD = struct.Struct("=4xIQQIII4x")
# struct fuse_mkdir_in, behind which the name stands: mode umask
_MKDIR_IN_BYTES = 8
# struct fuse_open_in: flags open_flags; fuse_access_in: mask padding
_FLAGS_IN = struct.Struct("=I4x")
# struct fuse_release_in: fh flags release_flags lock_owner
_RELEASE_IN = struct.Struct("=Q16x")
# struct fuse_read_in: fh offset size, and 20 bytes more: read_flags lock_owner flags padding
_READ_IN = struct.Struct("=QQI20x")
# struct fuse_lseek_in: fh offset whence padding
_LSEEK_IN = struct.Struct("=QQII")
_LSEEK_OUT = struct.Struct("=Q")
# struct fuse_getxattr_out, and fuse_getxattr_in, of LISTXATTR too: size padding
_GETXATTR_OUT = struct.Struct("=II")
_GETXATTR_IN = struct.Struct("=I4x")
_INTERRUPT_IN = struct.Struct("=Q")
# struct fuse_out_header: len error unique
_OUT_HEADER = struct.Struct("=IiQ")
# struct fuse_notify_inval_inode_out: ino off len; a notice is a reply to request 0, its code in error
_INVAL_INODE_OUT = struct.Struct("=Qqq")
_NOTIFY_INVAL_INODE = 2

OUT_HEADER_BYTES = _OUT_HEADER.size


class FrameError(ValueError):
    """A frame that is shorter than it says, or than its opcode needs."""


# Each READ comes by here: plain tuples, since one with names takes as long again to make.


def parse_head(frame: memoryview) -> tuple[int, int, int]:
    """What tells one request from the other: opcode, unique, and the thread that it comes from.

    That is 0 for a thread which is not in our PID namespace.
    """
    if len(frame) < _IN_HEADER.size:
        raise FrameError(f"a frame of {len(frame)} bytes has no header")
    length, opcode, unique, caller = _IN_HEADER.unpack_from(frame)
    if length != len(frame):
        raise FrameError(f"a frame of {len(frame)} bytes says that it has {length}")
    return opcode, unique, caller


class Head(NamedTuple):
    """What a request says before its body.

    Attributes:
        node: the inode number that it is about; of a LOOKUP, MKDIR or RMDIR that of the directory.
        uid: whose caller it is, as gid.
        caller: the thread that waits; 0 for one that is not in our PID namespace.
    """

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    caller: int


def parse_request(frame: memoryview) -> tuple[Head, memoryview]:
    """Any request: its head, and its body."""
    if len(frame) < _HEAD.size:
        raise FrameError(f"a frame of {len(frame)} bytes has no header")
    return Head._make(_HEAD.unpack_from(frame)), frame[_HEAD.size :]


def _unpack(layout: struct.Struct, data: memoryview, at: int = 0) -> tuple[int, ...]:
    if len(data) < at + layout.size:
        raise FrameError(f"{len(data)} bytes end inside their request")
    return layout.unpack_from(data, at)


def parse_read(data: memoryview, at: int = _HEAD.size) -> tuple[int, int, int]:
    """A READ or READDIRPLUS, whose body is in *data* from *at* on: the handle, from where, how many bytes."""
    handle, offset, size = _unpack(_READ_IN, data, at)
    return handle, offset, size


def parse_seek(frame: memoryview) -> tuple[int, int, int]:
    """The body of an LSEEK: in which open file (handle), from where (offset), to what (whence)."""
    handle, offset, whence, _ = _unpack(_LSEEK_IN, frame, _HEAD.size)
    return handle, offset, whence


def parse_name(body: memoryview) -> bytes:
    """The name that a LOOKUP or an RMDIR has."""
    return bytes(body).rstrip(b"\0")


def parse_mkdir(body: memoryview) -> bytes:
    """The name that a MKDIR has."""
    return bytes(body[_MKDIR_IN_BYTES:]).rstrip(b"\0")


def parse_flags(body: memoryview) -> int:
    """The flags of an OPEN; the mask of an ACCESS."""
    return _unpack(_FLAGS_IN, body)[0]


def parse_release(body: memoryview) -> int:
    """The handle that a RELEASE or RELEASEDIR ends."""
    return _unpack(_RELEASE_IN, body)[0]


def parse_room(body: memoryview) -> int:
    """How many bytes a GETXATTR or LISTXATTR has room for; 0 asks for their number."""
    return _unpack(_GETXATTR_IN, body)[0]


def parse_attribute_name(body: memoryview) -> bytes:
    """The name that a GETXATTR asks for."""
    return bytes(body[_GETXATTR_IN.size :]).rstrip(b"\0")


def parse_interrupt(frame: memoryview) -> int:
    """The *unique* of the request that an INTERRUPT wants to end."""
    return _unpack(_INTERRUPT_IN, frame, _HEAD.size)[0]


def pack_reply_head(into: memoryview, at: int, unique: int, body_bytes: int) -> None:
    """Write the header of a reply with *body_bytes* behind it into *into* at *at*."""
    _OUT_HEADER.pack_into(into, at, OUT_HEADER_BYTES + body_bytes, 0, unique)


def error_reply(unique: int, number: int) -> bytes:
    """The whole reply to a request that failed with errno *number*."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -number, unique)


def drop_cache_notice(inode: int, offset: int, size: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: let the kernel forget attributes, and cached pages from *offset* on.

    *size* 0 means all of them. For a negative *offset* only attributes are forgotten, and the kernel waits
    for nothing.
    """
    body = _INVAL_INODE_OUT.pack(inode, offset, size)
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), _NOTIFY_INVAL_INODE, 0) + body


def seek_reply(unique: int, offset: int) -> bytes:
    """The whole reply to an LSEEK."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + _LSEEK_OUT.size, 0, unique) + _LSEEK_OUT.pack(offset)


def reply_to(unique: int, body: bytes) -> bytes:
    """The whole reply to a request that was carried out."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), 0, unique) + body


def sized_body(value: bytes, room: int) -> bytes:
    """The body of a reply to GETXATTR or LISTXATTR, which have *room*.

    Raises:
        OSError: ERANGE where it is too little.
    """
    if not room:
        return _GETXATTR_OUT.pack(len(value), 0)
    if room < len(value):
        raise OSError(errno.ERANGE, "the attribute is longer")
    return value


def open_body(handle: int, flags: int = 0, backing: int = 0) -> bytes:
    """The body of a reply to OPEN or OPENDIR; *backing* is the number of a registered file."""
    return _OPEN_OUT.pack(handle, flags, backing)


# struct fuse_init_in: major minor max_readahead flags flags2 …
_INIT_IN = struct.Struct("=5I")
# struct fuse_init_out: major minor max_readahead flags max_background:H congestion:H max_write time_gran
# max_pages:H map_alignment:H flags2 max_stack_depth …
_INIT_OUT = struct.Struct("=4IHHIIHHII")
_FLAGS, _MAX_BACKGROUND, _CONGESTION, _FLAGS2, _STACK_DEPTH = 3, 4, 5, 10, 11
_BACKGROUND_REQUESTS = 1 << 12
"""Reads ahead by the kernel and RELEASEs that are under way at most. With libfuse's 12, a few that are never
answered would stop those of all files."""
# struct fuse_open_out: fh open_flags backing_id
_OPEN_OUT = struct.Struct("=QIi")


class InitFlag(enum.IntFlag):
    """``FUSE_*`` flags of INIT, the second word in the upper half."""

    AUTO_INVAL_DATA = 1 << 12
    """Drop a file's cached pages whenever its mtime has moved: that of live memory always has."""
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    """Linux 6.6: a file that was opened for direct I/O may be mapped shared."""
    PASSTHROUGH = 1 << 37
    """Linux 6.9: the kernel may read a file by itself."""


class OpenFlag(enum.IntFlag):
    """``FOPEN_*`` in the reply to OPEN."""

    DIRECT_IO = 1 << 0
    PASSTHROUGH = 1 << 7


_WANTED = InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.PASSTHROUGH


def parse_init(frame: memoryview) -> int:
    """The flags that the kernel offers in INIT, both words; a kernel before 5.17 has only one."""
    if len(frame) < _IN_HEADER.size + _INIT_IN.size:
        return _unpack(struct.Struct("=4I"), frame, _HEAD.size)[3]
    _, _, _, low, high = _unpack(_INIT_IN, frame, _HEAD.size)
    return low | (high << 32 if low & InitFlag.INIT_EXT else 0)


def unique_of_reply(reply: memoryview | bytes) -> int:
    """Which request a reply answers."""
    unique: int = _OUT_HEADER.unpack_from(reply)[2]
    return unique


def amend_init_reply(reply: bytes, offered: int, stack_depth: int) -> bytes:
    """libfuse's reply to INIT, with what libfuse does not know accepted where the kernel *offered* it.

    *stack_depth* is how many file systems may lie over one another; more than 0 accepts passthrough.
    """
    amended = bytearray(reply)
    if len(reply) >= OUT_HEADER_BYTES + _INIT_OUT.size:
        fields = list(_INIT_OUT.unpack_from(reply, OUT_HEADER_BYTES))
        fields[_FLAGS] &= ~int(InitFlag.AUTO_INVAL_DATA)
        fields[_MAX_BACKGROUND] = _BACKGROUND_REQUESTS
        fields[_CONGESTION] = _BACKGROUND_REQUESTS // 4 * 3
        accepted = offered & (_WANTED if stack_depth else InitFlag.DIRECT_IO_ALLOW_MMAP)
        if accepted:
            fields[_FLAGS] |= InitFlag.INIT_EXT
            fields[_FLAGS2] |= accepted >> 32
        if accepted & InitFlag.PASSTHROUGH:
            fields[_STACK_DEPTH] = stack_depth
        _INIT_OUT.pack_into(amended, OUT_HEADER_BYTES, *fields)
    return bytes(amended)


def parse_handle(body: bytes) -> int:
    """The handle in the body of a reply to OPEN or OPENDIR."""
    handle: int = _OPEN_OUT.unpack_from(body)[0]
    return handle
