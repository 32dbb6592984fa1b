"""The ways to move memory that are compared. Each runs once, checks what it did, and says how long it took.

A tool is fed by a file (of memfs, or of the pyfuse3 peer), or by dd from /proc/PID/mem: one
definition of each tool serves all of its contenders.
"""

import contextlib
import fcntl
import mmap
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import attrs
import machine
from commands import Argv, Command, CommandFailed, Finished, expect, run, run_together
from lab import Lab, Memory
from results import Sample
from target import MIB
from vm_readv import RemoteReader

_READV_BYTES = 256 << 10
"""The fastest size of a piece; larger ones leave the processor's cache."""
_STARTUP_BYTES = 256 << 10
"""What a program may read of libraries and configuration besides its input."""
_MOST_CORE_BYTES = 256 << 20
"""What a core file of a Python program may have besides the memory in question."""
_LISTEN_S = 10
_DD_BYTES = 1 << 20
BARE_LOOP = "a bare loop"
_GONE_OR_DENIED = re.compile(
    "Permission denied|No such file or directory|No such process|File system loop detected"
)
"""What find may complain of on a machine that lives, in memfs and in /proc.

It looks at a directory again after it has opened it, and takes two in which it fails for one.
"""


@attrs.frozen
class Contender:
    """Something that can be run again and again, and its name in the table.

    Attributes:
        rounds: how often at most, for what takes very long; it is not run before it is measured then.
    """

    name: str
    run: Callable[[], Sample]
    rounds: int | None = None


@attrs.frozen
class Feed:
    """Where a tool gets a target's memory from.

    Attributes:
        file: a file of a mount; None for dd from /proc/PID/mem.
    """

    memory: Memory
    file: Path | None

    def through(self, tool: Argv, *, by_name: bool, capture: bool = False) -> Finished:
        """Run *tool* on it: given the file's name or the file as stdin, or else behind a pipe from dd."""
        if self.file is None:
            return run(dd_argv(self, _DD_BYTES), tool, capture=capture)
        if by_name:
            return run([*tool, self.file], capture=capture)
        return run(tool, stdin=self.file, capture=capture)

    def sample(self, seconds: float, **facts: int) -> Sample:
        """All of it was moved in that time."""
        return Sample(seconds, self.memory.size_bytes, facts)


Tool = Callable[[Lab, Feed], Sample]


def feeds(lab: Lab, memory: Memory) -> dict[str, Feed]:
    """The feeds that are compared, by the name of their contender."""
    return {
        "memfs": Feed(memory, memory.file),
        "/proc/PID/mem": Feed(memory, None),
        "pyfuse3": Feed(memory, lab.plain_file(memory)),
    }


def by_tool(lab: Lab, memory: Memory, tool: Tool) -> tuple[Contender, ...]:
    """One tool on all feeds."""

    def contender(name: str, feed: Feed) -> Contender:
        return Contender(name, lambda: tool(lab, feed))

    return tuple(contender(name, feed) for name, feed in feeds(lab, memory).items())


def dd_argv(
    feed: Feed, block_bytes: int, *, start: int = 0, size_bytes: int | None = None, direct: bool = False
) -> list[str]:
    """dd to stdout of *size_bytes* from *start* on, all where not given."""
    memory = feed.memory
    file, base = (feed.file, 0) if feed.file is not None else (f"/proc/{memory.pid}/mem", memory.start)
    count = memory.size_bytes if size_bytes is None else size_bytes
    flags = "skip_bytes,count_bytes" + ",direct" * (direct and feed.file is not None)
    return [
        "dd", f"if={file}", f"bs={block_bytes}", "status=none",
        f"skip={base + start}", f"count={count}", f"iflag={flags}",
    ]  # fmt: skip


