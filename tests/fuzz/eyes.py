"""What the reader's eyes see in bytes: the functions of ``check.c``, with Python's values."""

import ctypes
from pathlib import Path

import attrs

_MOST_NONCES = 64


class _Verdict(ctypes.Structure):
    _fields_ = (
        ("lines", ctypes.c_uint64),
        ("zeros", ctypes.c_uint64),
        ("others", ctypes.c_uint64),
        ("torn", ctypes.c_uint64),
        ("torn_address", ctypes.c_uint64),
        ("misplaced", ctypes.c_uint64),
        ("misplaced_address", ctypes.c_uint64),
        ("nonces", ctypes.c_uint64),
        ("nonce", ctypes.c_uint64 * _MOST_NONCES),
        ("address", ctypes.c_uint64 * _MOST_NONCES),
        ("of_object", ctypes.c_uint64 * _MOST_NONCES),
    )


@attrs.frozen
class Sight:
    """What is in a stretch of memory.

    Attributes:
        lines, zeros, others, torn: how many lines there are of each kind.
        misplaced: address of the first line that names another one than its own; None where all are right.
        nonces: whose lines there are, each with the address of its first.
    """

    lines: int
    zeros: int
    others: int
    torn: int
    misplaced: int | None
    nonces: dict[int, int]


class Eyes:
    """The library of ``check.c``."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.contradiction.restype = ctypes.c_int64
        self._library.mismatch.restype = ctypes.c_int64

    def look(self, data: bytes, base: int) -> Sight:
        """Look at *data*, which stands at the address *base*."""
        found = _Verdict()
        self._library.look(data, ctypes.c_uint64(len(data)), ctypes.c_uint64(base), ctypes.byref(found))
        count = found.nonces
        return Sight(
            lines=found.lines,
            zeros=found.zeros,
            others=found.others,
            torn=found.torn,
            misplaced=found.misplaced_address if found.misplaced else None,
            nonces=dict(zip(found.nonce[:count], found.address[:count], strict=True)),
        )

    def contradiction(self, before: bytes, got: bytes, after: bytes, base: int) -> int | None:
        """Where *got* differs from a line that was the same *before* and *after*."""
        size = ctypes.c_uint64(min(map(len, (before, got, after))))
        at = self._library.contradiction(before, got, after, size, ctypes.c_uint64(base))
        return None if at < 0 else base + at

    def mismatch(self, data: bytes, nonce: int, address: int, generation: int) -> int | None:
        """The offset in *data* of the first line that is not the one written there; None where all are."""
        numbers = map(ctypes.c_uint64, (len(data), nonce, address, generation))
        at = self._library.mismatch(data, *numbers)
        return None if at < 0 else at
