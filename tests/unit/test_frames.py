"""FUSE frames: bytes from the device are a value or a FrameError, and replies are as fuse.h lays them out."""

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.fuse import frames
from memfs.fuse.frames import FrameError, InitFlag

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
PARSERS = (
    frames.parse_head,
    frames.parse_node,
    frames.parse_attribute_name,
    frames.parse_read,
    frames.parse_seek,
    frames.parse_xattr,
    frames.parse_interrupt,
    frames.parse_init,
)
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
AUTO_INVAL_DATA = 1 << 12


def request(opcode: int, unique: int, body: bytes, caller: int = 1) -> memoryview:
    """struct fuse_in_header and a body."""
    head = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 2, 3, caller, 4, 5)
    return memoryview(bytearray(head + body))


@pytest.mark.parametrize("parse", PARSERS)
@given(st.binary(max_size=160))
def test_any_bytes_are_a_value_or_a_frame_error(parse: Callable[[memoryview], object], data: bytes) -> None:
    with contextlib.suppress(FrameError):
        assert parse(memoryview(data)) is not None


@given(st.binary(max_size=160), U32)
def test_any_list_request_is_limited_or_a_frame_error(data: bytes, limit: int) -> None:
    frame = bytearray(data)
    with contextlib.suppress(FrameError):
        frames.limit_read_size(memoryview(frame), limit)
        assert struct.unpack_from("<I", frame, 56)[0] <= limit
    assert frame[:56] + frame[60:] == data[:56] + data[60:]


@given(st.integers(0, 3), st.integers(0, 3))
def test_a_list_request_keeps_a_size_within_the_limit(size: int, limit: int) -> None:
    frame = request(28, 1, struct.pack("<QQIIQII", 7, 0, size, 0, 0, 0, 0))
    frames.limit_read_size(frame, limit)
    assert frames.parse_read(frame) == (7, 0, min(size, limit))


@given(U32, U64, U32, U64, U64, U32)
def test_a_read_request_is_read(
    opcode: int, unique: int, caller: int, handle: int, offset: int, size: int
) -> None:
    frame = request(opcode, unique, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0), caller)
    assert frames.parse_head(frame) == (opcode, unique, caller)
    assert frames.parse_read(frame) == (handle, offset, size)


@given(U64, U64, U32)
def test_a_seek_request_is_read(handle: int, offset: int, whence: int) -> None:
    frame = request(46, 1, struct.pack("<QQII", handle, offset, whence, 0))
    assert frames.parse_seek(frame) == (handle, offset, whence)


@given(U32)
def test_a_list_of_names_is_asked_of_an_inode(size: int) -> None:
    assert frames.parse_xattr(request(23, 7, struct.pack("<II", size, 0))) == (1, size)


@given(U64, st.binary(max_size=100), U32)
def test_names_are_told_or_counted_or_are_too_many(unique: int, names: bytes, size: int) -> None:
    assert frames.xattr_reply(unique, names, 0) == struct.pack("<IiQII", 24, 0, unique, len(names), 0)
    whole = struct.pack("<IiQ", 16 + len(names), 0, unique) + names
    assert frames.xattr_reply(unique, names, max(1, len(names))) == whole
    if 0 < size < len(names):
        assert frames.xattr_reply(unique, names, size) == struct.pack("<IiQ", 16, -34, unique)


@given(U64)
def test_an_interrupt_names_the_request_it_ends(unique: int) -> None:
    assert frames.parse_interrupt(request(36, 2, struct.pack("<Q", unique))) == unique


def test_a_frame_that_lies_about_its_length_is_refused() -> None:
    frame = request(15, 1, b"x" * 40)
    for cut in (39, len(frame) - 1):
        with pytest.raises(FrameError):
            frames.parse_head(frame[:cut])


@given(U32, U64, U64)
def test_replies_are_laid_out_as_the_kernel_reads_them(size: int, unique: int, offset: int) -> None:
    into = bytearray(24)
    frames.pack_reply_head(memoryview(into), 4, unique, size % (1 << 20))
    assert into == bytes(4) + struct.pack("<IiQ", 16 + size % (1 << 20), 0, unique) + bytes(4)
    assert frames.error_reply(unique, 5) == struct.pack("<IiQ", 16, -5, unique)
    assert frames.seek_reply(unique, offset) == struct.pack("<IiQQ", 24, 0, unique, offset)
    assert frames.unique_of_reply(memoryview(into)[4:]) == unique


