"""What changed since an earlier snapshot, as the mount tells it, and what of each file that is.

Pure but for :func:`read_changes` and what reads the head of a core file.
"""

import os
import struct
from bisect import bisect_right
from pathlib import Path

import attrs

from memfs.copy.place import Place
from memfs.copy.reading import Reading, cannot_read
from memfs.errors import CannotCopy
from memfs.fuse.names import SINCE_NAME, SNAPSHOT_XATTR
from memfs.linux.span import Span


@attrs.frozen
class Changes:
    """Addresses that may differ between two snapshots.

    Attributes:
        earlier, later: the names that no other snapshots have.
        spans: in order, apart from each other.
    """

    earlier: str
    later: str
    spans: tuple[Span, ...]
    _ends: tuple[int, ...]

    def over(self, span: Span) -> list[Span]:
        """What of *span* may differ."""
        found = []
        for other in self.spans[bisect_right(self._ends, span.start) :]:
            part = other.clip(span)
            if not part:
                break
            found.append(part)
        return found


def parse_changes(text: bytes) -> Changes:
    """The content of ``.since/NAME``."""
    head, _, lines = text.partition(b"\n")
    _, earlier, later = head.decode().split()
    spans = tuple(Span(int(line[:12], 16), int(line[13:], 16)) for line in _lines(lines))
    return Changes(earlier, later, spans, tuple(span.end for span in spans))


def _lines(text: bytes) -> list[bytes]:
    return text.split(b"\n")[:-1]


def snapshot_id(snapshot: Path) -> str:
    """The name of *snapshot* that no other one has.

    Raises:
        CannotCopy: it is gone.
    """
    try:
        return os.getxattr(snapshot, SNAPSHOT_XATTR).decode()
    except OSError as error:
        raise cannot_read(snapshot, error) from None


def read_changes(place: Place, since: str) -> Changes:
    """What changed since the snapshot *since*, a name or a path.

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
        return parse_changes(path.read_bytes())
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


_ELF_HEADER = struct.Struct("<4s28xQQ6xHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1
_MOST_SEGMENTS = 0xFFFF  # PN_XNUM: the number stands elsewhere


def core_stretches(fd: int) -> list[Stretch]:
    """The segments of a core file; none where it is no file that memfs would make, or has too many."""
    try:
        magic, at, _, _, _, count = _ELF_HEADER.unpack(os.pread(fd, _ELF_HEADER.size, 0))
    except struct.error:
        return []
    if magic != b"\x7fELF" or count == _MOST_SEGMENTS:
        return []
    table = os.pread(fd, count * _PROGRAM_HEADER.size, at)
    found = []
    for kind, _, offset, address, _, size, _, _ in _PROGRAM_HEADER.iter_unpack(table):
        if kind == _PT_LOAD and size:
            found.append(Stretch(Span(offset, offset + size), address))
    return found


def vma_span(name: str) -> Span:
    """The addresses of the file of that name in ``vmas/``."""
    start, _, rest = name.partition("-")
    return Span(int(start, 16), int(rest.partition("_")[0], 16))


def changed_in(
    source: Reading, names: tuple[str, ...], old_name: str, old: int, changes: Changes
) -> list[Span]:
    """What must be carried over of *source* into a file that was the same part of the earlier snapshot.

    *names* lead to the source, *old_name* was the last of them then; *old* is a descriptor of the image.
    """
    size = source.size_bytes
    whole = Span(0, size)
    if names == ("mem",):
        return [span.clip(whole) for span in changes.over(whole)]
    if names[:1] == ("vmas",):
        now, before = vma_span(names[1]), vma_span(old_name)
        found = [span.moved(-now.start) for span in changes.over(now.clip(before))]
        return [*found, Span(before.size, size)] if before.size < size else found
    if names == ("core",):
        known = set(core_stretches(old))
        found = []
        at = 0
        for stretch in core_stretches(source.fd):
            if stretch.span.start > at:
                found.append(Span(at, stretch.span.start))
            if stretch in known:
                addresses = stretch.span.moved(stretch.address - stretch.span.start)
                found += [
                    span.moved(stretch.span.start - stretch.address) for span in changes.over(addresses)
                ]
            else:
                found.append(stretch.span)
            at = stretch.span.end
        return [*found, Span(at, size)] if at < size else found
    return [whole]
