"""The ledger: every life, object and alarm of a run, written by the targets themselves.

A nonce is the number of its record in the lower half and chance in the upper one, so it is looked up by one
read. Records of 64 bytes follow a page with the next number and the pids of the victims.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

_PAGE = 4096
_RECORD = struct.Struct("=QQIIIIQQQQ")
FORKED, EXECED, SECRET, OBJECT, ALARM, HARM = range(1, 7)


@attrs.frozen
class Record:
    """One record; of an alarm *first* is the signal, *second* its si_code, *third* who sent it, or where."""

    nonce: int
    parent: int
    pid: int
    uid: int
    family: int
    kind: int
    first: int
    second: int
    third: int
    time_ns: int


class Ledger:
    """A ledger, opened for reading, or for the programs that write it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not os.fstat(self.fd).st_size:
            os.ftruncate(self.fd, _PAGE)
            os.pwrite(self.fd, (1).to_bytes(8, "little"), 0)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def name_victims(self, pids: Sequence[int]) -> None:
        """Tell the targets whom an answer of theirs should have memfs signal."""
        os.pwrite(self.fd, struct.pack(f"={len(pids)}I", *pids), 8)

    def find(self, nonce: int) -> Record | None:
        """The record of *nonce*; None where nobody wrote one."""
        record = self._read(nonce & 0xFFFF_FFFF)
        return record if record is not None and record.nonce == nonce else None

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        for number in range(1, int.from_bytes(os.pread(self.fd, 8, 0), "little")):
            record = self._read(number)
            if record is not None and record.nonce:
                yield record

    def _read(self, number: int) -> Record | None:
        data = os.pread(self.fd, _RECORD.size, _PAGE + number * _RECORD.size)
        return Record(*_RECORD.unpack(data)) if len(data) == _RECORD.size else None

    def line_of(self, nonce: int) -> Iterator[int]:
        """*nonce* and the lives that it descends from by forks alone: their pages may be its own."""
        while True:
            yield nonce
            record = self.find(nonce)
            if record is None or record.kind != FORKED:
                return
            nonce = record.parent

    def may_hold(self, mine: int, pid: int, found: int) -> bool:
        """Whether the address space of *pid*, which had the nonce *mine*, may hold a line of *found*.

        A child has its parent's control page until it writes its own: so it may have another nonce by now.
        """
        record = self.find(found)
        if record is None:
            return False
        owner = record.parent if record.kind == OBJECT else found
        if owner in self.line_of(mine):
            return True
        child = self.find(owner)
        return child is not None and child.kind == FORKED and child.pid == pid and child.parent == mine

    def harmed(self, nonce: int) -> bool:
        """Whether that life, or one it was forked from, has changed its own vDSO."""
        if self._harms is None:
            self._harms = {record.parent for record in self.records() if record.kind == HARM}
        return not self._harms.isdisjoint(self.line_of(nonce))

    _harms: set[int] | None = None
