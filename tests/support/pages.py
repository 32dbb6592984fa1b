"""Pages that prove themselves: each names its address, its owner and its generation, and has a checksum.

A writer writes such a page once, where nobody looks, and moves it to its place whole (see `churn`). So at
any time a reader of the published range may see a page of any generation, and never a torn one, a
stranger's or a zero one.

This file is pure and needs the standard library only; the writers and the readers share it.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from support.pattern import PAGE, page

PUBLISHED_START = 0x3000_0000_0000
PUBLISHED_END = 0x3000_4000_0000
"""All that a writer publishes lies between these two addresses."""

MAGIC = 0x4D454D46_53504147
_HEADER = struct.Struct("<QQQQI4x")  # magic, address, life, generation, CRC-32 of the rest of the page
_ZERO = bytes(PAGE)


class Fault(Enum):
    """What can be wrong with a page."""

    ZERO = "all zeros"
    NO_HEADER = "not written by a writer"
    MISPLACED = "belongs to another address"
    TORN = "does not match its checksum"
    STRANGER = "belongs to another process or program"


@dataclass(frozen=True)
class Problem:
    """One bad page."""

    address: int
    fault: Fault
    detail: str

    def __str__(self) -> str:
        return f"{self.address:#x}: {self.fault.value} {self.detail}".rstrip()


def make_page(address: int, life: int, generation: int) -> bytes:
    """The page at *address*; *life* is a random number of one program run."""
    body = page(address // PAGE + generation * 0x1_0000_0001, life)[_HEADER.size :]
    return _HEADER.pack(MAGIC, address, life, generation, zlib.crc32(body)) + body


def life_of(data: bytes) -> int | None:
    """The life of the first page of *data*; None where it is no writer's page."""
    magic, _address, life, _generation, _checksum = _HEADER.unpack_from(data)
    return life if magic == MAGIC else None


def verify(data: bytes, address: int, life: int | None = None) -> tuple[Problem, ...]:
    """What is wrong with *data*, whole pages that were read at *address*, inside the published range.

    Args:
        life: the only one that may appear; whichever comes first, where none is given. What was read through
            one open file has one life.
    """
    return tuple(_problems(data, address, life))


def _problems(data: bytes, start: int, life: int | None) -> Iterator[Problem]:
    for offset in range(0, len(data) - PAGE + 1, PAGE):
        content, address = data[offset : offset + PAGE], start + offset
        magic, own, found, generation, checksum = _HEADER.unpack_from(content)
        if content == _ZERO:
            yield Problem(address, Fault.ZERO, "")
        elif magic != MAGIC:
            yield Problem(address, Fault.NO_HEADER, content[:16].hex())
        elif own != address:
            yield Problem(address, Fault.MISPLACED, hex(own))
        elif zlib.crc32(content[_HEADER.size :]) != checksum:
            yield Problem(address, Fault.TORN, f"generation {generation}")
        elif life is not None and found != life:
            yield Problem(address, Fault.STRANGER, f"{found:#x}, not {life:#x}")
        else:
            life = found
