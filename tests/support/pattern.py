"""The content that holders write: eight bytes at a time, a pure function of address and seed.

Word ``i`` of the page numbered ``n`` is ``TABLE[i] ^ mix(n, seed)``, little-endian, where ``TABLE`` is
fixed. Two pages with different numbers or seeds differ in every word, so a page from the wrong place shows
at its first byte.

This file knows of no process and no mapping. It needs the standard library only.
"""

import hashlib

PAGE = 4096
"""Bytes in a page; x86-64 has no other base size."""

_WORDS = PAGE // 8
_MASK = (1 << 64) - 1
_TABLE_BYTES = hashlib.shake_128(b"memfs support pattern").digest(PAGE)
_TABLE = int.from_bytes(_TABLE_BYTES, "little")
_REPEAT = sum(1 << (64 * index) for index in range(_WORDS))


def mix(number: int, seed: int) -> int:
    """The 64 bits that page *number* adds under *seed* (the finaliser of splitmix64)."""
    value = (number * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def word(address: int, seed: int) -> int:
    """The eight bytes at *address*, a multiple of 8, as a little-endian number."""
    start = address % PAGE
    return int.from_bytes(_TABLE_BYTES[start : start + 8], "little") ^ mix(address // PAGE, seed)


def page(number: int, seed: int) -> bytes:
    """The whole page *number*: word for word what `word` gives, in one step of big-number arithmetic."""
    return (_TABLE ^ (mix(number, seed) * _REPEAT)).to_bytes(PAGE, "little")


def fill(address: int, length: int, seed: int) -> bytes:
    """The *length* bytes at *address*, neither of which needs alignment."""
    first, last = address // PAGE, (address + length + PAGE - 1) // PAGE
    whole = b"".join(page(number, seed) for number in range(first, last))
    skip = address - first * PAGE
    return whole if skip == 0 and len(whole) == length else whole[skip : skip + length]