@given(U32, U32)
def test_init_offers_both_words_of_flags_where_the_second_counts(low: int, high: int) -> None:
    offered = frames.parse_init(request(26, 1, struct.pack("<5I", 7, 45, 1 << 20, low, high) + bytes(44)))
    assert offered == (low | high << 32 if low & InitFlag.INIT_EXT else low)
    assert frames.parse_init(request(26, 1, struct.pack("<4I", 7, 31, 1 << 20, low))) == low


def init_reply(flags: int, flags2: int, stack_depth: int = 0, background: tuple[int, int] = (12, 9)) -> bytes:
    """struct fuse_out_header and the 64 bytes of struct fuse_init_out."""
    fields = (7, 45, 1 << 20, flags, *background, 1 << 20, 1, 256, 0, flags2, stack_depth)
    return struct.pack("<IiQ", 80, 0, 1) + struct.pack("<4IHHIIHHII", *fields) + bytes(24)


@given(U32, U32, st.integers(0, (1 << 64) - 1), st.integers(0, 2))
def test_the_init_reply_accepts_what_the_kernel_offered_and_no_cache_that_mtime_empties(
    flags: int, flags2: int, offered: int, stack_depth: int
) -> None:
    reply = init_reply(flags, flags2)
    amended = frames.amend_init_reply(reply, offered, stack_depth)
    flags &= ~AUTO_INVAL_DATA
    maps = bool(offered & DIRECT_IO_ALLOW_MMAP)
    passes = bool(offered & PASSTHROUGH and stack_depth)
    assert amended == init_reply(
        flags | (maps or passes) << 30,
        flags2 | maps << 4 | passes << 5,
        stack_depth if passes else 0,
        background=(4096, 3072),
    )


def test_a_refusal_of_init_stays_as_it_is() -> None:
    refusal = struct.pack("<IiQ", 16, -71, 1)
    assert frames.amend_init_reply(refusal, DIRECT_IO_ALLOW_MMAP, 2) == refusal


@given(U64, U32, U32, st.integers(0, (1 << 31) - 1))
def test_the_reply_to_an_open_can_name_a_registered_file(
    handle: int, flags: int, other_flags: int, backing: int
) -> None:
    reply = bytearray(struct.pack("<IiQQII", 32, 0, 9, handle, flags, 0))
    assert frames.parse_open_reply(memoryview(reply)) == handle
    frames.amend_open_reply(memoryview(reply), handle, other_flags, backing)
    assert reply == struct.pack("<IiQQIi", 32, 0, 9, handle, other_flags, backing)
    assert frames.parse_open_reply(memoryview(frames.error_reply(9, 13))) is None


@given(U64, U64, U64)
def test_a_late_reply_is_undone_by_the_request_that_the_kernel_would_have_sent(
    node: int, handle: int, unique: int
) -> None:
    opened = memoryview(struct.pack("<IiQQIi", 32, 0, 2, handle, 0, 0))
    refused = memoryview(struct.pack("<IiQ", 16, -13, 2))
    for opcode, undoing in ((14, 18), (27, 29)):  # OPEN, RELEASE; OPENDIR, RELEASEDIR
        asked = struct.pack("<IIQQIIIHH", 48, opcode, 2, node, 0, 0, 77, 0, 0) + bytes(8)
        head = struct.pack("<IIQQIIIHH", 64, undoing, unique, node, 0, 0, 0, 0, 0)
        assert frames.undo_request(asked, opened, unique) == head + struct.pack("<QIIQ", handle, 0, 0, 0)
        assert frames.undo_request(asked, refused, unique) is None
    made = struct.pack("<IIQQIIIHHII", 51, 9, 2, node, 0, 0, 77, 0, 0, 0o777, 0o22) + b"a\0"
    made = struct.pack("<I", len(made)) + made[4:]
    head = struct.pack("<IIQQIIIHH", 42, 11, unique, node, 0, 0, 0, 0, 0)
    assert (
        frames.undo_request(made, memoryview(struct.pack("<IiQ", 144, 0, 2) + bytes(128)), unique)
        == head + b"a\0"
    )
    looked_up = struct.pack("<IIQQIIIHH", 42, 1, 2, node, 0, 0, 77, 0, 0) + b"a\0"
    assert frames.undo_request(looked_up, opened, unique) is None


@given(st.integers(-1, 1 << 40))
def test_only_a_notice_that_drops_pages_can_make_the_kernel_wait(offset: int) -> None:
    notice = struct.pack("<IiQQqq", 40, 2, 0, 7, offset, 0)
    assert frames.is_page_notice(memoryview(notice)) == (offset >= 0)
    assert not frames.is_page_notice(memoryview(struct.pack("<IiQQqq", 40, 0, 2, 7, offset, 0)))
