"""How far a copy is: numbers that the threads which copy add to, and that a display reads."""

import threading


class Meter:
    """The progress of one copy.

    Attributes:
        doing: what is being done, as a word for people.
        data_bytes: what is to be carried, as far as it is known.
        hole_bytes: what need not be.
        done_bytes: what has been.
    """

    def __init__(self) -> None:
        self.doing = "copying"
        self.data_bytes = 0
        self.hole_bytes = 0
        self.done_bytes = 0
        self._lock = threading.Lock()

    def expect(self, data_bytes: int, hole_bytes: int = 0) -> None:
        """More is to be done."""
        with self._lock:
            self.data_bytes += data_bytes
            self.hole_bytes += hole_bytes

    def add(self, size_bytes: int) -> None:
        """So much more is done."""
        with self._lock:
            self.done_bytes += size_bytes
