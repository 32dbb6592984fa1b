"""Files of running processes: kept open over their execs and ends, each read held against /proc/PID/mem."""

import errno
import os
import time
from contextlib import suppress

import attrs

from fuzz import programs
from fuzz.programs import ARENA, FILLED, MOST_PAGES, PAGE, SLOT, SLOTS, Control
from fuzz.room import GOING, Interrupted, Room, Witness

MIB = 1 << 20
_FOLLOWED_SECONDS = 0.7
_PURSUED_SECONDS = 1.5
_MOST_OPEN = 16
_SEEKING = GOING | {errno.ENXIO}


@attrs.frozen
class Live:
    """An open file of a process that runs."""

    name: str
    fd: int
    base: int
    """The address of its first byte."""
    size: int
    direct: bool
    witness: Witness
    nonce: int
    """Of the life that it was opened on."""
    samples: dict[int, bytes]
    """What the witness saw at some addresses before the file was opened."""

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.fd)
        self.witness.close()


@attrs.define
class LiveFiles:
    """The live files that one reader has open."""

    room: Room
    _live: list[Live] = attrs.Factory(list)

    def close(self) -> None:
        """Close them all."""
        for live in self._live:
            live.close()

    def open(self, *, large: bool = False) -> None:
        """Open a file of some process, and read of it."""
        pid = self.room.choose()
        found = self.room.witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        witness, control = found
        samples = {}
        for _ in range(3):
            address = self._address(control)
            samples[address] = witness.read(address, self.room.random.choice((PAGE, 256 << 10, MIB)))
        direct = self.room.random.random() < 0.5
        try:
            live = self._open_file(pid, witness, control, samples, direct=direct, large=large)
        except (OSError, Interrupted):
            witness.close()
            return
        if not self.room.is_still(pid, control.nonce):
            self.room.counts["open: void, an exec came in between"] += 1
            live.close()
            return
        self.room.counts["opened"] += 1
        self._live.append(live)
        if len(self._live) > _MOST_OPEN:
            self._live.pop(self.room.random.randrange(_MOST_OPEN)).close()
        for _ in range(3):
            if live in self._live:
                self._read_from(live)

    def _open_file(
        self,
        pid: int,
        witness: Witness,
        control: Control,
        samples: dict[int, bytes],
        *,
        direct: bool,
        large: bool,
    ) -> Live:
        path, base = self.room.mount / str(pid) / "mem", 0
        if large or self.room.random.random() < 0.5:
            with self.room.asking(f"list {pid}/vmas"):
                names = os.listdir(path.parent / "vmas")
            wanted = [name for name in names if ARENA <= int(name[:12], 16) < ARENA + SLOTS * SLOT]
            if large:
                wanted = [name for name in wanted if int(name[13:25], 16) - int(name[:12], 16) >= 128 << 10]
            elif self.room.random.random() < 0.1 or not wanted:
                wanted = names
            if wanted:
                path = path.parent / "vmas" / self.room.random.choice(wanted)
                base = int(path.name[:12], 16)
        with self.room.asking(f"open {path}{' direct' if direct else ''}"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        size = os.fstat(fd).st_size if base == 0 else int(path.name[13:25], 16) - base
        return Live(str(path), fd, base, size, direct, witness, control.nonce, samples)

    def _address(self, control: Control) -> int:
        """Some address at which there may be something to see."""
        filled = [number for number in range(SLOTS) if control.slots[number].state == FILLED]
        number = self.room.random.choice(filled) if filled else self.room.random.randrange(SLOTS)
        into = 0 if self.room.random.random() < 0.6 else self.room.random.randrange(MOST_PAGES * PAGE)
        return ARENA + number * SLOT + into

    def read(self) -> None:
        """Read something of one of them."""
        if self._live:
            self._read_from(self.room.random.choice(self._live))

    def follow(self) -> None:
        """Stay with one file: its process may exec meanwhile."""
        if self._live:
            live = self.room.random.choice(self._live)
            until = time.monotonic() + _FOLLOWED_SECONDS
            while live in self._live and time.monotonic() < until and self._read_from(live):
                pass

    def pursue(self) -> None:
        """Read large pieces of one mapping until its process has ended or exec'ed, and a little longer."""
        before = len(self._live)
        self.open(large=True)
        if len(self._live) <= before:
            return
        live = self._live[-1]
        until = time.monotonic() + _PURSUED_SECONDS
        failures = 0
        while live in self._live and failures < 3 and time.monotonic() < until:
            failures += not self._read_from(live, self.room.random.choice((128 << 10, 256 << 10)))

    def _read_from(self, live: Live, size: int = 0) -> bool:
        """Read something of a file; False where that failed."""
        size = size or self.room.random.choice((64, PAGE, 16 << 10, 128 << 10, 256 << 10, 256 << 10, MIB, 0))
        size = size or self.room.random.randrange(1, MIB)
        before = b""
        if live.samples and self.room.random.random() < 0.4:
            address, before = self.room.random.choice(list(live.samples.items()))
        elif live.base:
            into = self.room.random.randrange(live.size) if self.room.random.random() < 0.3 else 0
            address = live.base + into
        else:
            control = live.witness.control()
            if control is None:
                control = Control()
            address = self._address(control)
        offset = address - live.base
        if not 0 <= offset < live.size:
            return True
        if live.direct:  # then it shows what is there now
            before = live.witness.read(address, size)
        try:
            with self.room.asking(f"read {live.name} at {offset:#x} {size}"):
                got = os.pread(live.fd, size, offset)
        except OSError as error:
            self._judge_error(live, address, size, before, error)
            if error.errno != errno.EIO and self.room.random.random() < 0.7:
                self._live.remove(live)  # it has ended: few more questions are enough
                live.close()
            return False
        self.room.counts["bytes"] += len(got)
        self._judge(live, address, before, got)
        return True

    def _judge(self, live: Live, address: int, before: bytes, got: bytes) -> None:
        sight = self.room.eyes.look(got, address)
        self.room.counts["lines"] += sight.lines
        facts = {"file": live.name, "direct": live.direct, "address": hex(address), "size": len(got)}
        if sight.misplaced is not None:
            self.room.find("misplaced", **facts, at=hex(sight.misplaced))
        for nonce, at in sight.nonces.items():
            if not self.room.ledger.may_hold(live.nonce, live.witness.pid, nonce):
                theirs, mine = self.room.ledger.find(nonce), self.room.ledger.find(live.nonce)
                self.room.find("foreign", **facts, at=hex(at), theirs=str(theirs), mine=str(mine))
        at_line = self.room.eyes.contradiction(before, got, live.witness.read(address, len(got)), address)
        if at_line is not None:
            where = at_line - address
            self.room.find(
                "contradiction", **facts, at=hex(at_line), got=got[where : where + 64].hex(),
                known=before[where : where + 64].hex(),
            )  # fmt: skip

    def _judge_error(self, live: Live, address: int, size: int, before: bytes, error: OSError) -> None:
        """An error is right where /proc/PID/mem gives one too, or something changed."""
        after = live.witness.read(address, size)
        control = live.witness.control()
        if not live.direct or len(before) < size or before != after or control is None:
            return
        if error.errno == errno.EINTR or self.room.eyes.look(after, address).lines < size // 64 - 1:
            return
        if not self.room.is_still(live.witness.pid, live.nonce):
            return
        kind = "hidden by itself" if control.flags & (programs.FORGED | programs.DISTORTED) else "refused"
        facts = {"file": live.name, "address": hex(address), "size": size, "error": str(error)}
        if kind == "refused":
            self.room.find("refused", **facts)
        else:
            self.room.counts[f"read: {kind}"] += 1

    def close_one(self) -> None:
        """Close one of them."""
        if self._live:
            self._live.pop(self.room.random.randrange(len(self._live))).close()

    def seek(self) -> None:
        """Walk from data to hole and on."""
        if not self._live:
            return
        live = self.room.random.choice(self._live)
        at = 0 if live.base else ARENA
        whence = os.SEEK_DATA
        with suppress(OSError):
            for _ in range(60):
                with self.room.asking(f"seek {live.name} {at:#x} {whence}", _SEEKING):
                    found = os.lseek(live.fd, at, whence)
                if found < at:
                    self.room.find("seek", file=live.name, at=hex(at), found=hex(found), whence=whence)
                    return
                at, whence = found, os.SEEK_HOLE if whence == os.SEEK_DATA else os.SEEK_DATA
