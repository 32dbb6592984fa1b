"""What a holder holds, as values: which bytes must be at which address, known without reading any memory.

Everything is computed from the pattern and the holder's words, independently of memfs and of /proc. These
values do no I/O.
"""

from collections.abc import Iterable, Iterator
from os import fsencode
from pathlib import Path
from typing import Self

import attrs

from support.child import Json
from support.pattern import PAGE, fill


@attrs.frozen(order=True)
class Span:
    """The bytes from *start* up to *end*."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes in the span."""
        return self.end - self.start

    def overlap(self, other: "Span") -> "Span | None":
        """What both have, where there is anything."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Span(start, end) if start < end else None

    def to_pages(self) -> "Span":
        """The pages that this span is on."""
        return Span(self.start // PAGE * PAGE, -(-self.end // PAGE) * PAGE)


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, with what touches or overlaps made one."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def _around(span: Span, hole: Span) -> tuple[Span, Span]:
    return Span(span.start, min(span.end, hole.start)), Span(max(span.start, hole.end), span.end)


def subtract(spans: Iterable[Span], holes: Iterable[Span]) -> tuple[Span, ...]:
    """*spans*, merged, without *holes*."""
    left = list(merge(spans))
    for hole in holes:
        parts = [part for span in left for part in _around(span, hole)]
        left = [part for part in parts if part.start < part.end]
    return tuple(left)


@attrs.frozen
class Layer:
    """The pattern of *seed* over *span*, beginning with the pattern's byte at *origin*."""

    span: Span
    seed: int
    origin: int


@attrs.frozen
class HeldMapping:
    """One mapping that a holder made.

    *span* is a VMA, but for kind ``stack`` (*whole_vma* is false: a part of one) and ``vmas-60000``
    (*vma_count* of one page each: even pages ``rw-p``, odd ones ``r--p``).
    """

    kind: str
    span: Span
    perms: str
    """As in maps: ``rw-p``."""
    seed: int
    path: bytes | None
    """As in maps, but raw (maps writes a newline as ``\\012``) and without `` (deleted)``."""
    deleted: bool
    """Whether maps has `` (deleted)`` behind the path."""
    offset: int
    """Of the mapping's first byte in its file."""
    whole_vma: bool
    vma_count: int
    huge_bytes: int
    """Bytes of it on huge pages."""
    layers: tuple[Layer, ...]
    """Later ones cover earlier ones; what none covers is zero."""
    touched: tuple[Span, ...]
    """Pages in this process's page table, merged, until another touches it; see `touched_exact`."""
    unreadable: tuple[Span, ...]
    """Pages that no one can read: guards, beyond the file's end, unmapped, secret."""

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """One of the objects in a holder's answer."""
        values = dict(json)
        path = values["path"]
        span = Span(values.pop("start"), values.pop("end"))
        values["path"] = None if path is None else fsencode(path)
        values["layers"] = tuple(Layer(Span(start, end), *rest) for start, end, *rest in values["layers"])
        for name in ("touched", "unreadable"):
            values[name] = merge(Span(start, end) for start, end in values[name])
        return cls(span=span, **values)

    @property
    def start(self) -> int:
        """The first address."""
        return self.span.start

    @property
    def end(self) -> int:
        """The address behind the last."""
        return self.span.end

    @property
    def length(self) -> int:
        """Bytes in the mapping."""
        return self.span.length

    def expected(self, offset: int, length: int) -> bytes:
        """The bytes that a reader must get at *offset* into the mapping.

        Raises:
            ValueError: not all of them can be read.
        """
        wanted = Span(self.start + offset, self.start + offset + length)
        if wanted.end > self.end or any(wanted.overlap(bad) for bad in self.unreadable):
            raise ValueError(f"{wanted} of {self.kind} is not readable")
        content = bytearray(length)
        for layer in self.layers:
            if part := wanted.overlap(layer.span):
                data = fill(layer.origin + part.start - layer.span.start, part.length, layer.seed)
                content[part.start - wanted.start : part.end - wanted.start] = data
        return bytes(content)

    def mismatch(self, offset: int, data: bytes) -> str | None:
        """Where *data*, read at *offset*, first differs from `expected`, in words; None where it is right."""
        expected = self.expected(offset, len(data))
        if expected == data:
            return None
        at = next(index for index, pair in enumerate(zip(expected, data, strict=True)) if pair[0] != pair[1])
        address = self.start + offset + at
        got, must = data[at : at + 8].hex(), expected[at : at + 8].hex()
        return f"{self.kind} at {address:#x} (offset {offset + at:#x}): {got}, must be {must}"

    @property
    def touched_exact(self) -> bool:
        """Whether `touched` tells every page.

        Not so for files mapped shared: where the file system has large folios, the kernel maps all of one at
        a fault, and unmaps all of it when a truncation splits it.
        """
        return not (self.perms[3] == "s" and self.path is not None and self.kind.startswith("file-"))

    @property
    def data(self) -> tuple[Span, ...]:
        """Readable pages with content, merged: what a copy must hold."""
        return subtract((layer.span.to_pages() for layer in self.layers), self.unreadable)

    @property
    def holes(self) -> tuple[Span, ...]:
        """Readable pages that are zero and were never written (they may be `touched`)."""
        return subtract([self.span], (*self.data, *self.unreadable))

    @property
    def readable(self) -> tuple[Span, ...]:
        """What of the mapping can be read, merged."""
        return subtract([self.span], self.unreadable)

    @property
    def edges(self) -> tuple[int, ...]:
        """Every address where content begins or ends, the mapping's own ends among them."""
        spans = (self.span, *self.touched, *self.unreadable, *(layer.span for layer in self.layers))
        return tuple(sorted({edge for span in spans for edge in (span.start, span.end)}))

    def pieces(self, length: int = 1 << 20) -> Iterator[Span]:
        """The readable *data*, cut into spans of at most *length* bytes."""
        for span in self.data:
            for start in range(span.start, span.end, length):
                yield Span(start, min(start + length, span.end))


@attrs.frozen
class Held:
    """All that a holder says about itself."""

    pid: int
    """Its pid, in its own pid namespace."""
    seed: int
    directory: Path
    """Where its files are."""
    children: tuple[int, ...]
    unavailable: dict[str, str]
    """Kinds this machine cannot make, and why."""
    mappings: tuple[HeldMapping, ...]

    @classmethod
    def from_json(cls, json: Json) -> Self:
        """A holder's first line."""
        return cls(
            pid=json["pid"],
            seed=json["seed"],
            directory=Path(json["directory"]),
            children=tuple(json["children"]),
            unavailable=json["unavailable"],
            mappings=tuple(HeldMapping.from_json(each) for each in json["mappings"]),
        )

    def of(self, kind: str) -> tuple[HeldMapping, ...]:
        """The mappings of one kind."""
        return tuple(mapping for mapping in self.mappings if mapping.kind == kind)

    def with_changed(self, changed: Iterable[HeldMapping]) -> Self:
        """The same, with new descriptions of some mappings, which are known by where they begin."""
        known = {mapping.start: mapping for mapping in (*self.mappings, *changed)}
        return attrs.evolve(self, mappings=tuple(known.values()))
