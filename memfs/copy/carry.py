"""Parts of a source into a sink: what is data there and what is not, read in as few calls as may be."""

import functools
from collections.abc import Iterator
from typing import Protocol

import attrs

from memfs.copy.crew import CHUNK_BYTES, SPARE_BYTES, Crew
from memfs.copy.digests import is_zeros
from memfs.copy.meter import Meter
from memfs.copy.sourcefile import SourceFile, chunks
from memfs.linux.span import PAGE_BYTES, Span

_ASKED_BYTES = 64 << 20
"""To ask for the holes in less takes longer than to read them: the mount looks to the end of the data."""
_PIECES_AT_ONCE = 256
_NEAR_BYTES = SPARE_BYTES
"""A read of one page is a round trip of 20 us, in which as much as this can be read: so pieces that are
no further apart are read in one call, and what lies between them is dropped."""


@attrs.frozen
class Slot:
    """Memory that pieces are read into, one after the other, each on a page's start.

    Attributes:
        at: where in the sink it belongs.
    """

    at: int
    view: memoryview


@attrs.frozen
class Placed:
    """A piece of a file, and where in a slot its bytes begin."""

    piece: Span
    at: int


class Sink(Protocol):
    """Where changes go: a copy of the image, or a journal. Threads call it."""

    def hole(self, offset: int, size: int) -> None:
        """There is nothing any more."""

    def slot(self, buffer: memoryview) -> Slot:
        """Memory as large as *buffer*, or that itself."""

    def data(self, pieces: list[Placed], slot: Slot) -> None:
        """The bytes of *pieces*, which stand in *slot*."""


def carry(
    source: SourceFile, spans: list[Span], sink: Sink, crew: Crew, meter: Meter, *, holes: bool
) -> list[Span]:
    """Read *spans*, which are in order, and give them to *sink*; returns what of them is data.

    With *holes*, it is told of what is none: it has something there that must go.

    Raises:
        CannotCopy: either side fails.
    """
    data: list[Span] = []
    for span in spans:
        if span.size < _ASKED_BYTES and holes:
            data.append(span)
            continue
        at = span.start
        for extent in source.extents(span):
            if extent.start > at and holes:
                sink.hole(at, extent.start - at)
            data.append(extent)
            at = extent.end
        if at < span.end and holes:
            sink.hole(at, span.end - at)
    meter.expect(sum(span.size for span in data), source.size_bytes)
    crew.run(functools.partial(_carry_pieces, source, batch, sink, meter) for batch in _batches(data))
    return data


def _batches(data: list[Span]) -> Iterator[list[Span]]:
    """Pieces that fit into one buffer."""
    batch: list[Span] = []
    size = 0
    for piece in chunks(data):
        if batch and (size + piece.size > CHUNK_BYTES or len(batch) == _PIECES_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.size
    if batch:
        yield batch


def _carry_pieces(
    source: SourceFile, pieces: list[Span], sink: Sink, meter: Meter, buffer: memoryview
) -> None:
    size = sum(piece.size for piece in pieces)
    # Only what ends with the file may end inside a page, and nothing comes after that.
    whole = -(-size // PAGE_BYTES) * PAGE_BYTES
    slot = sink.slot(buffer[:whole])
    if whole > size:
        slot.view[size:] = bytes(whole - size)
    run: list[Placed] = []
    placed = []
    at = 0
    for piece in pieces:
        if run and piece.start > run[-1].piece.end + _NEAR_BYTES:
            _read_run(source, run, slot, buffer[CHUNK_BYTES:])
            run = []
        run.append(Placed(piece, at))
        placed.append(run[-1])
        at += piece.size
    _read_run(source, run, slot, buffer[CHUNK_BYTES:])
    meter.add(size)
    data = []
    for one in placed:
        if is_zeros(slot.view[one.at : one.at + one.piece.size]):
            sink.hole(one.piece.start, one.piece.size)
        else:
            data.append(one)
    if data:
        sink.data(data, slot)


def _read_run(source: SourceFile, run: list[Placed], slot: Slot, spare: memoryview) -> None:
    """Read pieces that lie near each other; what lies between them goes into *spare*."""
    parts = []
    end = run[0].piece.start
    for one in run:
        if one.piece.start > end:
            parts.append(spare[: one.piece.start - end])
        parts.append(slot.view[one.at : one.at + one.piece.size])
        end = one.piece.end
    # What lies between may be no memory at all, which no one can read.
    if len(run) == 1 or not source.try_into(run[0].piece.start, parts):
        for one in run:
            source.read_into(one.piece.start, slot.view[one.at : one.at + one.piece.size])
