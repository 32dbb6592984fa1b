"""FUSE frames: bytes from the device are a value or a FrameError, and replies are as fuse.h lays them out."""

import contextlib
import errno
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.fuse import messages
from memfs.fuse.messages import FrameError, InitFlag

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
PARSERS = (
    messages.parse_head,
    messages.parse_request,
    messages.parse_flags,
    messages.parse_release,
    messages.parse_room,
    messages.parse_read,
    messages.parse_seek,
    messages.parse_interrupt,
    messages.parse_init,
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


@given(U32, U64, U32, U64, U64, U32)
def test_a_read_request_is_read(
    opcode: int, unique: int, caller: int, handle: int, offset: int, size: int
) -> None:
    frame = request(opcode, unique, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0), caller)
    assert messages.parse_head(frame) == (opcode, unique, caller)
    assert messages.parse_read(frame) == (handle, offset, size)


@given(U64, U64, U32)
def test_a_seek_request_is_read(handle: int, offset: int, whence: int) -> None:
    frame = request(46, 1, struct.pack("<QQII", handle, offset, whence, 0))
    assert messages.parse_seek(frame) == (handle, offset, whence)


@given(U32, U64, U64, U32, U32, U32, st.binary(max_size=40))
def test_any_request_has_a_head_and_a_body(
    opcode: int, unique: int, node: int, uid: int, gid: int, caller: int, body: bytes
) -> None:
    frame = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, uid, gid, caller, 4, 5) + body
    assert messages.parse_request(memoryview(frame)) == ((opcode, unique, node, uid, gid, caller), body)


@given(st.binary(max_size=60).filter(lambda name: not name.endswith(b"\0")), U32, U64)
def test_bodies_of_requests_are_read(name: bytes, number: int, handle: int) -> None:
    """struct fuse_mkdir_in, fuse_getxattr_in, fuse_open_in, fuse_access_in and fuse_release_in."""
    assert messages.parse_name(memoryview(name + b"\0")) == name
    assert messages.parse_mkdir(memoryview(struct.pack("<II", number, 0o22) + name + b"\0")) == name
    asked = memoryview(struct.pack("<II", number, 0) + name + b"\0")
    assert (messages.parse_room(asked), messages.parse_attribute_name(asked)) == (number, name)
    assert messages.parse_flags(memoryview(struct.pack("<II", number, 0))) == number
    assert messages.parse_release(memoryview(struct.pack("<QIIQ", handle, 1, 2, 3))) == handle
    listing = memoryview(struct.pack("<QQIIQII", handle, 5, number, 0, 0, 0, 0))
    assert messages.parse_read(listing, 0) == (handle, 5, number)


@given(st.binary(max_size=100), U32)
def test_a_value_is_told_or_counted_or_is_too_long(value: bytes, room: int) -> None:
    assert messages.sized_body(value, 0) == struct.pack("<II", len(value), 0)
    assert messages.sized_body(value, max(1, len(value))) == value
    if 0 < room < len(value):
        with pytest.raises(OSError, match="longer") as refused:
            messages.sized_body(value, room)
        assert refused.value.errno == errno.ERANGE


@given(U64)
def test_an_interrupt_names_the_request_it_ends(unique: int) -> None:
    assert messages.parse_interrupt(request(36, 2, struct.pack("<Q", unique))) == unique


def test_a_frame_that_lies_about_its_length_is_refused() -> None:
    frame = request(15, 1, b"x" * 40)
    for cut in (39, len(frame) - 1):
        with pytest.raises(FrameError):
            messages.parse_head(frame[:cut])


@given(U32, U64, U64)
def test_replies_are_laid_out_as_the_kernel_reads_them(size: int, unique: int, offset: int) -> None:
    into = bytearray(24)
    messages.pack_reply_head(memoryview(into), 4, unique, size % (1 << 20))
    assert into == bytes(4) + struct.pack("<IiQ", 16 + size % (1 << 20), 0, unique) + bytes(4)
    assert messages.error_reply(unique, 5) == struct.pack("<IiQ", 16, -5, unique)
    assert messages.seek_reply(unique, offset) == struct.pack("<IiQQ", 24, 0, unique, offset)
    assert messages.unique_of_reply(memoryview(into)[4:]) == unique


@given(U32, U32)
def test_init_offers_both_words_of_flags_where_the_second_counts(low: int, high: int) -> None:
    offered = messages.parse_init(request(26, 1, struct.pack("<5I", 7, 45, 1 << 20, low, high) + bytes(44)))
    assert offered == (low | high << 32 if low & InitFlag.INIT_EXT else low)
    assert messages.parse_init(request(26, 1, struct.pack("<4I", 7, 31, 1 << 20, low))) == low


def init_reply(flags: int, flags2: int, stack_depth: int = 0, background: tuple[int, int] = (12, 9)) -> bytes:
    """struct fuse_out_header and the 64 bytes of struct fuse_init_out."""
    fields = (7, 45, 1 << 20, flags, *background, 1 << 20, 1, 256, 0, flags2, stack_depth)
    return struct.pack("<IiQ", 80, 0, 1) + struct.pack("<4IHHIIHHII", *fields) + bytes(24)


@given(U32, U32, st.integers(0, (1 << 64) - 1), st.integers(0, 2))
def test_the_init_reply_accepts_what_the_kernel_offered_and_no_cache_that_mtime_empties(
    flags: int, flags2: int, offered: int, stack_depth: int
) -> None:
    reply = init_reply(flags, flags2)
    amended = messages.amend_init_reply(reply, offered, stack_depth)
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
    assert messages.amend_init_reply(refusal, DIRECT_IO_ALLOW_MMAP, 2) == refusal


@given(U64, U32, st.integers(0, (1 << 31) - 1))
def test_the_reply_to_an_open_can_name_a_registered_file(handle: int, flags: int, backing: int) -> None:
    """struct fuse_open_out."""
    body = messages.open_body(handle, flags, backing)
    assert body == struct.pack("<QIi", handle, flags, backing)
    assert messages.parse_handle(body) == handle
    assert messages.reply_to(9, body) == struct.pack("<IiQ", 32, 0, 9) + body
