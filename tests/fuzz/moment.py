"""Holds a frozen address space against what stands in it: all of it must be of one moment, and all there."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import attrs

from fuzz import programs
from fuzz.programs import ARENA, CONTROL, FILLED, PAGE, SLOT, SLOTS, Control, Slot, parse_control
from fuzz.room import Room

_MIB = 1 << 20

Known = Callable[[int], list[object]]


@attrs.frozen
class Judge:
    """One reader's eyes for snapshots and core files."""

    room: Room

    def pread(self, fd: int, path: Path, offset: int, size: int) -> bytes:
        """Read of the mount."""
        with self.room.asking(f"read {path} at {offset:#x} {size}"):
            got = os.pread(fd, size, offset)
        self.room.counts["bytes"] += len(got)
        return got

    def judge_moment(
        self, name: str, pid: int, nonce: int | None, read: Callable[[int, int], bytes], known: Known
    ) -> None:
        """Hold a frozen address space against what its own control page says: it is all of one moment.

        Args:
            nonce: of the life that it must be of; None where that is not known.
            read: gives bytes by address, fewer than asked for at the end of a stretch.
            known: what the file itself says of the mappings from an address on, for a report.
        """
        try:
            pages = read(CONTROL, 2 * PAGE)
        except OSError as error:
            if error.errno != errno.EINTR:
                self.room.find("frozen refused", file=name, error=str(error), at=hex(CONTROL))
            return
        control = parse_control(pages)
        if control is None:
            if nonce is not None:
                self.room.find("frozen without control", file=name, nonce=nonce)
            return
        if nonce is not None and not self.room.ledger.may_hold(nonce, pid, control.nonce):
            self.room.find(
                "frozen foreign", file=name, mine=str(nonce), theirs=str(self.room.ledger.find(control.nonce))
            )
        second = int.from_bytes(pages[PAGE : PAGE + 8], "little")
        if control.pid == pid and control.steps - second not in (0, 1):
            self.room.find("two moments", file=name, first=control.steps, second=second)
        numbers = [number for number in range(SLOTS) if control.slots[number].state == FILLED]
        for number in self.room.random.sample(numbers, min(len(numbers), 8)):
            slot = control.slots[number]
            if slot.content in (programs.WIPED, programs.NOT_FORKED) and control.pid != pid:
                continue  # a child that has not written its own control page
            self._judge_slot(name, pid, control, number, slot, read, known)

    def _judge_slot(
        self,
        name: str,
        pid: int,
        control: Control,
        number: int,
        slot: Slot,
        read: Callable[[int, int], bytes],
        known: Known,
    ) -> None:
        at = ARENA + number * SLOT
        facts = {"file": name, "slot": number, "content": slot.content, "pages": slot.pages}
        if slot.content == programs.SUPPLIED:
            pieces = [(at, PAGE)]
        elif slot.content == programs.MIXED:
            pieces = [(at + page * PAGE, PAGE) for page in range(min(slot.pages, 7))]
        else:
            pieces = [(at, slot.pages * PAGE)]
        for address, size in pieces:
            got = b""
            try:
                while len(got) < size and (more := read(address + len(got), min(size - len(got), _MIB))):
                    got += more
            except OSError as error:
                if slot.content in (programs.PLAIN, programs.MOVED) and error.errno != errno.EINTR:
                    self.room.find("frozen refused", **facts, error=str(error), at=hex(address))
                return
            if not got and name.endswith("core"):
                return  # a core file need not have it
            own = slot.content not in (programs.SHARED, programs.MIXED) or (
                slot.content == programs.MIXED and (address - at) // PAGE % 3 == 0
            )
            whose, where = (
                (slot.nonce, address) if own else (slot.object, programs.OF_OBJECT | (address - at))
            )
            wrong = self.room.eyes.mismatch(got, whose, where, slot.generation)
            if wrong is not None or len(got) != size:
                wrong = wrong or 0
                self.room.find(
                    "frozen wrong", **facts, at=hex(address + wrong), length=len(got),
                    got=got[wrong : wrong + 64].hex(), generation=slot.generation, nonce=hex(whose),
                    mappings=known(at),
                )  # fmt: skip
            for nonce, line_at in self.room.eyes.look(got, address).nonces.items():
                if not self.room.ledger.may_hold(control.nonce, pid, nonce):
                    self.room.find(
                        "frozen foreign", **facts, at=hex(line_at), theirs=str(self.room.ledger.find(nonce))
                    )
        self.room.counts["frozen slots"] += 1


def said_of(snapshot: Path, start: int) -> list[object]:
    """What info.json of *snapshot* says of the mappings of the slot at *start*."""
    try:
        mappings = json.loads((snapshot / "info.json").read_text())["mappings"]
    except OSError as error:
        return [str(error)]
    return [mapping for mapping in mappings if start <= int(mapping["start"], 16) < start + SLOT]
