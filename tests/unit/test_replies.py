"""Replies that tell attributes are, byte for byte, those that libfuse makes of the same values."""

import ctypes
import ctypes.util
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.fuse import replies
from memfs.fuse.replies import PREFERRED_READ_BYTES
from memfs.linux.span import PAGE_BYTES
from memfs.tree.attributes import Attributes, Entry
from memfs.tree.nodes import Fixed, Name

_U32, _U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
_SIZES = st.integers(0, (1 << 63) - 1)
_TIMES = st.integers(0, (1 << 61) - 1)
_TIMEOUTS = st.floats(0, 1e6)

# struct stat of x86-64 (asm/stat.h): dev ino nlink mode uid gid pad rdev size blksize blocks, and three times
_STAT = struct.Struct("=QQQIII4xQqqq6q24x")
# struct fuse_entry_param (fuse_lowlevel.h): ino generation attr attr_timeout entry_timeout
_PARAM = struct.Struct("=QQ144sdd")
_ENTRY_OUT_BYTES, _ATTR_BYTES = 128, 88

attributes = st.builds(
    Attributes,
    number=_U64,
    mode=_U32,
    uid=_U32,
    gid=_U32,
    size_bytes=_SIZES,
    blocks=_SIZES,
    mtime_ns=_TIMES,
    ctime_ns=_TIMES,
    name_timeout_s=_TIMEOUTS,
    settled=st.booleans(),
)


@pytest.fixture(scope="module")
def libfuse() -> ctypes.CDLL:
    """The library that pyfuse3 has loaded."""
    import pyfuse3  # noqa: F401 loads it

    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "/libfuse3" in line)
    library = ctypes.CDLL(path)
    library.fuse_add_direntry_plus.restype = ctypes.c_size_t
    library.fuse_add_direntry_plus.argtypes = (
        *(
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_int64,
        ),
    )
    return library


def _made_by(libfuse: ctypes.CDLL, found: Attributes, name: bytes, timeout_s: float, next_at: int) -> bytes:
    seconds = [divmod(time_ns, 1_000_000_000) for time_ns in (found.mtime_ns, found.mtime_ns, found.ctime_ns)]
    stat = _STAT.pack(
        *(0, found.number, 1, found.mode, found.uid, found.gid, 0, found.size_bytes, PREFERRED_READ_BYTES),
        found.blocks,
        *(part for pair in seconds for part in pair),
    )
    param = _PARAM.pack(found.number, 0, stat, timeout_s, found.name_timeout_s)
    room = ctypes.create_string_buffer(1024)
    size = libfuse.fuse_add_direntry_plus(None, room, len(room), name, param, next_at)
    return room.raw[:size]


@given(found=attributes, name=st.binary(min_size=1, max_size=255), timeout_s=_TIMEOUTS, next_at=_SIZES)
def test_replies_are_those_of_libfuse(
    libfuse: ctypes.CDLL, found: Attributes, name: bytes, timeout_s: float, next_at: int
) -> None:
    name = name.replace(b"\0", b"0")
    expected = _made_by(libfuse, found, name, timeout_s, next_at)
    entry = Entry(name, Fixed(Name.ROOT), found)
    assert replies.listed_body(entry, found, found.name_timeout_s, timeout_s, next_at) == expected
    assert replies.entry_body(found, found.name_timeout_s, timeout_s) == expected[:_ENTRY_OUT_BYTES]
    # struct fuse_attr_out: attr_valid attr_valid_nsec dummy, and the same attributes
    valid = expected[24:32] + expected[36:40] + bytes(4)
    assert replies.attributes_body(found, timeout_s) == valid + expected[40:_ENTRY_OUT_BYTES]
    assert _ENTRY_OUT_BYTES - 40 == _ATTR_BYTES


@given(_SIZES, _SIZES)
def test_a_file_system_has_the_pages_of_memory(pages: int, free: int) -> None:
    """struct fuse_kstatfs."""
    expected = struct.pack("<5Q4I24x", pages, free, free, 0, 0, PAGE_BYTES, 255, PAGE_BYTES, 0)
    assert replies.statfs_body(pages, free) == expected