def dd(block_bytes: int, *, most_bytes: int | None = None, direct: bool = False) -> Tool:
    """dd to /dev/null, of *most_bytes* at most.

    /proc/PID/mem cannot be opened O_DIRECT: it is read as ever then.
    """

    def tool(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
        size = min(feed.memory.size_bytes, most_bytes or feed.memory.size_bytes)
        done = run([*dd_argv(feed, block_bytes, size_bytes=size, direct=direct), "of=/dev/null"])
        expect("bytes that dd wrote", done.moved.written_bytes, size)
        return Sample(done.seconds, size)

    return tool


def read_together(lab: Lab, parts: Sequence[tuple[Feed, int, int]], block_bytes: int) -> Sample:  # noqa: ARG001
    """Several dd at once, each of a stretch of its feed: how much they read together."""
    argvs = [
        [*dd_argv(feed, block_bytes, start=start, size_bytes=size), "of=/dev/null"]
        for feed, start, size in parts
    ]
    seconds = run_together(argvs)
    return Sample(seconds, sum(size for _, _, size in parts))


def spliced(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
    """Into a pipe, which is emptied without a look at what is in it: splice(2) of the file, or dd."""
    with contextlib.ExitStack() as stack:
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, MIB)
        null = stack.enter_context(open(os.devnull, "wb")).fileno()
        begun = time.perf_counter()
        moved = 0
        if feed.file is not None:
            source = stack.enter_context(open(feed.file, "rb")).fileno()
            while got := os.splice(source, writer, MIB):
                moved += got
                while got:
                    got -= os.splice(reader, null, got)
            os.close(writer)
        else:
            dd_process = stack.enter_context(subprocess.Popen(dd_argv(feed, _DD_BYTES), stdout=writer))
            os.close(writer)
            while got := os.splice(reader, null, MIB):
                moved += got
            dd_process.wait()
        seconds = time.perf_counter() - begun
    expect("bytes that came through the pipe", moved, feed.memory.size_bytes)
    return feed.sample(seconds)


def sent(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
    """To a TCP socket on loopback, whose other end throws it away unseen: sendfile(2) of the file, or dd."""
    size = feed.memory.size_bytes
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname()))
        receiver = stack.enter_context(listener.accept()[0])
        received: list[int] = []
        sink = threading.Thread(target=lambda: received.append(_discard(receiver)))
        begun = time.perf_counter()
        sink.start()
        if feed.file is not None:
            source = stack.enter_context(open(feed.file, "rb")).fileno()
            while os.sendfile(sender.fileno(), source, None, size):
                pass
        else:
            subprocess.run(dd_argv(feed, _DD_BYTES), stdout=sender.fileno(), check=True)
        sender.shutdown(socket.SHUT_WR)
        sink.join()
        seconds = time.perf_counter() - begun
    expect("bytes that came through the socket", received[0], size)
    return feed.sample(seconds)


def _discard(receiver: socket.socket) -> int:
    """Take all that comes: with MSG_TRUNC TCP does not even copy it (tcp(7))."""
    room = bytearray(MIB)
    total = 0
    while got := receiver.recv_into(room, MIB, socket.MSG_TRUNC):
        total += got
    return total


def sparse_dd(lab: Lab, feed: Feed) -> Sample:
    """dd of /proc/PID/mem, which leaves out what is zero in its copy."""
    copied = lab.scratch / "copy"
    try:
        done = run([*dd_argv(feed, _DD_BYTES), f"of={copied}", "conv=sparse"])
        status = copied.stat()
    finally:
        copied.unlink(missing_ok=True)
    expect("bytes in the copy", status.st_size, feed.memory.size_bytes)
    return Sample(done.seconds, facts={"bytes_on_disk": 512 * status.st_blocks})


def core_copy(lab: Lab, memory: Memory) -> Contender:
    """cp of the core file that memfs makes."""
    core = lab.memfs.path / str(memory.pid) / "core"
    return _core_by("memfs", lab, memory, lambda copied: run(["cp", core, copied]))


def gcore(lab: Lab, memory: Memory) -> Contender:
    """gdb's gcore, which adds the pid to the name that it is given."""

    def dump(copied: Path) -> Finished:
        done = run(["gcore", "-o", copied, str(memory.pid)])
        copied.with_name(f"{copied.name}.{memory.pid}").rename(copied)
        return done

    return _core_by("gcore", lab, memory, dump)


def _core_by(name: str, lab: Lab, memory: Memory, dump: Callable[[Path], Finished]) -> Contender:
    def made() -> Sample:
        copied = lab.scratch / "core"
        try:
            done = dump(copied)
            size = copied.stat().st_size
        finally:
            copied.unlink(missing_ok=True)
        expect("bytes in the core file", size, memory.size_bytes, memory.size_bytes + _MOST_CORE_BYTES)
        return Sample(done.seconds)

    return Contender(name, made)


def seek_data(memory: Memory) -> Contender:
    """The first data of a file that is one long hole: how long the answer takes."""

    def seek() -> Sample:
        descriptor = os.open(memory.file, os.O_RDONLY)
        try:
            begun = time.perf_counter()
            found = os.lseek(descriptor, 0, os.SEEK_DATA)
            seconds = time.perf_counter() - begun
        finally:
            os.close(descriptor)
        expect("the first data", found, memory.size_bytes - mmap.PAGESIZE)
        return Sample(seconds)

    return Contender("memfs", seek)


