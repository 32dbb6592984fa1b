"""Where a copy has the bytes of each VMA: private memory at its address, objects behind all addresses.

However many VMAs show an object, and however they overlap, each byte of it is copied once, and they all
show that copy. Values only: this module reads nothing.
"""

import bisect
import functools
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.span import Span
from memfs.target.layout import USER_END, Kind, Layout, Region
from memfs.target.origins import ObjectKey, object_key

COPY_BYTES = 1 << 60
"""The size of a copy, as a sparse file: more than addresses and objects together."""


@attrs.frozen
class Wanted:
    """A VMA to be copied, and why."""

    region: Region
    reason: str


@attrs.frozen
class Tile:
    """Addresses to be copied.

    Attributes:
        region: the VMA in which they lie, through which they are read.
        shift: what must be added to an address to have its place in the copy.
    """

    region: Region
    span: Span
    shift: int


@attrs.frozen
class Copied:
    """A VMA that was copied.

    Attributes:
        reason: why.
        size_bytes: how much of it, from its start: what lies behind cannot be read by anyone.
        at: where in the copy it begins.
    """

    reason: str
    size_bytes: int
    at: int


@attrs.frozen
class Group:
    """VMAs that are copied together or not at all: those that show one object, or any other one alone.

    Attributes:
        wanted: the VMAs, as they are before the stop.
        key: of the object.
        places: which bytes of the object are copied, and what must be added to their offset for their place.
    """

    wanted: tuple[Wanted, ...]
    key: ObjectKey | None = None
    places: ReadOnlyDict[Span, int] = attrs.field(factory=dict)

    @functools.cached_property
    def _spans(self) -> list[Span]:
        return sorted(self.places)

    @property
    def private(self) -> bool:
        """Whether no one else can have what is not copied."""
        return self.key is None

    @property
    def starts(self) -> list[int]:
        """Where its VMAs begin, before the stop."""
        return [one.region.span.start for one in self.wanted]

    def shift_of(self, region: Region) -> int | None:
        """What must be added to an address of *region* for its place; None where it has none."""
        if self.key is None:
            return 0
        shown = shown_by(region)
        place = find_cover(shown, self._spans)
        return None if place is None else self.places[place] + shown.start - region.span.start

    def tiles(self, regions: Iterable[Region]) -> Iterator[Tile]:
        """Addresses that together show each byte once that *regions* show; all have a place."""
        at = 0
        for region in sorted(regions, key=_order) if self.key is not None else regions:
            shift = self.shift_of(region)
            assert shift is not None
            span = region.span
            if self.key is not None:
                shown = shown_by(region)
                fresh = Span(min(max(at, shown.start), shown.end), shown.end)
                at = max(at, shown.end)
                span = fresh.moved(region.span.start - shown.start)
            if span:
                yield Tile(region, span, shift)

    def now(self, layout: Layout, objects: ReadOnlyDict[ObjectKey, list[Region]]) -> list[Wanted]:
        """The VMAs of the stopped process that this group's copy can show.

        *objects* are those of *layout*, see :func:`find_objects`.
        """
        if self.key is None:
            return [one for one in self.wanted if next(layout.over(one.region.span), None) == one.region]
        return [
            Wanted(region, self.wanted[0].reason)
            for region in objects.get(self.key, ())
            if self.shift_of(region) is not None
        ]


def group(wanted: Iterable[Wanted]) -> list[Group]:
    """Put *wanted* into groups."""
    alone = []
    objects: dict[ObjectKey, list[Wanted]] = {}
    for one in wanted:
        if _is_object(one.region):
            objects.setdefault(object_key(one.region.mapping), []).append(one)
        else:
            alone.append(Group((one,)))
    at = USER_END
    found = []
    for key, members in objects.items():
        places = {}
        for span in merge(shown_by(one.region) for one in members):
            places[span] = at - span.start
            at += span.size
        found.append(Group(tuple(members), key, places))
    return alone + found


def find_objects(layout: Layout) -> dict[ObjectKey, list[Region]]:
    """The VMAs of *layout* by the object that they show, of those that :func:`group` puts together."""
    found: dict[ObjectKey, list[Region]] = {}
    for region in layout.regions:
        if _is_object(region):
            found.setdefault(object_key(region.mapping), []).append(region)
    return found


def _is_object(region: Region) -> bool:
    return region.kind is Kind.SHARED and not region.served


def shown_by(region: Region) -> Span:
    """The bytes of the object that *region* shows."""
    return Span(region.mapping.offset, region.mapping.offset + region.span.size)


def _order(region: Region) -> int:
    return shown_by(region).start


def merge(spans: Iterable[Span], gap_bytes: int = 0) -> list[Span]:
    """The same bytes as *spans*, and what lies in gaps of *gap_bytes* at most; in order, and apart."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end + gap_bytes:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def find_cover(span: Span, among: Sequence[Span]) -> Span | None:
    """That one of *among*, which are in order and apart, in which all of *span* lies."""
    index = bisect.bisect_right(among, span.start, key=_start) - 1
    return among[index] if index >= 0 and span.end <= among[index].end else None


def _start(span: Span) -> int:
    return span.start
