"""A process that opens and reads mapped files whose server may never answer, so that the daemon does not.

To open or to read such a file can last for ever, in a state in which not even SIGKILL ends the thread
(``request_wait_answer`` of fs/fuse/dev.c): nor can the process of that thread end, and what it has open
stays open. So this is a process of its own, which has nothing open but the files, and which is not waited
for when it is late: `memfs.image.served` is its other end.

It answers one request at a time, on a socket of its parent's alone, and ends with it.
"""

import errno
import os
import select
import socket
import sys
import threading

import attrs

from memfs.linux import wire
from memfs.linux.maps import Mapping
from memfs.linux.syscalls import read_process
from memfs.target.mapped import open_linked
from memfs.target.origins import ObjectKey, object_key


@attrs.frozen
class ServedState:
    """What of stat(2) a mapped file is known by; *links* is how many names it has."""

    mtime_ns: int
    size_bytes: int
    links: int


@attrs.frozen
class FileQuery:
    """Open the file that *mapping* shows, by map_files of process *pid*, and tell its FileState."""

    pid: int
    mapping: Mapping


@attrs.frozen
class Forget:
    """Close all files: another address space comes next."""


@attrs.frozen
class CopyPart:
    """Bytes to be copied to *into* in the descriptor that comes with them.

    Attributes:
        address: in the process.
        into: at which offset.
        in_memory: whether the page tables know the page: it is read from the ``mem`` that comes second.
    """

    address: int
    size: int
    into: int
    in_memory: bool


@attrs.frozen
class Copy:
    """Copy *parts* out of the file that *mapping* shows."""

    look: FileQuery
    parts: tuple[CopyPart, ...]


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Whoever started this need not wait for its end: the new process is no child of his.
    if os.fork():
        os._exit(0)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    servant = _Servant()
    wire.send(channel, None)
    while True:
        try:
            request, descriptors = wire.receive(channel)
        except EOFError:
            os._exit(0)
        try:
            answer: object = servant.answer(request, descriptors)
        except OSError as error:
            answer = error.errno or errno.EIO
        finally:
            for fd in descriptors:
                os.close(fd)
        wire.send(channel, answer)


def _end_with(channel: socket.socket) -> None:
    """End this process when the other end is closed, even in a wait that a signal can end."""
    poll = select.poll()
    poll.register(channel, select.POLLHUP)
    poll.poll()
    os._exit(0)


class _Servant:
    """The open files."""

    def __init__(self) -> None:
        self._opened: dict[ObjectKey, int] = {}

    def answer(self, request: object, descriptors: list[int]) -> ServedState | None:
        if isinstance(request, Forget):
            opened, self._opened = self._opened, {}
            for fd in opened.values():
                os.close(fd)
            return None
        if isinstance(request, FileQuery):
            found = os.fstat(self._open(request))
            return ServedState(found.st_mtime_ns, found.st_size, found.st_nlink)
        assert isinstance(request, Copy)
        into, memory = descriptors
        for part in request.parts:
            os.pwrite(into, self._read(request.look, part, memory), part.into)
        return None

    def _read(self, look: FileQuery, part: CopyPart, memory: int) -> bytes:
        if part.in_memory:
            return _read(memory, part.address, part.size)
        try:
            fd = self._open(look)
        except OSError:
            # A FUSE server of a user's need not let root in. His process may read it; and unlike a read
            # of /proc/PID/mem this call lets go of the lock of its memory map while it waits. But it
            # follows the pid, to another program too: so what it has read is thrown away.
            if read_process(look.pid, (part.address, memoryview(bytearray(part.size)))) < part.size:
                raise OSError(errno.EFAULT, "it is behind the end of the file") from None
            data = _read(memory, part.address, part.size)
            if len(data) < part.size:
                raise OSError(errno.EFAULT, "the address space is gone") from None
            return data
        return _read_file(fd, part.address - look.mapping.span.start + look.mapping.offset, part.size)

    def _open(self, look: FileQuery) -> int:
        key = object_key(look.mapping)
        fd = self._opened.get(key)
        if fd is None:
            fd = self._opened[key] = open_linked(look.pid, look.mapping)
        return fd


def _read_file(fd: int, position: int, size: int) -> bytes:
    data = _read(fd, position, size)
    return data + bytes(size - len(data))  # behind the end of the file


def _read(fd: int, position: int, size: int) -> bytes:
    blocks = []
    while size and (block := os.pread(fd, size, position)):
        blocks.append(block)
        position += len(block)
        size -= len(block)
    return b"".join(blocks)
