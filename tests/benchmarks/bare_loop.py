"""The limit for a mount in Python: the shortest loop that reads requests from /dev/fuse and answers READ.

Usage: bare_loop.py PID START SIZE MOUNTPOINT [LOOPS]

MOUNTPOINT is a file, and shows that range of the process. No library, no tree, no checks: what memfs takes
longer than this for a read is its own. LOOPS processes share the device, one if not given: several show the
limit for several readers. It prints a line once it has mounted, and ends when it is unmounted. Needs root.
The frames are those of ``<linux/fuse.h>``.
"""

import ctypes
import enum
import errno
import os
import stat
import struct
import sys

from vm_readv import RemoteReader

_MOST_BYTES = 1 << 20
_REQUEST_BYTES = _MOST_BYTES + (1 << 16)
_MINOR = 31


class _Opcode(enum.IntEnum):
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    RELEASE = 18
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


_UNANSWERED = (_Opcode.FORGET, _Opcode.INTERRUPT, _Opcode.BATCH_FORGET)
_DIRECT_IO = 1

_IN_HEADER = struct.Struct("=IIQ24x")
_READ_IN = struct.Struct("=QQI20x")
_OUT_HEADER = struct.Struct("=IiQ")
_OPEN_OUT = struct.Struct("=QIi")
# fuse_init_out: major minor max_readahead flags max_background congestion max_write time_gran max_pages …
_INIT_OUT = struct.Struct("=4IHHIIHH32x")
# fuse_attr_out: valid valid_nsec dummy; ino size blocks times nsecs mode nlink uid gid rdev blksize flags
_ATTR_OUT = struct.Struct("=QII6Q3I7I")
_MAX_PAGES = 1 << 22  # FUSE_MAX_PAGES


def _mount(mountpoint: str) -> int:
    """Mount there; returns the device."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,max_read={_MOST_BYTES}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bare-loop", mountpoint.encode(), b"fuse.bare-loop", 0, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", mountpoint)
    return device


def main(pid: int, start: int, size_bytes: int, mountpoint: str, loops: int) -> None:
    """Mount and serve."""
    device = _mount(mountpoint)
    print("mounted", flush=True)
    children = []
    for _ in range(loops - 1):
        child = os.fork()
        if child == 0:
            break
        children.append(child)
    _serve(device, pid, start, size_bytes)
    for child in children:
        os.waitpid(child, 0)


def _serve(device: int, pid: int, start: int, size_bytes: int) -> None:
    reader = RemoteReader(pid, _MOST_BYTES)
    attributes = _ATTR_OUT.pack(
        0, 0, 0, 1, size_bytes, 0, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o400, 1, 0, 0, 0, _MOST_BYTES, 0
    )
    answers = {
        int(_Opcode.INIT): _INIT_OUT.pack(
            7,
            _MINOR,
            _MOST_BYTES,
            _MAX_PAGES,
            12,
            9,
            _MOST_BYTES,
            1,
            _MOST_BYTES // os.sysconf("SC_PAGESIZE"),
            0,
        ),
        int(_Opcode.GETATTR): attributes,
        int(_Opcode.OPEN): _OPEN_OUT.pack(0, _DIRECT_IO, 0),
        int(_Opcode.RELEASE): b"",
    }
    frame = bytearray(_REQUEST_BYTES)
    room = [frame]
    read_opcode = int(_Opcode.READ)
    while True:
        try:
            os.readv(device, room)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            raise
        _, opcode, unique = _IN_HEADER.unpack_from(frame)
        if opcode == read_opcode:
            _, offset, size = _READ_IN.unpack_from(frame, _IN_HEADER.size)
            body: bytes | memoryview = reader.read(start + offset, min(size, size_bytes - offset))
        elif opcode in answers:
            body = answers[opcode]
        elif opcode in _UNANSWERED:
            continue
        else:
            os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.ENOSYS, unique))
            continue
        os.writev(device, [_OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique), body])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int((sys.argv[5:] or ["1"])[0]))
