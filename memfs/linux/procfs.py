"""The text files of /proc, parsed once into values. ``parse_*`` is pure, ``read_*`` does I/O.

Paths and names stay bytes. proc(5) describes the files; ``fs/proc/task_mmu.c`` prints maps.
"""

import ctypes
import enum
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator

import attrs

from memfs.linux.span import Span


class Access(enum.IntFlag):
    """The letters of a maps line."""

    EXEC = 1
    WRITE = 2
    READ = 4
    SHARED = 8

    def __str__(self) -> str:
        return _LETTERS[self]


def _letters(access: Access) -> str:
    letters = "r" if access & Access.READ else "-"
    letters += "w" if access & Access.WRITE else "-"
    letters += "x" if access & Access.EXEC else "-"
    return letters + ("s" if access & Access.SHARED else "p")


_LETTERS = tuple(_letters(Access(bits)) for bits in range(16))
_ACCESS = {letters.encode(): Access(bits) for bits, letters in enumerate(_LETTERS)}
_SHARED = int(Access.SHARED)
_NO_DEVICE = (0, 0)


@attrs.frozen
class Mapping:
    """One VMA: a line of ``/proc/PID/maps``.

    Attributes:
        offset: where in the file the mapping begins, in bytes.
        device: major and minor number of the file system's device; 0 and 0 where no file is mapped.
        inode: its number; 0 is one too, of the first System V segment and whatever a FUSE server says.
        path: as the kernel prints it, with ``\\012`` turned back into a newline; it may end in
            `` (deleted)`` or be a name in brackets; empty for plain anonymous memory.
    """

    span: Span
    access: Access
    offset: int
    device: tuple[int, int]
    inode: int
    path: bytes

    @property
    def shared(self) -> bool:
        """MAP_SHARED."""
        return self.access.value & _SHARED != 0

    @property
    def backed(self) -> bool:
        """Whether a file is mapped, or something else that the kernel keeps like one: a memfd, a device.

        No file system has the device 0:0 (``get_anon_bdev`` of fs/super.c).
        """
        return self.device != _NO_DEVICE

    def same_memory(self, other: "Mapping") -> bool:
        """Whether both show the same bytes wherever they overlap.

        They may differ in bounds and protection: VMAs grow, split and merge.
        """
        return (
            self.device == other.device
            and self.inode == other.inode
            and self.shared == other.shared
            and (not self.backed or self.offset - self.span.start == other.offset - other.span.start)
        )


_MAPS_LINE = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)"
    rb"(?: +([^\n]*))?$",
    re.MULTILINE,
)


def parse_maps(text: bytes) -> tuple[Mapping, ...]:
    """The VMAs of a maps text, in order of address."""
    return tuple(
        Mapping(
            Span(int(start, 16), int(end, 16)),
            _ACCESS[letters],
            int(offset, 16),
            (int(major, 16), int(minor, 16)),
            int(inode),
            path.replace(b"\\012", b"\n"),
        )
        for start, end, letters, offset, major, minor, inode, path in _maps_lines(text)
    )


def _maps_lines(text: bytes) -> Iterator[tuple[bytes, ...]]:
    """The fields of each line, one line at a time: of 60,000 lines all of them together take 30 MiB."""
    return (line.groups(b"") for line in _MAPS_LINE.finditer(text))


_PROCMAP_QUERY = 0xC068_6611  # _IOWR('f', 17, struct procmap_query); Linux 6.11
_QUERY = struct.Struct("=9Q4I2Q")
_COVERING_OR_NEXT = 0x10
_PATH_BYTES = 4096 + 16  # PATH_MAX, and " (deleted)"
_QUERY_LETTERS = {1: Access.READ, 2: Access.WRITE, 4: Access.EXEC, 8: Access.SHARED}
_QUERY_ACCESS = tuple(
    Access(sum(letter for bit, letter in _QUERY_LETTERS.items() if flags & bit)) for flags in range(16)
)


class MappingQuery:
    """PROCMAP_QUERY on a descriptor of ``/proc/PID/maps``: one VMA, no text made or parsed."""

    def __init__(self, maps: int, *, paths: bool) -> None:
        """Ask *maps*; without *paths* they are left empty, which saves the kernel some work."""
        self._maps = maps
        self._path = ctypes.create_string_buffer(_PATH_BYTES) if paths else None
        self._path_address = ctypes.addressof(self._path) if self._path is not None else 0

    def at(self, address: int) -> Mapping | None:
        """The VMA that covers *address*, or else the next one; None past the last.

        Raises:
            ProcessLookupError: the address space is gone.
            OSError: ENOTTY before Linux 6.11.
        """
        room = _PATH_BYTES if self._path is not None else 0
        argument = bytearray(
            _QUERY.pack(
                _QUERY.size, _COVERING_OR_NEXT, address, 0, 0, 0, 0, 0, 0, 0, 0, room, 0,
                self._path_address, 0,
            )
        )  # fmt: skip
        try:
            fcntl.ioctl(self._maps, _PROCMAP_QUERY, argument, True)
        except FileNotFoundError:
            return None
        _, _, _, start, end, flags, _, offset, inode, major, minor, size, *_ = _QUERY.unpack(argument)
        path = self._path.raw[: size - 1] if self._path is not None and size else b""
        return Mapping(Span(start, end), _QUERY_ACCESS[flags & 15], offset, (major, minor), inode, path)


