"""What every reader has in common: how it asks the mount something, whom it looks at, and what it notes."""

import errno
import json
import mmap
import os
import random
import signal
import struct
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import programs
from fuzz.eyes import Eyes
from fuzz.ledger import Ledger
from fuzz.programs import CONTROL, PAGE, Control, parse_control

HEARTBEAT = struct.Struct("=d240s")
_GIVEN_UP_SECONDS = 3.0
"""How long an answer may take before it is given up: pages that a userfaultfd has to supply never come."""
_MOST_FINDINGS = 50

GOING = frozenset((errno.ESRCH, errno.ESTALE, errno.EIO, errno.ENOENT, errno.EACCES, errno.EINTR))
"""Errors that are right of a process that changes or ends."""
UNFROZEN = (GOING - {errno.EIO}) | {
    errno.EBUSY, errno.ENOSPC,
    # What fork said: limits of the target's, a process without a vDSO.
    errno.EAGAIN, errno.ENOMEM, errno.EOPNOTSUPP,
}  # fmt: skip


class Interrupted(Exception):
    """The operation took so long that it was given up."""


class Witness:
    """/proc/PID/mem, opened by this program: the address space that a file of the mount must show."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def read(self, address: int, size: int) -> bytes:
        """What is there, up to the first page that is not."""
        try:
            return os.pread(self.fd, size, address)
        except OSError:
            return b""

    def control(self) -> Control | None:
        """The control page; None where there is none, or the address space has ended."""
        return parse_control(self.read(CONTROL, PAGE))


class Room:
    """The frame of one reader: its mount, its chance, its heartbeat, its findings."""

    def __init__(self, directory: Path, mount: Path, number: int, seed: int) -> None:
        self.directory = directory
        self.mount = mount
        self.number = number
        self.random = random.Random(seed)
        self.eyes = Eyes(directory / "check.so")
        self.ledger = Ledger(directory / "ledger")
        self.counts: Counter[str] = Counter()
        self._findings = 0
        self._recent: deque[str] = deque(maxlen=12)
        self._slowest: dict[str, float] = {}
        heartbeat = os.open(directory / f"heartbeat-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(heartbeat, PAGE)
        self._heartbeat = mmap.mmap(heartbeat, PAGE)
        os.close(heartbeat)

    def close(self) -> None:
        """Write the counts down."""
        self.ledger.close()
        report = {"counts": self.counts, "slowest": self._slowest}
        (self.directory / f"reader-{self.number}.json").write_text(json.dumps(report))

    def be_idle(self) -> None:
        """Nothing is asked now."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._heartbeat[: HEARTBEAT.size] = HEARTBEAT.pack(0.0, b"")

    def find(self, kind: str, **facts: object) -> None:
        """Note something that must not be."""
        self._findings += 1
        if self._findings <= _MOST_FINDINGS:
            told = {"kind": kind, "reader": self.number, **facts, "recent": list(self._recent)}
            with open(self.directory / f"findings-{self.number}", "a") as file:
                print(json.dumps(told), file=file)
        self.counts[f"FOUND {kind}"] += 1

    @contextmanager
    def asking(
        self, what: str, allowed: frozenset[int] = GOING, *, seconds: float = _GIVEN_UP_SECONDS
    ) -> Iterator[None]:
        """Ask the mount something: watched from outside, given up after a while, errors looked at."""
        self._recent.append(what)
        begun = time.monotonic()
        self._heartbeat[: HEARTBEAT.size] = HEARTBEAT.pack(begun, what.encode()[:240])
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            kind = what.split()[0]
            self.counts[f"{kind}: {errno.errorcode.get(number, number)}"] += 1
            if number not in allowed:
                self.find("error", operation=what, error=errno.errorcode.get(number, number))
            raise
        finally:
            self.be_idle()
            took = time.monotonic() - begun
            kind = what.split()[0]
            self._slowest[kind] = max(self._slowest.get(kind, 0.0), took)

    # Whom to look at

    def choose(self) -> int | None:
        """Some target, by way of the mount."""
        plain, secret = programs.names(self.directory)
        name = secret if self.random.random() < 0.08 else plain
        try:
            with self.asking(f"list by-name/{name}"):
                pids = os.listdir(self.mount / "by-name" / name)
        except OSError:
            return None
        return int(self.random.choice(pids)) if pids else None

    def choose_trickster(self) -> int | None:
        """Some target that has changed its own vDSO."""
        for _ in range(6):
            pid = self.choose()
            found = self.witness(pid) if pid is not None else None
            if found is not None:
                witness, control = found
                witness.close()
                if control.flags & programs.HARMED:
                    return pid
        return None

    def witness(self, pid: int) -> tuple[Witness, Control] | None:
        """The address space of *pid*, opened, and its control page; None where it has none."""
        try:
            witness = Witness(pid)
        except OSError:
            return None
        control = witness.control()
        if control is None:
            witness.close()
            return None
        return witness, control

    def is_still(self, pid: int, nonce: int) -> bool:
        """Whether *pid* has the address space now that had *nonce*: so it had it in between."""
        found = self.witness(pid)
        if found is None:
            return False
        witness, control = found
        witness.close()
        return control.nonce == nonce
