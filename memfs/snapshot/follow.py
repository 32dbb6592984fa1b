"""Large shared memory, copied while its process runs; in the stop only what was written since.

Writes are noted by the kernel (:mod:`memfs.linux.userfaultfd`), so far as they go through the mappings of
this process. That no others were made is seen afterwards: what was not written, as the notes say, must still
be what was copied. Else the copy is dropped, and `info.json` says why.
"""

import contextlib
import errno
import math
import mmap
import os
import time
from collections.abc import Iterable, Iterator

import attrs

from memfs.errors import MemfsError
from memfs.image.objects import find_in_file
from memfs.image.source import MAX_READ_BYTES
from memfs.linux.pagemap import take_written
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import punch_hole
from memfs.linux.userfaultfd import WriteRecord
from memfs.snapshot.places import Copied, Group, find_cover, find_objects, merge, shown_by
from memfs.target.layout import Layout, Region
from memfs.target.origins import ObjectKey
from memfs.target.process import AddressSpace

_GAP_BYTES = 16 << 10
"""What lies between two written pages is copied with them if it is no more: a call costs more than that."""
_MOST_ROUNDS = 8
_FEW_BYTES = 1 << 20
"""So little is left for the stop at once."""

WRITTEN = "and more was written meanwhile than snapshot_copy allows"
FOREIGN = "and someone else may have written to it meanwhile"
REMAPPED = "and it was mapped anew meanwhile"
SLOW = "and copying it took too long"


@attrs.define
class _Followed:
    """A group of VMAs that show one object, and its copy.

    Attributes:
        fd: of the object.
        writable: those of the VMAs through which it can be written.
        windows: the copy's own pages, by the bytes of the object that they hold.
        copied: the VMAs of the stopped process that its copy shows, by their start address.
    """

    group: Group
    fd: int
    writable: tuple[Region, ...]
    windows: dict[Span, memoryview] = attrs.field(factory=dict)
    copied: dict[int, Copied] = attrs.field(factory=dict)

    def copy(self, spans: Iterable[Span], deadline: float) -> None:
        """Copy these bytes of the object, in order.

        Raises:
            OSError: they cannot be read, or not in time.
        """
        places = list(self.windows)
        at = 0
        for span in spans:
            while at < len(places) and places[at].end <= span.start:
                at += 1
            for place in places[at:]:
                if place.start >= span.end:
                    break
                self._copy_in(place, span.clip(place), deadline)

    def _copy_in(self, place: Span, part: Span, deadline: float) -> None:
        window = self.windows[place]
        for start in range(part.start, part.end, MAX_READ_BYTES):
            end = min(start + MAX_READ_BYTES, part.end)
            into = window[start - place.start : end - place.start]
            if os.preadv(self.fd, [into], start) != len(into):
                raise OSError(errno.ENODATA, "the object was cut short")
            if time.monotonic() > deadline:
                raise TimeoutError

    def data(self) -> Iterator[Span]:
        """The bytes of the object that are there, of those to be copied."""
        for place in self.windows:
            yield from _data_in(self.fd, place, 0)


