"""The peer: what a mount costs with pyfuse3 alone. Serves one range of one process as one file.

Usage: plain_pyfuse3.py PID START SIZE MOUNTPOINT
It prints a line once it has mounted, and ends when it is unmounted.
"""
# ruff: noqa: ARG002 the signatures are pyfuse3's

import os
import stat
import sys
from typing import cast

import pyfuse3
import trio
from vm_readv import RemoteReader

FILE_INODE = 2
_MOST_BYTES = 1 << 20


class PlainOperations(pyfuse3.Operations):
    """One file: its bytes are read when they are asked for."""

    def __init__(self, reader: RemoteReader, start: int, size_bytes: int) -> None:
        super().__init__()
        self._reader, self._start, self._size_bytes = reader, start, size_bytes

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_size, entry.st_blksize = inode, self._size_bytes, _MOST_BYTES
        entry.st_mode = stat.S_IFREG | 0o400 if inode == FILE_INODE else stat.S_IFDIR | 0o500
        entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self.getattr(FILE_INODE, ctx)  # whatever it is called

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and has sent it before the next request is read.
        return cast(bytes, self._reader.read(self._start + off, min(size, max(0, self._size_bytes - off))))


def main(pid: int, start: int, size_bytes: int, mountpoint: str) -> None:
    """Mount and serve."""
    operations = PlainOperations(RemoteReader(pid, _MOST_BYTES), start, size_bytes)
    pyfuse3.init(operations, mountpoint, {*pyfuse3.default_options, "fsname=plain-pyfuse3"})
    print("mounted", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