def openssl(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
    """A digest, compared with the right one."""
    done = feed.through(["openssl", "dgst", "-sha256"], by_name=True, capture=True)
    if done.output.split()[-1].decode() != feed.memory.sha256():
        raise CommandFailed("openssl read other bytes than the target has")
    return feed.sample(done.seconds)


def zstd(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
    """Compression to /dev/null."""
    done = feed.through(["zstd", "-q", "-1", "-c"], by_name=True)
    size = feed.memory.size_bytes
    expect("bytes that zstd read", done.moved.read_bytes, size, size + _STARTUP_BYTES)
    return feed.sample(done.seconds)


def copy(lab: Lab, feed: Feed) -> Sample:
    """To a new file on a tmpfs: cp of a file, or dd."""
    copied = lab.scratch / "copy"
    try:
        if feed.file is None:
            done = run([*dd_argv(feed, _DD_BYTES), f"of={copied}"])
        else:
            done = run(["cp", "--sparse=auto", feed.file, copied])
        status = copied.stat()
    finally:
        copied.unlink(missing_ok=True)
    expect("bytes in the copy", status.st_size, feed.memory.size_bytes)
    return feed.sample(done.seconds, bytes_on_disk=512 * status.st_blocks)


def nc(lab: Lab, feed: Feed) -> Sample:  # noqa: ARG001 as all tools
    """Over loopback, to a second nc that throws it away; until that has ended."""
    if not _is_openbsd_nc():
        raise CommandFailed("nc is not OpenBSD's: install netcat-openbsd")
    port = _free_port()
    address = ["127.0.0.1", str(port)]
    with Command(
        ["nc", "-d", "-l", *address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as receiver:
        _await_listener(port)
        begun = time.perf_counter()
        feed.through(["nc", "-N", *address], by_name=False)
        receiver.wait(time.monotonic() + _LISTEN_S)
        seconds = time.perf_counter() - begun
        received = receiver.moved().written_bytes
        receiver.check()
    expect("bytes that nc received", received, feed.memory.size_bytes)
    return feed.sample(seconds)


@cache
def _is_openbsd_nc() -> bool:
    path = shutil.which("nc")
    return path is not None and "openbsd" in os.path.realpath(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await_listener(port: int) -> None:
    """Wait until someone listens: connecting would use up the one connection that nc accepts."""
    listening = f"0100007F:{port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + _LISTEN_S
    while listening not in Path("/proc/net/tcp").read_text():
        if time.monotonic() > deadline:
            raise CommandFailed(f"nc does not listen on port {port}")
        time.sleep(0.001)


def readv_loop(memory: Memory) -> Contender:
    """All of it by process_vm_readv, again and again into one buffer: what a copy costs at least."""
    reader = RemoteReader(memory.pid, _READV_BYTES)

    def loop() -> Sample:
        begun = time.perf_counter()
        for done in range(0, memory.size_bytes, _READV_BYTES):
            reader.read(memory.start + done, min(_READV_BYTES, memory.size_bytes - done))
        return Sample(time.perf_counter() - begun, memory.size_bytes)

    return Contender("process_vm_readv", loop)


def random_reads(lab: Lab, memory: Memory, size_bytes: int) -> tuple[Contender, ...]:
    """Single reads at random places, one after the other: how long one takes. The places are always new.

    The CPUs are kept awake for all of them, as memfs does for itself: what counts is the way of a read.
    """
    count = lab.scale.random_reads
    chance = random.Random(memory.start)
    slots = memory.size_bytes // size_bytes

    def timed(read: Callable[[int], int]) -> Sample:
        places = [size_bytes * chance.randrange(slots) for _ in range(count)]
        with machine.kept_awake():
            begun = time.perf_counter()
            for place in places:
                if read(place) != size_bytes:
                    raise CommandFailed(f"a read at {place} came short")
            return Sample(time.perf_counter() - begun, count)

    def from_file(path: Path, base: int) -> Sample:
        descriptor = os.open(path, os.O_RDONLY)
        room = [bytearray(size_bytes)]
        try:
            return timed(lambda place: os.preadv(descriptor, room, base + place))
        finally:
            os.close(descriptor)

    reader = RemoteReader(memory.pid, size_bytes)
    plain, bare = lab.plain_file(memory), lab.bare_file(memory)
    mem = Path(f"/proc/{memory.pid}/mem")
    return (
        Contender("memfs", lambda: from_file(memory.file, 0)),
        Contender("/proc/PID/mem", lambda: from_file(mem, memory.start)),
        Contender("pyfuse3", lambda: from_file(plain, 0)),
        Contender(BARE_LOOP, lambda: from_file(bare, 0)),
        Contender(
            "process_vm_readv",
            lambda: timed(lambda place: len(reader.read(memory.start + place, size_bytes))),
        ),
    )


def count_everything(directory: Path) -> int:
    """How many entries find sees below *directory*, asking for the size of each."""
    find: Argv = ["find", directory, "-ignore_readdir_race", "-printf", "%s\\n"]
    return int(run(find, ["wc", "-l"], capture=True, forgiven=_GONE_OR_DENIED).output)


def counting(
    name: str, argv: Argv, lowest: int, highest: int | None = None, *, races: bool = False
) -> Contender:
    """A command whose lines ``wc -l`` counts: *lowest* exactly, or from that to *highest*.

    With *races*, what it looks at may come and go meanwhile.
    """

    def count() -> Sample:
        done = run(argv, ["wc", "-l"], capture=True, forgiven=_GONE_OR_DENIED if races else None)
        lines = int(done.output)
        expect(f"lines from {argv[0]}", lines, lowest, highest)
        return Sample(done.seconds, facts={"lines": lines})

    return Contender(name, count)
