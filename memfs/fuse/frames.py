"""The frames of the FUSE protocol that the data plane speaks: bytes to values and back, no I/O.

``<linux/fuse.h>``, protocol 7.31 and later. Everything that has no name here goes to libfuse as it came.
"""

import enum
import errno
import struct


class Opcode(enum.IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    MKDIR = 9
    RMDIR = 11
    OPEN = 14
    READ = 15
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
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
_NODE_ID = struct.Struct("=16xQ")
# The same header, to write: len opcode unique nodeid, and no caller
_REQUEST_HEADER = struct.Struct("=IIQQ16x")
# struct fuse_mkdir_in, behind which the name stands: mode umask
_MKDIR_IN = struct.Struct("=II")
# struct fuse_release_in: fh flags release_flags lock_owner
_RELEASE_IN = struct.Struct("=Q16x")
# struct fuse_read_in: fh offset size, and 20 bytes more: read_flags lock_owner flags padding
_READ_IN = struct.Struct("=QQI20x")
# struct fuse_lseek_in: fh offset whence padding
_LSEEK_IN = struct.Struct("=QQII")
_LSEEK_OUT = struct.Struct("=Q")
# struct fuse_getxattr_out, of LISTXATTR too: size padding; and fuse_getxattr_in, the same, behind the nodeid
_GETXATTR_OUT = struct.Struct("=II")
_NODE_ID_AND_GETXATTR_IN = struct.Struct("=16xQ16xI4x")
_INTERRUPT_IN = struct.Struct("=Q")
# struct fuse_out_header: len error unique
_OUT_HEADER = struct.Struct("=IiQ")
# struct fuse_notify_inval_inode_out: ino off len; a notice is a reply to request 0, its code in error
_INVAL_INODE_OUT = struct.Struct("=Qqq")
_NOTIFY_INVAL_INODE = 2
_READ_SIZE = struct.Struct("=I")
_READ_SIZE_AT = _IN_HEADER.size + 16

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


def parse_node(frame: memoryview | bytes) -> int:
    """The inode number that a request is about; of a LOOKUP, MKDIR or RMDIR that of the directory."""
    if len(frame) < _IN_HEADER.size:
        raise FrameError(f"a frame of {len(frame)} bytes has no header")
    number: int = _NODE_ID.unpack_from(frame)[0]
    return number


def _body(layout: struct.Struct, frame: memoryview) -> tuple[int, ...]:
    if len(frame) < _IN_HEADER.size + layout.size:
        raise FrameError(f"a frame of {len(frame)} bytes ends inside its request")
    return layout.unpack_from(frame, _IN_HEADER.size)


def parse_read(frame: memoryview) -> tuple[int, int, int]:
    """The body of a READ: of which open file (handle), from where (offset), how many bytes."""
    handle, offset, size = _body(_READ_IN, frame)
    return handle, offset, size


def parse_seek(frame: memoryview) -> tuple[int, int, int]:
    """The body of an LSEEK: in which open file (handle), from where (offset), to what (whence)."""
    handle, offset, whence, _ = _body(_LSEEK_IN, frame)
    return handle, offset, whence


def parse_xattr(frame: memoryview) -> tuple[int, int]:
    """A LISTXATTR or GETXATTR, its header too: the inode, and room for how many bytes; 0 asks how many."""
    if len(frame) < _NODE_ID_AND_GETXATTR_IN.size:
        raise FrameError(f"a frame of {len(frame)} bytes ends inside its request")
    inode, size = _NODE_ID_AND_GETXATTR_IN.unpack_from(frame)
    return inode, size


def parse_attribute_name(frame: memoryview) -> bytes:
    """The name that a GETXATTR asks for; its header is that of :func:`parse_xattr`."""
    if len(frame) <= _NODE_ID_AND_GETXATTR_IN.size:
        raise FrameError(f"a frame of {len(frame)} bytes ends inside its request")
    return bytes(frame[_NODE_ID_AND_GETXATTR_IN.size :]).rstrip(b"\0")


def parse_interrupt(frame: memoryview) -> int:
    """The *unique* of the request that an INTERRUPT wants to end."""
    return _body(_INTERRUPT_IN, frame)[0]


def limit_read_size(frame: memoryview, limit: int) -> None:
    """Lower the size that a READDIR or READDIRPLUS asks for to *limit* bytes."""
    _, _, size = _body(_READ_IN, frame)
    if size > limit:
        _READ_SIZE.pack_into(frame, _READ_SIZE_AT, limit)


def undo_request(frame: bytes, reply: memoryview, unique: int) -> bytes | None:
    """The request that undoes what *reply* says was done for *frame*; None where nothing is to undo.

    *unique* is its number. That is RELEASE for OPEN, RELEASEDIR for OPENDIR and RMDIR for MKDIR.
    """
    opcode, _, _ = parse_head(memoryview(frame))
    handle = parse_open_reply(reply)
    if handle is None:
        return None
    if opcode == Opcode.MKDIR:
        undoing, body = Opcode.RMDIR, frame[_IN_HEADER.size + _MKDIR_IN.size :]
    elif opcode in (Opcode.OPEN, Opcode.OPENDIR):
        undoing = Opcode.RELEASE if opcode == Opcode.OPEN else Opcode.RELEASEDIR
        body = _RELEASE_IN.pack(handle)
    else:
        return None
    return _REQUEST_HEADER.pack(_IN_HEADER.size + len(body), undoing, unique, parse_node(frame)) + body


def pack_reply_head(into: memoryview, at: int, unique: int, body_bytes: int) -> None:
    """Write the header of a reply with *body_bytes* behind it into *into* at *at*."""
    _OUT_HEADER.pack_into(into, at, OUT_HEADER_BYTES + body_bytes, 0, unique)


def error_reply(unique: int, number: int) -> bytes:
    """The whole reply to a request that failed with errno *number*."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -number, unique)


def drop_cache_notice(inode: int, offset: int, size: int) -> bytes:
    """FUSE_NOTIFY_INVAL_INODE: let the kernel drop the cached pages of a stretch of a file."""
    body = _INVAL_INODE_OUT.pack(inode, offset, size)
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), _NOTIFY_INVAL_INODE, 0) + body


def seek_reply(unique: int, offset: int) -> bytes:
    """The whole reply to an LSEEK."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + _LSEEK_OUT.size, 0, unique) + _LSEEK_OUT.pack(offset)


def xattr_reply(unique: int, content: bytes, size: int) -> bytes:
    """The whole reply to a GETXATTR, or to a LISTXATTR (names end in a NUL each), with room for *size*."""
    if not size:
        body = _GETXATTR_OUT.pack(len(content), 0)
    elif size < len(content):
        return error_reply(unique, errno.ERANGE)
    else:
        body = content
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), 0, unique) + body


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
        return _body(struct.Struct("=4I"), frame)[3]
    _, _, _, low, high = _body(_INIT_IN, frame)
    return low | (high << 32 if low & InitFlag.INIT_EXT else 0)


def is_page_notice(reply: memoryview) -> bool:
    """Whether this is a notice to drop cached pages, which the kernel may wait for, and no reply.

    A negative offset drops attributes only, and waits for nothing.
    """
    if len(reply) < OUT_HEADER_BYTES + _INVAL_INODE_OUT.size:
        return False
    _, code, unique = _OUT_HEADER.unpack_from(reply)
    offset = _INVAL_INODE_OUT.unpack_from(reply, OUT_HEADER_BYTES)[1]
    return not unique and code == _NOTIFY_INVAL_INODE and offset >= 0


def unique_of_reply(reply: memoryview) -> int:
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


def parse_open_reply(reply: memoryview) -> int | None:
    """The handle that a reply to OPEN gives; None where it is an error."""
    if len(reply) < OUT_HEADER_BYTES + _OPEN_OUT.size:
        return None
    handle: int = _OPEN_OUT.unpack_from(reply, OUT_HEADER_BYTES)[0]
    return handle


def amend_open_reply(reply: memoryview, handle: int, flags: int, backing: int) -> None:
    """Let a reply to OPEN say *flags* and the number of a registered file."""
    _OPEN_OUT.pack_into(reply, OUT_HEADER_BYTES, handle, flags, backing)