_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 12


def read_whole(fd: int) -> bytes:
    """All of a /proc file that is open as *fd*, from its beginning.

    Raises:
        ProcessLookupError: the process is gone.
    """
    return b"".join(_blocks(fd))


def _blocks(fd: int) -> Iterator[bytes]:
    """What each read of it gives. For maps and smaps that is a page of text, or one VMA of more, however much
    is asked for; the kernel lets go of the process's memory map in between (``seq_read_iter``)."""
    at = 0
    while block := os.pread(fd, _BLOCK_BYTES, at):
        yield block
        at += len(block)


def read_timed(path: str) -> tuple[bytes, int]:
    """All of a /proc file, and how many nanoseconds its longest single read took.

    Raises:
        FileNotFoundError, ProcessLookupError, PermissionError: as :func:`read_file`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = []
        longest_ns = 0
        began_ns = time.monotonic_ns()
        for block in _blocks(fd):
            found.append(block)
            now_ns = time.monotonic_ns()
            longest_ns = max(longest_ns, now_ns - began_ns)
            began_ns = now_ns
        return b"".join(found), longest_ns
    finally:
        os.close(fd)


def read_small(path: str) -> bytes:
    """All of a /proc file that the kernel makes in one piece (``single_open``, fs/seq_file.c): stat, status.

    Raises: as :func:`read_file`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_small_at(fd)
    finally:
        os.close(fd)


def read_small_at(fd: int) -> bytes:
    """The same of one that is open, as it is now.

    Raises:
        ProcessLookupError: the process is gone.
    """
    text = os.pread(fd, _SMALL_BYTES, 0)
    return text if len(text) < _SMALL_BYTES else read_whole(fd)


def read_file(path: str) -> bytes:
    """All of a /proc file.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
        PermissionError: ptrace access is denied.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_whole(fd)
    finally:
        os.close(fd)


class TaskFlag(enum.IntFlag):
    """``PF_*`` of ``<linux/sched.h>``, as stat prints them: those that memfs asks for."""

    EXITING = 0x4
    FORKED_NO_EXEC = 0x40
    KERNEL_THREAD = 0x20_0000


@attrs.frozen
class Stat:
    """What memfs needs of ``/proc/PID/stat``.

    Attributes:
        comm: the name, at most 15 bytes, any of them.
        flags: ``PF_*``, all of them, and so a number: see :class:`TaskFlag`.
        parent, group, session: the numbers of the process's parent, process group and session.
        nice: -20 to 19.
        start_ticks: when the process began, in clock ticks since boot; exec does not change it.
        address_bytes: size of the address space; 0 where there is none (any more).
        code_start, stack_start, heap_start: addresses that exec chooses anew, as much at random as
            the machine is set to; 0 without ptrace access.
        exit_signal: what its parent is sent when it ends; 0 for nothing.
        threads: how many it has, those that have ended and cannot be reaped yet included.
        thread: whose flags, state and memory these are: the main thread's, unless that has ended.
    """

    pid: int
    comm: bytes
    state: bytes
    parent: int
    group: int
    session: int
    flags: int
    nice: int
    start_ticks: int
    address_bytes: int
    code_start: int
    stack_start: int
    heap_start: int
    exit_signal: int
    threads: int
    thread: int

    @property
    def has_memory(self) -> bool:
        """False for kernel threads, zombies and the dead."""
        return self.address_bytes > 0 and self.state not in (b"Z", b"X", b"x")

    @property
    def main_ended(self) -> bool:
        """Whether it is of a main thread that has ended, and stays a zombie as long as others run."""
        return self.state == b"Z" and self.threads > 1

    def same_program(self, other: "Stat") -> bool:
        """Whether no exec lies between the two: it clears FORKED_NO_EXEC and chooses new addresses.

        That flag is a thread's own: one that was cloned has it set (``copy_process``, kernel/fork.c).
        """
        return all(
            (
                self.thread != other.thread or not (self.flags ^ other.flags) & TaskFlag.FORKED_NO_EXEC,
                self.code_start == other.code_start,
                self.stack_start == other.stack_start,
                self.heap_start == other.heap_start,
            )
        )


def _fields_from_state(text: bytes) -> list[bytes]:
    """Those from field 3 of proc(5) on."""
    return text[text.rindex(b")") + 2 :].split()


def parse_stat(text: bytes) -> Stat:
    """The line of ``/proc/PID/stat``. The name may hold any byte, brackets and newlines too."""
    opening, closing = text.index(b"("), text.rindex(b")")
    fields = _fields_from_state(text)
    number = int(text[:opening])
    return Stat(
        pid=number,
        comm=text[opening + 1 : closing],
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        flags=int(fields[6]),
        nice=int(fields[16]),
        start_ticks=int(fields[19]),
        address_bytes=int(fields[20]),
        code_start=int(fields[23]),
        stack_start=int(fields[25]),
        heap_start=int(fields[44]),
        exit_signal=int(fields[35]),
        threads=int(fields[17]),
        thread=number,
    )


def read_stat(pid: int) -> Stat:
    """``/proc/PID/stat``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return parse_stat(read_small(f"/proc/{pid}/stat"))