class Follower:
    """The copies under way of one process.

    Attributes:
        why: why an object is not copied, by its key.
        copied: the VMAs that are copied, by their start address: none before :meth:`check`.
    """

    def __init__(self, space: AddressSpace, aside: int, fd: int, deadline: float) -> None:
        """Copy into the memfd *aside*; take over *fd*, a new userfaultfd of *space*.

        What is not copied by *deadline*, while the process runs, is not copied at all.

        Raises:
            OSError: this kernel cannot note writes.
        """
        self.why: dict[ObjectKey, str] = {}
        self.copied: dict[int, Copied] = {}
        self._space = space
        self._aside = aside
        self._deadline = deadline
        self._record = WriteRecord(fd)
        self._followed: list[_Followed] = []

    def close(self) -> None:
        """Lift all protection, and let go of all but the memfd."""
        self._record.close()
        for each in self._followed:
            os.close(each.fd)
        self._followed.clear()

    # While the process runs

    def follow(self, group: Group, writable: tuple[Region, ...]) -> None:
        """Protect the VMAs of *group*, of which *writable* can be written through, and copy the object."""
        region = group.wanted[0].region
        with contextlib.suppress(OSError, MemfsError):
            each = _Followed(group, self._space.open_backing(region.mapping), writable)
            self._followed.append(each)
            try:
                for one in writable:
                    self._record.register(one.span)
                    self._record.protect(one.span)
                for place, shift in group.places.items():
                    pages = mmap.mmap(self._aside, place.size, offset=place.start + shift)
                    each.windows[place] = memoryview(pages)
                each.copy(each.data(), self._deadline)
            except OSError as error:
                self._give_up(each, SLOW if isinstance(error, TimeoutError) else "")

    def catch_up(self) -> None:
        """Copy what was written meanwhile, again and again, until that is little or does not get less."""
        before = 0
        for turn in range(_MOST_ROUNDS):
            written = sum(self._copy_written(each) for each in tuple(self._followed))
            if written <= _FEW_BYTES or (turn and written > before // 2):
                return
            before = written

    def _copy_written(self, each: _Followed) -> int:
        try:
            spans = [span for region in each.writable for span in self._written(region)]
            each.copy(merge(spans, _GAP_BYTES), self._deadline)
        except OSError as error:
            self._give_up(each, SLOW if isinstance(error, TimeoutError) else REMAPPED)
            return 0
        return sum(span.size for span in spans)

    def _written(self, region: Region) -> Iterator[Span]:
        """The bytes of the object that were written through *region* since it was asked last."""
        to_object = shown_by(region).start - region.span.start
        return (span.moved(to_object) for span in take_written(self._space.pagemap, region.span))

    # While it stands still

    def take(self, layout: Layout, limit_bytes: int) -> None:
        """Copy the last of it, *limit_bytes* at most; *layout* is that of the stopped process."""
        objects = find_objects(layout)
        for each in tuple(self._followed):
            regions = objects.get(each.group.key, []) if each.group.key is not None else []
            try:
                spans = merge(self._all_written(each, regions), _GAP_BYTES)
                size = sum(span.size for span in spans)
                if size > limit_bytes:
                    self._give_up(each, WRITTEN)
                    continue
                limit_bytes -= size
                each.copy(spans, math.inf)
                size_bytes = os.fstat(each.fd).st_size
            except OSError:
                self._give_up(each, REMAPPED)
                continue
            for region in regions:
                shift = each.group.shift_of(region)
                assert shift is not None
                start, shown = region.span.start, shown_by(region)
                size = Span(0, size_bytes).clip(shown).size
                each.copied[start] = Copied(each.group.wanted[0].reason, size, start + shift)

    def _all_written(self, each: _Followed, regions: list[Region]) -> list[Span]:
        """What was written through *regions*, which must be those that were protected, split or joined maybe.

        Raises:
            OSError: they are not.
        """
        now = merge(region.span for region in regions)
        fixed = {one.region for one in each.group.wanted}.difference(each.writable)
        gone = any(find_cover(region.span, now) is None for region in each.writable)
        if gone or any(each.group.shift_of(region) is None for region in regions):
            raise OSError(errno.ENOENT, "mappings of the object came or went")
        return [span for region in regions if region not in fixed for span in self._written(region)]

    # Once it runs again

    def check(self, deadline: float) -> None:
        """Drop the copies of objects that someone else may have written, and those not compared in time."""
        for each in tuple(self._followed):
            try:
                proven = self._is_proven(each, deadline)
            except OSError as error:  # it was mapped anew: the notes are gone
                self._give_up(each, SLOW if isinstance(error, TimeoutError) else FOREIGN)
                continue
            if proven:
                self.copied |= each.copied
            else:
                self._give_up(each, FOREIGN)

    def _is_proven(self, each: _Followed, deadline: float) -> bool:
        """Whether what is not as it was copied was written through our VMAs, after the stop."""
        differing = list(self._differing(each, deadline))
        if not differing:
            return True
        written = merge(span for region in each.writable for span in self._written(region))
        return all(find_cover(page, written) is not None for page in differing)

    def _differing(self, each: _Followed, deadline: float) -> Iterator[Span]:
        """The pages of the object that are not as they were copied."""
        for place, shift in each.group.places.items():
            there = [*_data_in(each.fd, place, 0), *_data_in(self._aside, place, shift)]
            for span in merge(there):
                for start in range(span.start, span.end, MAX_READ_BYTES):
                    size = min(MAX_READ_BYTES, span.end - start)
                    if time.monotonic() > deadline:
                        raise TimeoutError
                    now = os.pread(each.fd, size, start)
                    then = os.pread(self._aside, size, start + shift)
                    if now == then:
                        continue
                    for at in range(0, size, PAGE_BYTES):
                        if now[at : at + PAGE_BYTES] != then[at : at + PAGE_BYTES]:
                            yield Span(start + at, start + at + PAGE_BYTES)

    def give_up(self) -> None:
        """Have nothing copied: it may be another program now."""
        for each in tuple(self._followed):
            self._give_up(each, REMAPPED)

    def _give_up(self, each: _Followed, why: str) -> None:
        self._followed.remove(each)
        if why and each.group.key is not None:
            self.why[each.group.key] = why
        each.windows.clear()
        os.close(each.fd)
        for place, shift in each.group.places.items():
            with contextlib.suppress(OSError):
                punch_hole(self._aside, place.start + shift, place.size)


def _data_in(fd: int, span: Span, shift: int) -> Iterator[Span]:
    """What *fd* holds of *span*, which lies *shift* further up in it."""
    at = span.start
    while at < span.end:
        begin = find_in_file(fd, Span(at, span.end), shift, data=True)
        if begin >= span.end:
            return
        at = find_in_file(fd, Span(begin, span.end), shift, data=False)
        yield Span(begin, at)
