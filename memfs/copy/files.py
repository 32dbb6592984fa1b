"""One file of the mount into one new file: read and written by the crew, holes kept, checked if wished."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from memfs.copy import digests
from memfs.copy.crew import CHUNK_BYTES, Crew, Work
from memfs.copy.held import Image
from memfs.copy.mark import Mark, mark_file, size_and_time
from memfs.copy.meter import Meter
from memfs.copy.newfile import NewFile, cannot_write
from memfs.copy.place import Place
from memfs.copy.sourcefile import SourceFile, chunks, data_extents, open_source
from memfs.errors import CannotCopy
from memfs.linux.folder import FolderEntry
from memfs.linux.span import PAGE_BYTES, Span


@attrs.frozen
class Checks:
    """What is to be made sure of, besides the copy.

    Attributes:
        verify: whether the destination is read back and compared.
        checksum: whether the digest of the content is wanted.
    """

    verify: bool = False
    checksum: bool = False


@attrs.frozen
class Tools:
    """What all files of one copy share."""

    crew: Crew
    meter: Meter
    checks: Checks


def fill(source: SourceFile, new: NewFile, tools: Tools, *, sync: bool = True) -> str:
    """Copy all of *source* into *new*, which is not installed; returns its digest where it is wanted.

    Without *sync*, having it on the disk is the caller's business.

    Raises:
        CannotCopy: either side fails, or what was read back is not what was written.
    """
    size_bytes = source.size_bytes
    extents = list(source.extents())
    data_bytes = sum(extent.size for extent in extents)
    tools.meter.expect(data_bytes * (2 if tools.checks.verify else 1), size_bytes - data_bytes)
    new.begin(size_bytes, extents)
    content = digests.Content() if tools.checks.checksum else None
    written: dict[int, bytes] = {}
    copy_piece = functools.partial(_copy_piece, source, new, tools, content, written)
    tools.crew.run(_numbered(copy_piece, extents))
    new.finish(size_bytes, sync=sync)
    if tools.checks.verify:
        verify(new, size_bytes, extents, written, tools)
    return content.finish(size_bytes) if content is not None else ""


def _numbered(action: "functools.partial[None]", extents: list[Span]) -> Iterator[Work]:
    for number, piece in enumerate(chunks(extents)):
        yield functools.partial(action, number, piece)


def _copy_piece(
    source: SourceFile,
    new: NewFile,
    tools: Tools,
    content: digests.Content | None,
    written: dict[int, bytes],
    number: int,
    piece: Span,
    buffer: memoryview,
) -> None:
    view = buffer[: piece.size]
    try:
        source.read_into(piece.start, view)
        if content is not None:
            content.add(number, piece, view)
        if tools.checks.verify:
            written[piece.start] = digests.of_piece(view)
        whole = -(-piece.size // PAGE_BYTES) * PAGE_BYTES
        if whole > piece.size:
            buffer[piece.size : whole] = bytes(whole - piece.size)
        new.write(piece.start, buffer[:whole])
    except BaseException:
        if content is not None:
            content.break_off()
        raise
    tools.meter.add(piece.size)


def verify(
    new: NewFile, size_bytes: int, extents: list[Span], written: dict[int, bytes], tools: Tools
) -> None:
    """Read *new* back, from the disk where it went there directly, and compare.

    Raises:
        CannotCopy: something else is read than was written.
    """
    tools.meter.doing = "verifying"
    tools.crew.run(
        functools.partial(_verify_piece, new, tools.meter, piece, written[piece.start])
        for piece in chunks(extents)
    )
    unexpected = list(_outside(data_extents(new.fd, size_bytes), extents))
    tools.crew.run(functools.partial(_verify_piece, new, None, piece, b"") for piece in chunks(unexpected))
    tools.meter.doing = "copying"


def _verify_piece(new: NewFile, meter: Meter | None, piece: Span, digest: bytes, buffer: memoryview) -> None:
    """An empty *digest* stands for zeros."""
    try:
        got = os.preadv(new.fd, (buffer[: -(-piece.size // PAGE_BYTES) * PAGE_BYTES],), piece.start)
    except OSError as error:
        raise cannot_write(new.target, error) from None
    view = buffer[: piece.size]
    same = got == piece.size and (digests.of_piece(view) == digest if digest else digests.is_zeros(view))
    if not same:
        raise _differs(new.target)
    if meter is not None:
        meter.add(piece.size)


def _outside(found: Iterator[Span], known: list[Span]) -> Iterator[Span]:
    """The parts of *found* that are in none of *known*; both are in order."""
    at = 0
    for span in found:
        start = span.page_aligned().start
        while at < len(known) and known[at].end <= start:
            at += 1
        for other in known[at:]:
            if other.start >= span.end:
                break
            if other.start > start:
                yield Span(start, other.start)
            start = max(start, other.end)
        if start < span.end:
            yield Span(start, span.end)


def check(place: Place, image: Image, name: str, tools: Tools) -> str:
    """Compare the file *name* of *image*, read from the disk, with that of *place*, if that is wished.

    Returns its digest, if wanted.

    Raises:
        CannotCopy: they differ.
    """
    if tools.checks.verify:
        tools.meter.doing = "verifying"
        with open_source(place.path / name, place.device) as wanted, image.reading(name) as found:
            os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            extents = list(wanted.extents())
            outside = list(_outside(data_extents(found.fd, found.size_bytes), extents))
            tools.meter.expect(sum(extent.size for extent in extents))
            if wanted.size_bytes != found.size_bytes:
                raise _differs(found.path)
            tools.crew.run(
                functools.partial(_check_piece, wanted, found, tools.meter, piece)
                for piece in chunks(extents)
            )
            tools.crew.run(
                functools.partial(_check_piece, None, found, None, piece) for piece in chunks(outside)
            )
    if not tools.checks.checksum:
        return ""
    content = digests.Content()
    with image.reading(name) as found, memoryview(bytearray(CHUNK_BYTES)) as buffer:
        for number, piece in enumerate(chunks(list(data_extents(found.fd, found.size_bytes)))):
            view = buffer[: piece.size]
            found.read_into(piece.start, view)
            content.add(number, piece, view)
        return content.finish(found.size_bytes)


def _check_piece(
    wanted: SourceFile | None, found: SourceFile, meter: Meter | None, piece: Span, buffer: memoryview
) -> None:
    """Without *wanted*, zeros are."""
    view = buffer[: piece.size]
    found.read_into(piece.start, view)
    digest = digests.of_piece(view) if wanted is not None else b""
    if wanted is not None:
        wanted.read_into(piece.start, view)
    if not (digests.of_piece(view) == digest if wanted is not None else digests.is_zeros(view)):
        raise _differs(found.path)
    if meter is not None:
        meter.add(piece.size)


def _differs(target: FolderEntry | Path) -> CannotCopy:
    return CannotCopy(
        f"what was read back differs from what was written to {target}",
        "the disk or its driver fails: see the kernel's log",
    )


def copy_file(place: Place, target: FolderEntry, mark: Mark | None, tools: Tools) -> tuple[str, str]:
    """Copy the file *place* to *target*; returns the digest, if wanted, and why it was buffered.

    *mark* is what the image says of itself, but for its size and time.

    Raises:
        CannotCopy: it could not be; what *target* was before, it still is.
    """
    with open_source(place.path, place.device) as reading:
        new = NewFile(target)
        try:
            digest = fill(reading, new, tools)
            if mark is not None:
                files = {"": size_and_time(os.fstat(new.fd))}
                mark_file(new.fd, target, attrs.evolve(mark, files=files))
            new.install()
            return digest, new.buffered
        finally:
            new.close()
