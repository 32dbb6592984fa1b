"""What changed of a process between two of its snapshots: addresses that are not proven to be the same.

The frozen pages are compared by their frames (:mod:`memfs.linux.frames`), what was copied aside byte by
byte. A page of a mapped file is the same only if no one can have written to the file since the earlier
snapshot. Whatever else there is counts as changed.
"""

import bisect
import contextlib
import functools
import os
from array import array
from collections.abc import Iterable, Iterator

import attrs

from memfs.errors import MemfsError, TargetExited
from memfs.linux.frames import Comparer, shows_frames
from memfs.linux.lease import has_no_writer
from memfs.linux.span import PAGE_BYTES, Span, tiles
from memfs.snapshot.values import Fate, Frozen, Part
from memfs.target.layout import Kind
from memfs.target.origins import ObjectKey, object_key
from memfs.target.process import AddressSpace

_COPY_BYTES = 1 << 20


@attrs.frozen
class Frames:
    """What is compared of one snapshot.

    Attributes:
        copy: the address space of the frozen process; None where all was copied.
        aside: descriptor of what was copied.
        quiet_files: see :func:`find_quiet_files`.
    """

    frozen: Frozen
    copy: AddressSpace | None
    aside: int
    quiet_files: frozenset[ObjectKey]


class Changes:
    """Spans of addresses, in order and apart from each other."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        for span in spans:
            if self._ends and self._ends[-1] == span.start:
                self._ends[-1] = span.end
            else:
                self._starts.append(span.start)
                self._ends.append(span.end)

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self._starts, self._ends)

    def meet(self, span: Span) -> bool:
        """Whether anything in *span* has changed."""
        at = bisect.bisect_right(self._ends, span.start)
        return at < len(self._starts) and self._starts[at] < span.end

    @functools.cached_property
    def text(self) -> bytes:
        """A line ``START-END`` for each, as file names in ``vmas/`` have it."""
        return b"".join(b"%012x-%012x\n" % pair for pair in zip(self._starts, self._ends, strict=True))


def find_quiet_files(frozen: Frozen, copy: AddressSpace | None) -> frozenset[ObjectKey]:
    """The files whose pages are read from them and that, as of now, no one can write to unnoticed.

    No one has them open for writing now, or mapped so. Whoever will, changes the time of the file with
    his first store: file systems on a disk see to that, others (tmpfs, overlayfs) need not.
    """
    if copy is None:
        return frozenset()
    quiet = set()
    for part in frozen.parts:
        mapping = part.region.mapping
        key = object_key(mapping)
        if part.region.kind is Kind.PRIVATE_FILE and key in frozen.files and mapping.device[0]:
            with contextlib.suppress(OSError, MemfsError):
                fd = copy.open_backing(mapping)
                try:
                    if has_no_writer(fd):
                        quiet.add(key)
                finally:
                    os.close(fd)
    return frozenset(quiet)


def compare(earlier: Frames, later: Frames) -> Changes:
    """What of *later* is not proven to be as it was in *earlier*.

    Raises:
        TargetExited: one of the copies was killed.
    """
    comparer = Comparer()
    try:
        found = list(_compare_all(earlier, later, comparer if shows_frames() else None))
        found += _unmapped(earlier.frozen, later.frozen)
        return Changes(sorted(found, key=lambda span: span.start))
    except ProcessLookupError:
        pid = later.frozen.identity.pid
        raise TargetExited(f"a frozen copy of process {pid} was killed") from None
    finally:
        comparer.close()


def _compare_all(earlier: Frames, later: Frames, comparer: Comparer | None) -> Iterator[Span]:
    before = earlier.frozen.parts
    ends = [part.region.span.end for part in before]
    fetched = (*earlier.frozen.fetched, *later.frozen.fetched)
    for part in later.frozen.parts:
        span = part.region.span
        if not part.region.has_file:
            continue
        if any(span.clip(other) for other in fetched):
            yield span
            continue
        for common, other in tiles(span, before[bisect.bisect_right(ends, span.start) :]):
            if other is None:
                yield common
            else:
                yield from _compare_part(earlier, later, other, part, common, comparer)


def _unmapped(earlier: Frozen, later: Frozen) -> Iterator[Span]:
    """What was mapped then and is not now: a hole of the flat file, which may have been data."""
    mapped = [part.region.span for part in later.parts if part.region.has_file]
    ends = [span.end for span in mapped]
    for part in earlier.parts:
        at, end = part.region.span.start, part.region.span.end
        for span in mapped[bisect.bisect_right(ends, at) :]:
            if span.start >= end:
                break
            if span.start > at:
                yield Span(at, span.start)
            at = span.end
        if at < end and part.region.has_file:
            yield Span(at, end)


def _compare_part(
    earlier: Frames, later: Frames, old: Part, new: Part, span: Span, comparer: Comparer | None
) -> Iterator[Span]:
    """The same for addresses that lie in one VMA of either snapshot."""
    kind, mapping = new.region.kind, new.region.mapping
    comparable = old.fate is new.fate and old.region.kind is kind and old.region.mapping.same_memory(mapping)
    if comparable and new.fate is Fate.COPIED:
        yield from _compare_bytes(earlier.aside, old.shift, later.aside, new.shift, span)
        return
    frozen = comparable and new.fate is Fate.FROZEN and comparer is not None
    if not frozen or earlier.copy is None or later.copy is None or comparer is None:
        yield span
    elif kind is Kind.ANONYMOUS:
        yield from comparer.differing(earlier.copy.pagemap, later.copy.pagemap, span)
    elif kind is Kind.PRIVATE_FILE and _is_unwritten(earlier, later, object_key(mapping)):
        yield from comparer.differing(earlier.copy.pagemap, later.copy.pagemap, span, own_only=True)
    else:
        yield span


def _is_unwritten(earlier: Frames, later: Frames, key: ObjectKey) -> bool:
    state = earlier.frozen.files.get(key)
    return state is not None and state == later.frozen.files.get(key) and key in earlier.quiet_files


def _compare_bytes(one: int, one_shift: int, other: int, other_shift: int, span: Span) -> Iterator[Span]:
    for start in range(span.start, span.end, _COPY_BYTES):
        size = min(_COPY_BYTES, span.end - start)
        mine = os.pread(one, size, start + one_shift)
        theirs = os.pread(other, size, start + other_shift)
        if mine == theirs:
            continue
        for at in range(0, size, PAGE_BYTES):
            if mine[at : at + PAGE_BYTES] != theirs[at : at + PAGE_BYTES]:
                yield Span(start + at, start + at + PAGE_BYTES)