def read_thread_stat(pid: int, tid: int) -> Stat:
    """The same of one of its threads, ``/proc/PID/task/TID/stat``; its number is in ``pid``, too.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return parse_stat(read_small(f"/proc/{pid}/task/{tid}/stat"))


def thread_ids(pid: int) -> list[int]:
    """The threads of a process, in order of their number, ended ones that are not reaped included.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))


def read_last_cpu(tid: int) -> int:
    """The CPU that thread *tid* runs on, or ran on last.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return int(_fields_from_state(read_small(f"/proc/{tid}/stat"))[36])


@attrs.frozen
class Status:
    """What memfs needs of ``/proc/PID/status``; sizes in bytes, 0 where there is no memory."""

    process: int
    uid: int
    gid: int
    resident_bytes: int
    swapped_bytes: int


_STATUS_LINE = re.compile(rb"^(Tgid|Uid|Gid|VmRSS|VmSwap):\t *(?:\d+\t(?=\d))?(\d+)", re.MULTILINE)


def parse_status(text: bytes) -> Status:
    """``/proc/PID/status``; of the four user and group ids the effective ones."""
    fields = {name: int(value) for name, value in _STATUS_LINE.findall(text)}
    return Status(
        process=fields[b"Tgid"],
        uid=fields[b"Uid"],
        gid=fields[b"Gid"],
        resident_bytes=1024 * fields.get(b"VmRSS", 0),
        swapped_bytes=1024 * fields.get(b"VmSwap", 0),
    )


def read_status(pid: int) -> Status:
    """``/proc/PID/status``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return parse_status(read_small(f"/proc/{pid}/status"))


@attrs.frozen
class ThreadStatus:
    """What memfs needs of ``/proc/PID/task/TID/status``.

    Attributes:
        tracer: the process that traces it; 0 for none.
        inner_number: its own number in the innermost pid namespace that it is in.
        seccomp: SECCOMP_MODE_*; 0 for none.
        pending, shared_pending, blocked: signal sets, bit 0 for signal 1; what waits for the thread,
            what waits for any thread of the process, and what this one does not take now.
    """

    state: bytes
    tracer: int
    inner_number: int
    seccomp: int
    pending: int
    shared_pending: int
    blocked: int


_THREAD_STATUS_LINE = re.compile(
    rb"^(State|TracerPid|NSpid|Seccomp|SigPnd|ShdPnd|SigBlk):\t(?:\d+\t(?=\d))*([0-9A-Za-z]+)", re.MULTILINE
)


def parse_thread_status(text: bytes) -> ThreadStatus:
    """``/proc/PID/task/TID/status``."""
    fields = dict(_THREAD_STATUS_LINE.findall(text))
    return ThreadStatus(
        state=fields[b"State"],
        tracer=int(fields[b"TracerPid"]),
        inner_number=int(fields[b"NSpid"]),
        seccomp=int(fields.get(b"Seccomp", 0)),
        pending=int(fields[b"SigPnd"], 16),
        shared_pending=int(fields[b"ShdPnd"], 16),
        blocked=int(fields[b"SigBlk"], 16),
    )


def read_thread_status(pid: int, tid: int) -> ThreadStatus:
    """``/proc/PID/task/TID/status``.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such thread.
    """
    return parse_thread_status(read_small(f"/proc/{pid}/task/{tid}/status"))


@attrs.frozen
class MemoryUse:
    """One VMA of ``/proc/PID/smaps``: what it holds, and the kernel's flags for it.

    Attributes:
        flags: two letters each (``rd``, ``io``, ``um`` …), proc(5) lists them.
    """

    start: int
    resident_bytes: int
    swapped_bytes: int
    flags: frozenset[bytes]


_SMAPS_ENTRY = re.compile(
    rb"^([0-9a-f]+)-[0-9a-f]+ [r-][w-][x-][sp] .*\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"Rss: +(\d+) kB\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"Swap: +(\d+) kB\n(?:(?![0-9a-f]+-).*\n)*?"
    rb"VmFlags:(.*)\n",
    re.MULTILINE,
)


def parse_smaps(text: bytes) -> Iterator[MemoryUse]:
    """The VMAs of a smaps text, in order of address."""
    # Of thousands of VMAs few differ in flags: one set for all that are alike, since each takes 700 bytes.
    sets: dict[bytes, frozenset[bytes]] = {}
    for entry in _SMAPS_ENTRY.finditer(text):
        start, resident, swapped, letters = entry.groups()
        flags = sets.get(letters)
        if flags is None:
            flags = sets[letters] = frozenset(letters.split())
        yield MemoryUse(int(start, 16), 1024 * int(resident), 1024 * int(swapped), flags)


def process_ids() -> list[int]:
    """The processes that /proc shows, in order of their number."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
