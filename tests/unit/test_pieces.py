"""Pieces of any sort and size: what is spliced equals what is copied, and the room they need is known."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pattern import fill
from unit.ways import WAYS, copied, spliced

from memfs.errors import RangeUnmapped
from memfs.image.source import (
    MAX_READ_BYTES,
    CannotSplice,
    Piece,
    Source,
    Workspace,
    slots_needed,
)
from memfs.image.text import Text
from memfs.linux.pipe import Pipe
from memfs.linux.span import PAGE_BYTES, Span

CONTENT = fill(0, 64 * PAGE_BYTES, seed=5)
SIZES = st.one_of(
    st.integers(1, 5), st.integers(1, 3 * PAGE_BYTES), st.sampled_from([1, 2, 7]).map(PAGE_BYTES.__mul__)
)


class Mosaic(Source):
    """A source of made-up pieces: zeros, and bytes of a file, to be copied or to be spliced."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.size_bytes = sum(piece.size for piece in pieces)
        self.has_cached_pages = True
        self._pieces = pieces

    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:  # noqa: ARG002
        found, at = [], 0
        for piece in self._pieces:
            part = Span(at, at + piece.size).clip(span)
            if part:
                found.append(Piece(part.size, piece.fd, piece.position + part.start - at, piece.cached))
            at += piece.size
        return found

    def still_true(self, span: Span, pieces: list[Piece]) -> bool:  # noqa: ARG002
        return True

    def recover(self, offset: int, piece: Piece, view: memoryview) -> int:  # noqa: ARG002
        raise RangeUnmapped(f"nothing at {offset}")

    def next_data(self, offset: int, workspace: Workspace) -> int:  # noqa: ARG002
        return offset

    def next_hole(self, offset: int, workspace: Workspace) -> int:  # noqa: ARG002
        return self.size_bytes

    def close(self) -> None:
        pass


def content_of(pieces: list[Piece]) -> bytes:
    """What the pieces promise."""
    return b"".join(
        bytes(piece.size) if piece.fd is None else CONTENT[piece.position : piece.position + piece.size]
        for piece in pieces
    )


@pytest.fixture(scope="module")
def workspace() -> Iterator[Workspace]:
    made = Workspace()
    yield made
    made.close()


@pytest.fixture(scope="module")
def file() -> Iterator[int]:
    fd = os.memfd_create("content")
    os.write(fd, CONTENT)
    yield fd
    os.close(fd)


def to_pieces(drawn: list[tuple[int, int, str]], file: int) -> list[Piece]:
    """Sizes, positions and sorts as pieces that lie inside the content."""
    return [
        Piece(size, None if sort == "zeros" else file, position, cached=sort == "cached")
        for size, position, sort in drawn
    ]


DRAWN = st.lists(
    st.tuples(SIZES, st.integers(0, 50 * PAGE_BYTES), st.sampled_from(["zeros", "copied", "cached"])),
    max_size=12,
)


@given(DRAWN, st.integers(0, 40 * PAGE_BYTES), st.integers(0, 90 * PAGE_BYTES))
def test_spliced_equals_copied(
    workspace: Workspace, file: int, drawn: list[tuple[int, int, str]], offset: int, size: int
) -> None:
    source = Mosaic(to_pieces(drawn, file))
    expected = content_of(to_pieces(drawn, file))[offset : offset + size]
    assert copied(source, offset, size, workspace) == expected
    assert spliced(source, offset, size, workspace) == expected


@given(DRAWN)
def test_pieces_that_fit_by_count_fit_into_a_pipe(file: int, drawn: list[tuple[int, int, str]]) -> None:
    pieces = to_pieces(drawn, file)
    pages = 0
    at = 0
    for piece in pieces:
        first = piece.position if piece.cached else at
        pages += (first + piece.size - 1) // PAGE_BYTES - first // PAGE_BYTES + 1
        at += piece.size
    assert slots_needed(pieces) == pages
    small = Workspace()
    small.pipe.close()
    small.pipe = Pipe((pages + 1) * PAGE_BYTES)
    try:
        assert spliced(Mosaic(pieces), 0, at, small) == content_of(pieces)
    finally:
        small.close()


def test_after_an_error_the_next_read_is_right(workspace: Workspace, file: int) -> None:
    beyond = Piece(PAGE_BYTES, file, len(CONTENT), cached=False)
    broken = Mosaic([Piece(PAGE_BYTES, file, 0, cached=False), beyond])
    for way in WAYS:
        with pytest.raises(RangeUnmapped):
            way(broken, 0, broken.size_bytes, workspace)
        good = [Piece(3 * PAGE_BYTES, file, PAGE_BYTES, cached=False)]
        assert way(Mosaic(good), 0, 3 * PAGE_BYTES, workspace) == content_of(good)


def test_all_that_fits_beside_the_header_is_spliced_and_no_more(workspace: Workspace) -> None:
    content = fill(0, MAX_READ_BYTES, seed=9)
    text = Text(content)
    most = min(MAX_READ_BYTES, (workspace.pipe.slots - 1) * PAGE_BYTES)
    assert spliced(text, 0, most, workspace) == content[:most]
    text.close()
    full = [Piece(1, None, 0, cached=False)] * workspace.pipe.slots
    with pytest.raises(CannotSplice):
        spliced(Mosaic(full), 0, len(full), workspace)
    assert copied(Mosaic(full), 0, len(full), workspace) == bytes(len(full))


def test_a_closed_source_gives_an_error_and_never_zeros(workspace: Workspace) -> None:
    text = Text(b"content")
    text.close()
    for way in WAYS:
        with pytest.raises(OSError, match=r"Bad file descriptor"):
            way(text, 0, 7, workspace)


@given(st.binary(max_size=3 * PAGE_BYTES), st.integers(0, 4 * PAGE_BYTES), st.integers(0, 4 * PAGE_BYTES))
def test_a_text_is_read_from_any_offset_and_ends_where_it_ends(
    workspace: Workspace, content: bytes, offset: int, size: int
) -> None:
    text = Text(content)
    assert copied(text, offset, size, workspace) == content[offset : offset + size]
    assert spliced(text, offset, size, workspace) == content[offset : offset + size]
    text.close()
    text.close()


def test_a_pipe_is_one_descriptor_and_empty_after_a_reset() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pipe = Pipe(16 * PAGE_BYTES)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert pipe.slots == 16
    os.write(pipe.fd, b"left over")
    pipe.reset()
    with pytest.raises(BlockingIOError):
        os.read(pipe.fd, 1)
    pipe.close()
    pipe.close()
    assert len(os.listdir("/proc/self/fd")) == before
