"""Snapshots, core files, and what ``memfs copy`` makes of either and of live files."""

import errno
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import attrs

from fuzz.moment import Judge, said_of
from fuzz.programs import ARENA, SLOT
from fuzz.room import UNFROZEN, Interrupted, Room

_COPY_SECONDS = 20.0
_MOST_SNAPSHOTS = 3
_MEMFS = str(Path(sys.executable).with_name("memfs"))


@attrs.frozen
class Frozen:
    """A snapshot that stands."""

    path: Path
    pid: int
    nonce: int | None
    """Of the life that it must be of; None where an exec came in between."""


@attrs.define
class Snapshots:
    """The snapshots that one reader holds."""

    room: Room
    judge: Judge
    held: list[Frozen] = attrs.Factory(list)
    _serial: int = 0

    def freeze(self) -> None:
        """Take a snapshot, and look at it at once."""
        chosen = self.room.choose_trickster() if self.room.random.random() < 0.3 else None
        pid = chosen or self.room.choose()
        found = self.room.witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        witness, control = found
        witness.close()
        self._serial += 1
        path = self.room.mount / str(pid) / "snapshots" / f"r{self.room.number}-{self._serial}"
        try:
            with self.room.asking(f"mkdir {path}", UNFROZEN):
                path.mkdir()
        except OSError:
            return
        except Interrupted:
            with suppress(OSError), self.room.asking(f"rmdir {path}"):
                path.rmdir()
            raise
        nonce = control.nonce if self.room.is_still(pid, control.nonce) else None
        frozen = Frozen(path, pid, nonce)
        self.held.append(frozen)
        self.room.counts["snapshots"] += 1
        self._judge_frozen(frozen)
        if len(self.held) > _MOST_SNAPSHOTS:
            self.let_go()

    def let_go(self) -> None:
        """Remove one."""
        if self.held:
            path = self.held.pop(self.room.random.randrange(len(self.held))).path
            with suppress(OSError), self.room.asking(f"rmdir {path}"):
                path.rmdir()

    def read(self) -> None:
        """Look at one again: it never changes."""
        if self.held:
            self._judge_frozen(self.room.random.choice(self.held))

    def _judge_frozen(self, frozen: Frozen) -> None:
        path = frozen.path / "mem"
        try:
            with self.room.asking(f"open {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | self.room.random.choice((0, os.O_DIRECT)))
        except OSError as error:
            self.room.find("snapshot lost", path=str(path), error=str(error))
            return
        try:
            self.judge.judge_moment(
                str(path),
                frozen.pid,
                frozen.nonce,
                lambda address, size: self.judge.pread(fd, path, address, size),
                lambda start: said_of(frozen.path, start),
            )
        finally:
            os.close(fd)


@attrs.frozen
class Cores:
    """One reader's core files of running processes: each is a snapshot for as long as it is open."""

    room: Room
    judge: Judge

    def read_core(self) -> None:
        """Open the core file of a process and look at all of it."""
        pid = self.room.choose()
        found = self.room.witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        found[0].close()
        path = self.room.mount / str(pid) / "core"
        try:
            with self.room.asking(f"core {path}", UNFROZEN):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            segments = self._segments(fd, path)

            def read(address: int, size: int) -> bytes:
                for start, length, offset in segments:
                    if start <= address < start + length:
                        return self.judge.pread(
                            fd, path, offset + address - start, min(size, start + length - address)
                        )
                return b""

            def known(start: int) -> list[object]:
                return [str(one) for one in segments if start <= one[0] < start + SLOT]

            self.room.counts["cores"] += 1
            # All who have it open share one snapshot, which may be of before an exec.
            self.judge.judge_moment(str(path), pid, None, read, known)
        except OSError as error:
            self.room.find("core refused", path=str(path), error=str(error))
        finally:
            os.close(fd)

    def hammer(self) -> None:
        """Open and close the core file of one process again and again."""
        pid = self.room.choose_trickster() or self.room.choose()
        if pid is None:
            return
        path = self.room.mount / str(pid) / "core"
        for _ in range(8):
            self.room.counts["cores"] += 1
            try:
                with self.room.asking(f"core {path}", UNFROZEN):
                    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    return

    def _segments(self, fd: int, path: Path) -> list[tuple[int, int, int]]:
        """Address, length and offset of each PT_LOAD of a core file."""
        head = self.judge.pread(fd, path, 0, 64)
        table, entry, count = (
            int.from_bytes(head[at : at + size], "little") for at, size in ((32, 8), (54, 2), (56, 2))
        )
        found = []
        data = self.judge.pread(fd, path, table, entry * count)
        for at in range(0, len(data), entry):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, at)
            if kind == 1:
                found.append((address, length, offset))
        return found


@attrs.frozen
class Copies:
    """One reader's images."""

    room: Room
    snapshots: Snapshots

    def copy(self) -> None:
        """Have ``memfs copy`` copy a mapping out of a snapshot, or of a process that runs."""
        if self.snapshots.held and self.room.random.random() < 0.7:
            frozen = self.room.random.choice(self.snapshots.held)
            source, pid, nonce = frozen.path, frozen.pid, frozen.nonce
        else:
            chosen = self.room.choose()
            found = self.room.witness(chosen) if chosen is not None else None
            if chosen is None or found is None:
                return
            found[0].close()
            source, pid, nonce = self.room.mount / str(chosen), chosen, found[1].nonce
        with suppress(OSError):
            with self.room.asking(f"list {source}/vmas"):
                names = [name for name in os.listdir(source / "vmas") if int(name[:12], 16) >= ARENA]
            if names and nonce is not None:
                self._copy_one(source / "vmas" / self.room.random.choice(names), pid, nonce)

    def _copy_one(self, source: Path, pid: int, nonce: int) -> None:
        copy = self.room.directory / "out" / f"copy-{self.room.number}"
        try:
            with self.room.asking(f"copy {source}", seconds=_COPY_SECONDS):
                done = subprocess.run([_MEMFS, "copy", source, copy], capture_output=True, check=False)
            said = done.stderr.decode(errors="replace")
            good = done.returncode == 0 or (
                done.returncode == 1 and said.startswith("memfs: ") and said.count("\n") == 1
            )
            if not good:
                self.room.find("copy", source=str(source), status=done.returncode, said=said[-2000:])
            if copy.exists() and ("snapshots" in source.parts or self.room.is_still(pid, nonce)):
                sight = self.room.eyes.look(copy.read_bytes(), int(source.name[:12], 16))
                foreign = [n for n in sight.nonces if not self.room.ledger.may_hold(nonce, pid, n)]
                if foreign or sight.misplaced is not None:
                    self.room.find("copy wrong", source=str(source), foreign=foreign, at=sight.misplaced)
                self.room.counts["copies"] += 1
        finally:
            copy.unlink(missing_ok=True)
