"""Checksums of a copy: one of all bytes in order, and one of each piece, to compare them again.

Few copies have any: so hashlib is loaded when it is needed.
"""

import threading

from memfs.linux.span import Span

_ZEROS = memoryview(bytes(1 << 20))
_PIECE_DIGEST_BYTES = 16


class Content:
    """BLAKE2b of a file as b2sum(1) prints it: holes count as the zeros that they read as.

    Threads that read pieces in any order wait here for their turn.
    """

    def __init__(self) -> None:
        import hashlib

        self._hash = hashlib.blake2b()
        self._at = 0
        self._number = 0
        self._broken = False
        self._turn = threading.Condition()

    def add(self, number: int, piece: Span, view: memoryview) -> None:
        """Add the piece with *number*, when all before it have been; what lies between is a hole."""
        with self._turn:
            self._turn.wait_for(lambda: self._number == number or self._broken)
            if not self._broken:
                self._skip_to(piece.start)
                self._hash.update(view)
                self._at = piece.end
                self._number += 1
            self._turn.notify_all()

    def break_off(self) -> None:
        """A piece will never come: let those go that wait for it."""
        with self._turn:
            self._broken = True
            self._turn.notify_all()

    def finish(self, size_bytes: int) -> str:
        """The digest in hexadecimal, once all pieces of a file of that size are in."""
        self._skip_to(size_bytes)
        return self._hash.hexdigest()

    def _skip_to(self, end: int) -> None:
        while self._at < end:
            step = min(len(_ZEROS), end - self._at)
            self._hash.update(_ZEROS[:step])
            self._at += step


def of_piece(view: memoryview) -> bytes:
    """A digest by which a piece is compared with itself, read again."""
    import hashlib

    return hashlib.blake2b(view, digest_size=_PIECE_DIGEST_BYTES).digest()


def is_zeros(view: memoryview) -> bool:
    """Whether there is nothing but zeros in *view*, which is no longer than a buffer."""
    return view == _ZEROS[: len(view)]
