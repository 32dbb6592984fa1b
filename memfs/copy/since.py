"""The list of changes since an earlier snapshot, which the mount gives, applied to each file of an image.

Pure but for :func:`read_changes` and what reads the head of a core file.
"""

import os
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import attrs

from memfs.copy.place import Place
from memfs.copy.sourcefile import SourceFile, cannot_read, open_in
from memfs.errors import CannotCopy
from memfs.linux.elf import FILE_HEADER, PN_XNUM, PT_LOAD, parse_file_header
from memfs.linux.span import Span, tiles
from memfs.tree.names import SINCE_NAME, SNAPSHOT_XATTR
from memfs.vmanames import VmaName, parse_vma_name

_UPPER = b"0000"
"""Addresses have twelve digits: these are before them in a number of 8 bytes."""


@attrs.frozen
class ChangeList:
    """Addresses that may differ between two snapshots: ranges in order, apart from each other.

    Attributes:
        earlier, later: the names that no other snapshots have.
    """

    earlier: str
    later: str
    _starts: "array[int]"
    _ends: "array[int]"

    def over(self, span: Span) -> Iterator[Span]:
        """Yield the parts of *span* that may differ."""
        for at in self._meeting(span):
            yield Span(max(self._starts[at], span.start), min(self._ends[at], span.end))

    def weigh(self, span: Span) -> tuple[int, int]:
        """Return how many bytes of *span* may differ, and in how many ranges, without visiting each."""
        found = self._meeting(span)
        if not found:
            return 0, 0
        size = sum(self._ends[found.start : found.stop]) - sum(self._starts[found.start : found.stop])
        size -= max(0, span.start - self._starts[found.start])
        size -= max(0, self._ends[found.stop - 1] - span.end)
        return size, len(found)

    def _meeting(self, span: Span) -> range:
        if not span:
            return range(0)
        return range(bisect_right(self._ends, span.start), bisect_left(self._starts, span.end))


def parse_changes(text: bytes) -> ChangeList:
    """Parse the content of ``.since/NAME``."""
    head, _, lines = text.partition(b"\n")
    _, earlier, later = head.decode().split()
    # There may be a line for each page. So all digits are read as one number of 8 bytes after the other.
    digits = (b"\n" + lines[:-1]).replace(b"-", _UPPER).replace(b"\n", _UPPER) if lines else b""
    bounds = array("Q", bytes.fromhex(digits.decode()))
    if sys.byteorder == "little":
        bounds.byteswap()
    return ChangeList(earlier, later, bounds[0::2], bounds[1::2])


def snapshot_id(snapshot: Path, device: int) -> str:
    """Return the unique name of *snapshot*, in the mount *device*.

    Raises:
        CannotCopy: it is gone.
    """
    try:
        fd = open_in(snapshot, device, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.getxattr(fd, SNAPSHOT_XATTR).decode()
        finally:
            os.close(fd)
    except OSError as error:
        raise cannot_read(snapshot, error) from None


def read_changes(place: Place, since: str) -> ChangeList:
    """Read what changed since the snapshot *since*, a name or a path.

    Raises:
        CannotCopy: the source is no snapshot, or *since* is no earlier one of the same process.
    """
    if place.snapshot is None:
        raise CannotCopy(
            f"{place.name} is live, and --since compares snapshots",
            f"mkdir {place.process}/snapshots/NAME, and copy that",
        )
    name = since
    if "/" in since:
        path = Path(os.path.realpath(since))
        name = path.name
        if path.parent != place.snapshot.parent:
            raise CannotCopy(
                f"{since} is not a snapshot of the same process", "name one that ls shows beside it"
            )
    path = place.snapshot / os.fsdecode(SINCE_NAME) / name
    try:
        with open(open_in(path, place.device, os.O_RDONLY), "rb") as file:
            return parse_changes(file.read())
    except FileNotFoundError:
        raise CannotCopy(
            f"there is no snapshot {name} from before {place.snapshot.name}",
            "name an earlier one that still stands, or copy anew without --since",
        ) from None
    except OSError as error:
        raise cannot_read(path, error) from None


@attrs.frozen
class Stretch:
    """A part of a file, and the address of its first byte."""

    span: Span
    address: int


def core_stretches(fd: int) -> list[Stretch]:
    """Return the segments of a core file; none where it is no ELF file, or has PN_XNUM or more."""
    headers = parse_file_header(os.pread(fd, FILE_HEADER.size, 0))
    if headers is None or headers.count == PN_XNUM:
        return []
    table = os.pread(fd, headers.count * headers.header_bytes, headers.offset)
    return [
        Stretch(Span(found.offset, found.offset + found.file_bytes), found.address)
        for found in headers.parse(table)
        if found.type == PT_LOAD and found.file_bytes
    ]


def vma_name(name: str) -> VmaName:
    """Parse the name of a file in ``vmas/``.

    Raises:
        ValueError: it is none.
    """
    found = parse_vma_name(os.fsencode(name))
    if found is None:
        raise ValueError(f"{name} is not the name of a VMA")
    return found


@attrs.frozen
class Asked:
    """Which parts of a file to look up in the changes, and which to carry over in any case.

    Attributes:
        stretches: the parts that were there in the earlier snapshot, too.
        anyway: the parts that were not.
    """

    stretches: tuple[Stretch, ...]
    anyway: tuple[Span, ...] = ()

    def weigh(self, changes: ChangeList) -> tuple[int, int]:
        """Return how many bytes have to be carried over, and in how many ranges."""
        size, count = sum(span.size for span in self.anyway), len(self.anyway)
        for stretch in self.stretches:
            more = changes.weigh(stretch.span.moved(stretch.address - stretch.span.start))
            size, count = size + more[0], count + more[1]
        return size, count

    def changed(self, changes: ChangeList) -> list[Span]:
        """Return the ranges of the file that have to be carried over, in order."""
        found = list(self.anyway)
        for stretch in self.stretches:
            back = stretch.span.start - stretch.address
            addresses = stretch.span.moved(-back)
            found += (
                (span.moved(back) for span in changes.over(addresses)) if back else changes.over(addresses)
            )
        if self.anyway:
            found.sort()
        return found


def asked_of(source: SourceFile, names: tuple[str, ...], before: Span | None, old: int) -> Asked:
    """Return which parts of *source* to look up, for an image of the same part of an earlier snapshot.

    *names* lead to the source. *before* are the addresses of the earlier part, if it is a VMA; *old* is a
    descriptor of the image.
    """
    size = source.size_bytes
    whole = Span(0, size)
    if names == ("mem",):
        return Asked((Stretch(whole, 0),))
    if before is not None:
        now = vma_name(names[1]).span
        common = now.clip(before)
        grown = (Span(before.size, size),) if before.size < size else ()
        return Asked((Stretch(common.moved(-now.start), common.start),), grown)
    if names == ("core",):
        known = set(core_stretches(old))
        stretches, anyway = [], []
        for span, stretch in tiles(whole, core_stretches(source.fd)):
            if stretch is not None and stretch in known:
                stretches.append(stretch)
            else:
                anyway.append(span)
        return Asked(tuple(stretches), tuple(anyway))
    return Asked((), (whole,))
