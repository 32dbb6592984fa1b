"""A copy of a process's memory on another host, kept warm: all of it once, then what changed, round by round.

    warm_copy.py receive PORT IMAGE        on the other host; ends with the sender
    warm_copy.py send PROCESS HOST PORT    PROCESS is the directory of the process in a mount of memfs
    warm_copy.py check SNAPSHOT IMAGE      whether an image is that snapshot, byte for byte

IMAGE is the flat address space, a sparse file of 128 TiB: XFS, btrfs and tmpfs take it, ext4 does not. Each
round takes a snapshot, so the process stops for milliseconds only, and sends the pages that the mount says
may have changed since the last one. It ends when a round is small, or no smaller than the one before. No
one is asked for a password, and nothing is encrypted: use it in a network that you trust.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

DATA, HOLE, ROUND = range(3)
HEAD = struct.Struct("<BQQ")  # what follows, where, and how many bytes
SMALL_BYTES = 4 << 20
MOST_ROUNDS = 8


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Data and holes of a file between two offsets."""
    while start < end:
        try:
            data = min(os.lseek(fd, start, os.SEEK_DATA), end)
        except OSError:  # nothing but a hole follows
            data = end
        if data > start:
            yield HOLE, start, data
        if data == end:
            return
        start = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield DATA, data, start


def changed(snapshot: Path, before: Path | None, end: int) -> Iterator[tuple[int, int]]:
    """The addresses to send: all, or what the mount says may have changed since *before*."""
    if before is None:
        yield 0, end
        return
    for line in (snapshot / ".since" / before.name).read_text().splitlines()[1:]:
        first, last = (int(part, 16) for part in line.split("-"))
        yield first, min(last, end)


def send_round(out: socket.socket, snapshot: Path, before: Path | None) -> int:
    """Send one round; returns how many bytes of memory it had."""
    sent = 0
    with (snapshot / "mem").open("rb") as mem:
        end = os.fstat(mem.fileno()).st_size
        for first, last in changed(snapshot, before, end):
            for kind, start, stop in extents(mem.fileno(), first, last):
                if kind == HOLE and before is None:
                    continue  # the image begins as one
                out.sendall(HEAD.pack(kind, start, stop - start))
                while kind == DATA and start < stop:
                    moved = os.sendfile(out.fileno(), mem.fileno(), start, stop - start)
                    if not moved:
                        sys.exit("warm_copy: the snapshot has ended")
                    start += moved
                    sent += moved
        out.sendall(HEAD.pack(ROUND, end, 0))
    if out.recv(1) != b"!":
        sys.exit("warm_copy: the other side has ended")
    return sent


def send(process: Path, host: str, port: int) -> None:
    """Rounds until the difference is small. The last snapshot stays, for the user to do with as he likes."""
    before = None
    last_bytes = 0
    with socket.create_connection((host, port)) as out:
        for number in range(MOST_ROUNDS):
            snapshot = process / "snapshots" / f"warm-{number}"
            snapshot.mkdir()
            sent = send_round(out, snapshot, before)
            print(f"round {number}: {sent} bytes", flush=True)
            if before is not None:
                before.rmdir()
                if sent < SMALL_BYTES or sent >= last_bytes:
                    break
            before, last_bytes = snapshot, sent
    print(f"the image is {snapshot}")


def receive(port: int, image: Path) -> None:
    """Take one sender's rounds."""
    with socket.create_server(("", port)) as server:
        connection, _ = server.accept()
    with connection, connection.makefile("rb", buffering=1 << 20) as stream, image.open("w+b", 0) as file:
        while head := stream.read(HEAD.size):
            kind, start, size = HEAD.unpack(head)
            if kind == ROUND:
                file.truncate(start)
                os.fsync(file.fileno())
                connection.sendall(b"!")
            while kind != ROUND and size:
                step = min(size, 1 << 20)
                content = stream.read(step) if kind == DATA else bytes(step)
                if len(content) < step:
                    sys.exit("warm_copy: the sender has ended within a round: the image is not whole")
                if kind == DATA or os.pread(file.fileno(), step, start) != content:
                    os.pwrite(file.fileno(), content, start)
                start += step
                size -= step


def check(snapshot: Path, image: Path) -> None:
    """Compare where either has data; the rest are holes of both."""
    with (snapshot / "mem").open("rb") as mem, image.open("rb") as copy:
        sizes = [os.fstat(file.fileno()).st_size for file in (mem, copy)]
        if sizes[0] != sizes[1]:
            sys.exit(f"warm_copy: the sizes differ: {sizes[0]} and {sizes[1]}")
        for one in (mem, copy):
            for kind, start, end in extents(one.fileno(), 0, sizes[0]):
                for at in range(start, end, 1 << 20) if kind == DATA else ():
                    step = min(1 << 20, end - at)
                    if os.pread(mem.fileno(), step, at) != os.pread(copy.fileno(), step, at):
                        sys.exit(f"warm_copy: they differ behind {at:#x}")
    print("the image is the snapshot, byte for byte")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", process, host, port]:
            send(Path(process), host, int(port))
        case ["receive", port, image]:
            receive(int(port), Path(image))
        case ["check", snapshot, image]:
            check(Path(snapshot), Path(image))
        case _:
            sys.exit(__doc__)
