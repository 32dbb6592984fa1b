"""Where a kind puts its mappings, and how it makes, fills and touches them.

Every kind has its own 128 GiB of address space, at the same addresses in every holder, so that a program
that execs into another holder, or one that gets its pid, has other bytes at the very same places. Mappings
never touch one another, so the kernel does not merge them. All but the huge ones refuse huge pages: what is
written is what is there.

Standard library only. This file knows of no kind, no command and no test.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from support import kernel
from support.describe import Layer, Mapping, Run
from support.kernel import Advice, Map, Prot
from support.pattern import PAGE, fill

MIB = 1 << 20
GIB = 1 << 30
HUGE = 2 * MIB
FIRST_SLOT = 0x1000_0000_0000
SLOT = 128 * GIB
_CHUNK = MIB
_RW = Prot.READ | Prot.WRITE


def perms_text(prot: Prot, shared: bool) -> str:
    """The permissions as /proc/PID/maps prints them."""
    bits = ((Prot.READ, "r"), (Prot.WRITE, "w"), (Prot.EXEC, "x"))
    return "".join(letter if prot & bit else "-" for bit, letter in bits) + ("s" if shared else "p")


def write_pattern(run: Run, seed: int) -> None:
    """Write the pattern of *seed* into this process, a chunk at a time."""
    for address in range(run.start, run.end, _CHUNK):
        kernel.poke(address, fill(address, min(_CHUNK, run.end - address), seed))


def touch_pages(run: Run) -> None:
    """Read one byte of every page."""
    for address in range(run.start, run.end, PAGE):
        kernel.peek(address, 1)


def write_file(descriptor: int, run: Run, seed: int) -> None:
    """Write the pattern of *seed*, by file offset, into a file."""
    for offset in range(run.start, run.end, _CHUNK):
        data = fill(offset, min(_CHUNK, run.end - offset), seed)
        if os.pwrite(descriptor, data, offset) != len(data):
            raise OSError(f"short write at {offset}")


@dataclass
class Room:
    """Where one kind puts its mappings."""

    kind: str
    seed: int
    directory: Path
    size: int
    next_address: int
    children: list[int] = field(default_factory=list)

    def take(self, length: int) -> int:
        """The next free address, aligned for huge pages, with a gap behind the mapping."""
        address = self.next_address
        self.next_address = (address + length + 2 * HUGE) // HUGE * HUGE
        return address

    def pages(self, mapping: Mapping, first: int, end: int) -> Run:
        """Pages *first* to *end* of a mapping, as a run of addresses."""
        return Run(mapping.run.start + first * PAGE, mapping.run.start + end * PAGE)

    def map(
        self,
        length: int,
        flags: Map,
        prot: Prot = _RW,
        descriptor: int = -1,
        offset: int = 0,
        huge: bool = False,
    ) -> Mapping:
        """Map *length* bytes, rounded up to pages."""
        length = -(-length // PAGE) * PAGE
        address = kernel.map_memory(self.take(length), length, prot, flags, descriptor, offset)
        if not huge and not flags & Map.HUGETLB:
            refuse_huge_pages(address, length)
        run = Run(address, address + length)
        return Mapping(self.kind, run, perms_text(prot, bool(flags & Map.SHARED)), self.seed, offset=offset)

    def write(self, mapping: Mapping, runs: Iterable[tuple[int, int]]) -> None:
        """Write runs of pages, given by number, with this room's seed."""
        for first, end in runs:
            run = self.pages(mapping, first, end)
            write_pattern(run, self.seed)
            mapping.wrote(run, self.seed)
            mapping.touched.append(run)

    def write_all(self, mapping: Mapping) -> None:
        """Write every page."""
        self.write(mapping, [(0, (mapping.run.end - mapping.run.start) // PAGE)])

    def touch(self, mapping: Mapping, first: int, end: int) -> None:
        """Read one byte of each of some pages."""
        run = self.pages(mapping, first, end)
        touch_pages(run)
        mapping.touched.append(run)

    def file(self, name: bytes, data: Iterable[Run], length: int) -> tuple[int, bytes]:
        """A new file of *length* bytes with the pattern over *data*; its descriptor and path."""
        path = os.path.join(os.fsencode(self.directory), name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return self._filled(descriptor, data, length), path

    def memfd(self, name: bytes, data: Iterable[Run], length: int, flags: int = 0) -> tuple[int, bytes]:
        """A memfd of *length* bytes with the pattern over *data*; its descriptor and its path in maps."""
        descriptor = os.memfd_create(os.fsdecode(name), os.MFD_CLOEXEC | flags)
        return self._filled(descriptor, data, length), b"/memfd:" + name

    def _filled(self, descriptor: int, data: Iterable[Run], length: int) -> int:
        os.ftruncate(descriptor, length)
        for run in data:
            write_file(descriptor, run, self.seed)
        return descriptor

    def map_file(
        self,
        opened: tuple[int, bytes],
        data: Iterable[Run],
        length: int,
        flags: Map = Map.PRIVATE,
        prot: Prot = _RW,
        offset: int = 0,
        deleted: bool = False,
    ) -> Mapping:
        """Map a file whose *data* runs, by file offset, hold the pattern; closes the descriptor."""
        descriptor, path = opened
        try:
            mapping = self.map(length, flags, prot, descriptor, offset)
        finally:
            os.close(descriptor)
        mapping.path, mapping.deleted = path, deleted
        for run in data:
            first, end = max(run.start, offset), min(run.end, offset + length)
            if first < end:
                shift = mapping.run.start - offset
                mapping.object_layers.append(Layer(Run(first + shift, end + shift), self.seed, first))
        return mapping


def refuse_huge_pages(address: int, length: int) -> None:
    """Keep the range to pages of 4 KiB."""
    with contextlib.suppress(OSError):  # EINVAL: the kernel has no huge pages, or this mapping cannot
        kernel.advise(address, length, Advice.NOHUGEPAGE)


def wait_for_end() -> None:
    """Block for good; the process ends by a signal, or with its parent."""
    never, _end_kept_open = os.pipe()
    os.read(never, 1)
