"""A reader of the mount: random questions as root, each answer held against /proc/PID/mem.

    reader.py DIRECTORY MOUNTPOINT NUMBER SEED

Before an operation it writes what it does into its heartbeat, so that who watches sees one that does not
end. It works until its stdin ends; then it closes all it has open, and writes its counts into
``reader-NUMBER.json`` of the directory. What it finds goes to ``findings-NUMBER`` at once, as lines of JSON.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzz import programs
from fuzz.eyes import Eyes
from fuzz.ledger import Ledger
from fuzz.programs import ARENA, CONTROL, FILLED, MOST_PAGES, PAGE, SLOT, SLOTS, Control, Slot, parse_control

MIB = 1 << 20
HEARTBEAT = struct.Struct("=d240s")
INTERRUPT_SECONDS = 3.0
"""How long a read may wait before it is given up: pages that a userfaultfd has to supply never come."""
_COPY_SECONDS = 20.0
_PURSUED_SECONDS = 1.5
_MOST_OPEN = 16
_MOST_SNAPSHOTS = 3
_MOST_FINDINGS = 50
_MEMFS = str(Path(sys.executable).with_name("memfs"))
_PR_SET_PDEATHSIG = 1

_GOING = frozenset((errno.ESRCH, errno.ESTALE, errno.EIO, errno.ENOENT, errno.EACCES, errno.EINTR))
_UNFROZEN = (_GOING - {errno.EIO}) | {
    errno.EBUSY, errno.ENOSPC,
    # What fork said: limits of the target's, a process without a vDSO.
    errno.EAGAIN, errno.ENOMEM, errno.EOPNOTSUPP,
}  # fmt: skip
_SEEKING = _GOING | {errno.ENXIO}
_ATTRIBUTES = ("start", "end", "perms", "offset", "device", "inode", "path", "rss", "swap", "flags")


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


@attrs.frozen
class Frozen:
    """A snapshot that stands."""

    path: Path
    pid: int
    nonce: int | None
    """Of the life that it must be of; None where an exec came in between."""


class Reader:
    """One reader, its open files and its snapshots."""

    def __init__(self, directory: Path, mount: Path, number: int, seed: int) -> None:
        self._directory = directory
        self._mount = mount
        self._number = number
        self._random = random.Random(seed)
        self._eyes = Eyes(directory / "check.so")
        self._ledger = Ledger(directory / "ledger")
        self._live: list[Live] = []
        self._frozen: list[Frozen] = []
        self._counts: Counter[str] = Counter()
        self._findings = 0
        self._recent: deque[str] = deque(maxlen=12)
        self._slowest: dict[str, float] = {}
        self._serial = 0
        heartbeat = os.open(directory / f"heartbeat-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(heartbeat, PAGE)
        self._heartbeat = mmap.mmap(heartbeat, PAGE)
        os.close(heartbeat)

    # The frame

    def run(self) -> None:
        """Work until stdin ends."""
        work: list[tuple[int, Callable[[], None]]] = [
            (12, self._open_live),
            (40, self._read_live),
            (4, self._follow),
            (6, self._pursue),
            (3, self._close_live),
            (5, self._seek),
            (4, self._list),
            (3, self._ask_attributes),
            (2, self._read_text),
            (5, self._freeze),
            (5, self._read_frozen),
            (3, self._let_go),
            (4, self._read_core),
            (3, self._hammer),
            (1, self._copy),
        ]
        if self._number == 0:
            work = [(1, self._watch)]
        weights = [weight for weight, _ in work]
        while not select.select([0], [], [], 0.002)[0]:
            (_, action) = self._random.choices(work, weights)[0]
            self._do(action)
        self._end()

    def _do(self, action: Callable[[], None]) -> None:
        name = action.__name__.strip("_")
        self._counts[name] += 1
        try:
            action()
        except Interrupted:
            self._counts[f"{name}: given up"] += 1
        finally:
            self._be_idle()

    def _be_idle(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._heartbeat[: HEARTBEAT.size] = HEARTBEAT.pack(0.0, b"")

    def _end(self) -> None:
        for live in self._live:
            live.close()
        while self._frozen:
            self._do(self._let_go)
        self._ledger.close()
        report = {"counts": self._counts, "slowest": self._slowest}
        (self._directory / f"reader-{self._number}.json").write_text(json.dumps(report))

    def _find(self, kind: str, **facts: object) -> None:
        """Note something that must not be."""
        self._findings += 1
        if self._findings <= _MOST_FINDINGS:
            told = {"kind": kind, "reader": self._number, **facts, "recent": list(self._recent)}
            with open(self._directory / f"findings-{self._number}", "a") as file:
                print(json.dumps(told), file=file)
        self._counts[f"FOUND {kind}"] += 1

    @contextmanager
    def _asking(
        self, what: str, allowed: frozenset[int] = _GOING, *, seconds: float = INTERRUPT_SECONDS
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
            self._counts[f"{kind}: {errno.errorcode.get(number, number)}"] += 1
            if number not in allowed:
                self._find("error", operation=what, error=errno.errorcode.get(number, number))
            raise
        finally:
            self._be_idle()
            took = time.monotonic() - begun
            kind = what.split()[0]
            self._slowest[kind] = max(self._slowest.get(kind, 0.0), took)

    # Whom to look at

    def _choose(self) -> int | None:
        """Some target, by way of the mount."""
        name = "fz-secret" if self._random.random() < 0.08 else "fz"
        try:
            with self._asking(f"list by-name/{name}"):
                pids = os.listdir(self._mount / "by-name" / name)
        except OSError:
            return None
        return int(self._random.choice(pids)) if pids else None

    def _choose_trickster(self) -> int | None:
        """Some target that has changed its own vDSO."""
        for _ in range(6):
            pid = self._choose()
            found = self._witness(pid) if pid is not None else None
            if found is not None:
                witness, control = found
                witness.close()
                if control.flags & programs.HARMED:
                    return pid
        return None

    def _witness(self, pid: int) -> tuple[Witness, Control] | None:
        try:
            witness = Witness(pid)
        except OSError:
            return None
        control = witness.control()
        if control is None:
            witness.close()
            return None
        return witness, control

    def _is_still(self, pid: int, nonce: int) -> bool:
        """Whether *pid* has the address space now that had *nonce*: so it had it in between."""
        found = self._witness(pid)
        if found is None:
            return False
        witness, control = found
        witness.close()
        return control.nonce == nonce

    # Live files

    def _open_live(self, *, large: bool = False) -> None:
        pid = self._choose()
        found = self._witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        witness, control = found
        samples = {}
        for _ in range(3):
            address = self._address(control)
            samples[address] = witness.read(address, self._random.choice((PAGE, 256 << 10, MIB)))
        direct = self._random.random() < 0.5
        try:
            live = self._open(pid, witness, control, samples, direct=direct, large=large)
        except (OSError, Interrupted):
            witness.close()
            return
        if not self._is_still(pid, control.nonce):
            self._counts["open: void, an exec came in between"] += 1
            live.close()
            return
        self._counts["opened"] += 1
        self._live.append(live)
        if len(self._live) > _MOST_OPEN:
            self._live.pop(self._random.randrange(_MOST_OPEN)).close()
        for _ in range(3):
            if live in self._live:
                self._read_from(live)

    def _open(
        self,
        pid: int,
        witness: Witness,
        control: Control,
        samples: dict[int, bytes],
        *,
        direct: bool,
        large: bool,
    ) -> Live:
        path, base = self._mount / str(pid) / "mem", 0
        if large or self._random.random() < 0.5:
            with self._asking(f"list {pid}/vmas"):
                names = os.listdir(path.parent / "vmas")
            wanted = [name for name in names if ARENA <= int(name[:12], 16) < ARENA + SLOTS * SLOT]
            if large:
                wanted = [name for name in wanted if int(name[13:25], 16) - int(name[:12], 16) >= 128 << 10]
            elif self._random.random() < 0.1 or not wanted:
                wanted = names
            if wanted:
                path = path.parent / "vmas" / self._random.choice(wanted)
                base = int(path.name[:12], 16)
        with self._asking(f"open {path}{' direct' if direct else ''}"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        size = os.fstat(fd).st_size if base == 0 else int(path.name[13:25], 16) - base
        return Live(str(path), fd, base, size, direct, witness, control.nonce, samples)

    def _address(self, control: Control) -> int:
        """Some address at which there may be something to see."""
        filled = [number for number in range(SLOTS) if control.slots[number].state == FILLED]
        number = self._random.choice(filled) if filled else self._random.randrange(SLOTS)
        into = 0 if self._random.random() < 0.6 else self._random.randrange(MOST_PAGES * PAGE)
        return ARENA + number * SLOT + into

    def _read_live(self) -> None:
        if self._live:
            self._read_from(self._random.choice(self._live))

    def _follow(self) -> None:
        """Stay with one file: its process may exec meanwhile."""
        if self._live:
            live = self._random.choice(self._live)
            until = time.monotonic() + 0.7
            while live in self._live and time.monotonic() < until and self._read_from(live):
                pass

    def _pursue(self) -> None:
        """Read large pieces of one mapping until its process has ended or exec'ed, and a little longer."""
        before = len(self._live)
        self._open_live(large=True)
        if len(self._live) <= before:
            return
        live = self._live[-1]
        until = time.monotonic() + _PURSUED_SECONDS
        failures = 0
        while live in self._live and failures < 3 and time.monotonic() < until:
            failures += not self._read_from(live, self._random.choice((128 << 10, 256 << 10)))

    def _read_from(self, live: Live, size: int = 0) -> bool:
        """Read something of a file; False where that failed."""
        size = size or self._random.choice((64, PAGE, 16 << 10, 128 << 10, 256 << 10, 256 << 10, MIB, 0))
        size = size or self._random.randrange(1, MIB)
        before = b""
        if live.samples and self._random.random() < 0.4:
            address, before = self._random.choice(list(live.samples.items()))
        elif live.base:
            into = self._random.randrange(live.size) if self._random.random() < 0.3 else 0
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
            with self._asking(f"read {live.name} at {offset:#x} {size}"):
                got = os.pread(live.fd, size, offset)
        except OSError as error:
            self._judge_error(live, address, size, before, error)
            if error.errno != errno.EIO and self._random.random() < 0.7:
                self._live.remove(live)  # it has ended: few more questions are enough
                live.close()
            return False
        self._counts["bytes"] += len(got)
        self._judge(live, address, before, got)
        return True

    def _judge(self, live: Live, address: int, before: bytes, got: bytes) -> None:
        sight = self._eyes.look(got, address)
        self._counts["lines"] += sight.lines
        facts = {"file": live.name, "direct": live.direct, "address": hex(address), "size": len(got)}
        if sight.misplaced is not None:
            self._find("misplaced", **facts, at=hex(sight.misplaced))
        for nonce, at in sight.nonces.items():
            if not self._ledger.may_hold(live.nonce, live.witness.pid, nonce):
                theirs, mine = self._ledger.find(nonce), self._ledger.find(live.nonce)
                self._find("foreign", **facts, at=hex(at), theirs=str(theirs), mine=str(mine))
        at_line = self._eyes.contradiction(before, got, live.witness.read(address, len(got)), address)
        if at_line is not None:
            where = at_line - address
            self._find(
                "contradiction", **facts, at=hex(at_line), got=got[where : where + 64].hex(),
                known=before[where : where + 64].hex(),
            )  # fmt: skip

    def _judge_error(self, live: Live, address: int, size: int, before: bytes, error: OSError) -> None:
        """An error is right where /proc/PID/mem gives one too, or something changed."""
        after = live.witness.read(address, size)
        control = live.witness.control()
        if not live.direct or len(before) < size or before != after or control is None:
            return
        if error.errno == errno.EINTR or self._eyes.look(after, address).lines < size // 64 - 1:
            return
        if not self._is_still(live.witness.pid, live.nonce):
            return
        kind = "hidden by itself" if control.flags & (programs.FORGED | programs.DISTORTED) else "refused"
        facts = {"file": live.name, "address": hex(address), "size": size, "error": str(error)}
        if kind == "refused":
            self._find("refused", **facts)
        else:
            self._counts[f"read: {kind}"] += 1

    def _close_live(self) -> None:
        if self._live:
            self._live.pop(self._random.randrange(len(self._live))).close()

    def _seek(self) -> None:
        if not self._live:
            return
        live = self._random.choice(self._live)
        at = 0 if live.base else ARENA
        whence = os.SEEK_DATA
        with suppress(OSError):
            for _ in range(60):
                with self._asking(f"seek {live.name} {at:#x} {whence}", _SEEKING):
                    found = os.lseek(live.fd, at, whence)
                if found < at:
                    self._find("seek", file=live.name, at=hex(at), found=hex(found), whence=whence)
                    return
                at, whence = found, os.SEEK_HOLE if whence == os.SEEK_DATA else os.SEEK_DATA

    # Names

    def _list(self) -> None:
        pid = self._choose()
        if pid is None:
            return
        where = self._random.choice(("", "vmas", "snapshots"))
        path = self._mount / str(pid) / where
        with suppress(OSError):
            with self._asking(f"list {path}"):
                names = os.listdir(path)
            if len(set(names)) != len(names):
                self._find("listing", path=str(path), names=names)
            for name in self._random.sample(names, min(len(names), 6)):
                with suppress(OSError), self._asking(f"stat {path}/{name}"):
                    os.lstat(path / name)

    def _ask_attributes(self) -> None:
        pid = self._choose()
        if pid is None:
            return
        vmas = self._mount / str(pid) / "vmas"
        with suppress(OSError):
            with self._asking(f"list {vmas}"):
                path = vmas / self._random.choice(os.listdir(vmas))
            with self._asking(f"listxattr {path}"):
                os.listxattr(path)
            for name in self._random.sample(_ATTRIBUTES, 3):
                with suppress(OSError), self._asking(f"getxattr {path} {name}", _GOING | {errno.ENODATA}):
                    os.getxattr(path, f"user.memfs.{name}")

    def _read_text(self) -> None:
        pid = self._choose()
        if pid is None:
            return
        path = self._mount / str(pid) / "maps"
        with suppress(OSError), self._asking(f"maps {path}"):
            for line in path.read_bytes().splitlines():
                int(line.partition(b"-")[0], 16)
        for name in ("heap", "stack", "text"):
            with suppress(OSError), self._asking(f"readlink {pid}/{name}"):
                os.readlink(self._mount / str(pid) / name)

    def _watch(self) -> None:
        with suppress(OSError), self._asking("stat the mount"):
            os.stat(self._mount)
        with suppress(OSError), self._asking("list the mount"):
            os.listdir(self._mount)
        time.sleep(0.05)  # a pace, nothing waits for it

    # Snapshots

    def _freeze(self) -> None:
        chosen = self._choose_trickster() if self._random.random() < 0.3 else None
        pid = chosen or self._choose()
        found = self._witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        witness, control = found
        witness.close()
        self._serial += 1
        path = self._mount / str(pid) / "snapshots" / f"r{self._number}-{self._serial}"
        try:
            with self._asking(f"mkdir {path}", _UNFROZEN):
                path.mkdir()
        except OSError:
            return
        except Interrupted:
            with suppress(OSError), self._asking(f"rmdir {path}"):
                path.rmdir()
            raise
        nonce = control.nonce if self._is_still(pid, control.nonce) else None
        frozen = Frozen(path, pid, nonce)
        self._frozen.append(frozen)
        self._counts["snapshots"] += 1
        self._judge_frozen(frozen)
        if len(self._frozen) > _MOST_SNAPSHOTS:
            self._let_go()

    def _let_go(self) -> None:
        if self._frozen:
            path = self._frozen.pop(self._random.randrange(len(self._frozen))).path
            with suppress(OSError), self._asking(f"rmdir {path}"):
                path.rmdir()

    def _read_frozen(self) -> None:
        if self._frozen:
            self._judge_frozen(self._random.choice(self._frozen))

    def _judge_frozen(self, frozen: Frozen) -> None:
        path = frozen.path / "mem"
        try:
            with self._asking(f"open {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | self._random.choice((0, os.O_DIRECT)))
        except OSError as error:
            self._find("snapshot lost", path=str(path), error=str(error))
            return
        try:
            self._judge_moment(
                str(path),
                frozen.pid,
                frozen.nonce,
                lambda address, size: self._pread(fd, path, address, size),
            )
        finally:
            os.close(fd)

    def _pread(self, fd: int, path: Path, offset: int, size: int) -> bytes:
        with self._asking(f"read {path} at {offset:#x} {size}"):
            got = os.pread(fd, size, offset)
        self._counts["bytes"] += len(got)
        return got

    def _judge_moment(
        self, name: str, pid: int, nonce: int | None, read: Callable[[int, int], bytes]
    ) -> None:
        """Hold a frozen address space against what its own control page says: it is all of one moment."""
        try:
            pages = read(CONTROL, 2 * PAGE)
        except OSError as error:
            if error.errno != errno.EINTR:
                self._find("frozen refused", file=name, error=str(error), at=hex(CONTROL))
            return
        control = parse_control(pages)
        if control is None:
            if nonce is not None:
                self._find("frozen without control", file=name, nonce=nonce)
            return
        if nonce is not None and not self._ledger.may_hold(nonce, pid, control.nonce):
            self._find(
                "frozen foreign", file=name, mine=str(nonce), theirs=str(self._ledger.find(control.nonce))
            )
        second = int.from_bytes(pages[PAGE : PAGE + 8], "little")
        if control.pid == pid and control.steps - second not in (0, 1):
            self._find("two moments", file=name, first=control.steps, second=second)
        numbers = [number for number in range(SLOTS) if control.slots[number].state == FILLED]
        for number in self._random.sample(numbers, min(len(numbers), 8)):
            slot = control.slots[number]
            if slot.content in (programs.WIPED, programs.NOT_FORKED) and control.pid != pid:
                continue  # a child that has not written its own control page
            self._judge_slot(name, pid, control, number, slot, read)

    def _judge_slot(
        self,
        name: str,
        pid: int,
        control: Control,
        number: int,
        slot: Slot,
        read: Callable[[int, int], bytes],
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
                while len(got) < size and (more := read(address + len(got), min(size - len(got), MIB))):
                    got += more
            except OSError as error:
                if slot.content in (programs.PLAIN, programs.MOVED) and error.errno != errno.EINTR:
                    self._find("frozen refused", **facts, error=str(error), at=hex(address))
                return
            if not got and name.endswith("core"):
                return  # a core file need not have it
            own = slot.content not in (programs.SHARED, programs.MIXED) or (
                slot.content == programs.MIXED and (address - at) // PAGE % 3 == 0
            )
            whose, where = (
                (slot.nonce, address) if own else (slot.object, programs.OF_OBJECT | (address - at))
            )
            wrong = self._eyes.mismatch(got, whose, where, slot.generation)
            if wrong is not None or len(got) != size:
                wrong = wrong or 0
                self._find(
                    "frozen wrong", **facts, at=hex(address + wrong), length=len(got),
                    got=got[wrong : wrong + 64].hex(), generation=slot.generation, nonce=hex(whose),
                    mappings=self._said_of(name, at),
                )  # fmt: skip
            for nonce, line_at in self._eyes.look(got, address).nonces.items():
                if not self._ledger.may_hold(control.nonce, pid, nonce):
                    self._find(
                        "frozen foreign", **facts, at=hex(line_at), theirs=str(self._ledger.find(nonce))
                    )
        self._counts["frozen slots"] += 1

    def _said_of(self, name: str, start: int) -> list[dict[str, str]]:
        """What info.json says of the mappings of a slot."""
        try:
            info = json.loads((Path(name).parent / "info.json").read_text())
        except OSError:
            return []
        mappings: list[dict[str, str]] = info["mappings"]
        return [mapping for mapping in mappings if start <= int(mapping["start"], 16) < start + SLOT]

    # Cores and copies

    def _read_core(self) -> None:
        pid = self._choose()
        found = self._witness(pid) if pid is not None else None
        if pid is None or found is None:
            return
        found[0].close()
        path = self._mount / str(pid) / "core"
        try:
            with self._asking(f"core {path}", _UNFROZEN):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            segments = self._segments(fd, path)

            def read(address: int, size: int) -> bytes:
                for start, length, offset in segments:
                    if start <= address < start + length:
                        return self._pread(
                            fd, path, offset + address - start, min(size, start + length - address)
                        )
                return b""

            self._counts["cores"] += 1
            # All who have it open share one snapshot, which may be of before an exec.
            self._judge_moment(str(path), pid, None, read)
        except OSError as error:
            self._find("core refused", path=str(path), error=str(error))
        finally:
            os.close(fd)

    def _hammer(self) -> None:
        """Open and close the core file of one process again and again."""
        pid = self._choose_trickster() or self._choose()
        if pid is None:
            return
        path = self._mount / str(pid) / "core"
        for _ in range(8):
            self._counts["cores"] += 1
            try:
                with self._asking(f"core {path}", _UNFROZEN):
                    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESRCH):
                    return

    def _segments(self, fd: int, path: Path) -> list[tuple[int, int, int]]:
        """Address, length and offset of each PT_LOAD of a core file."""
        head = self._pread(fd, path, 0, 64)
        table, entry, count = (
            int.from_bytes(head[at : at + size], "little") for at, size in ((32, 8), (54, 2), (56, 2))
        )
        found = []
        data = self._pread(fd, path, table, entry * count)
        for at in range(0, len(data), entry):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, at)
            if kind == 1:
                found.append((address, length, offset))
        return found

    def _copy(self) -> None:
        """Have ``memfs copy`` copy a mapping out of a snapshot, or of a process that runs."""
        if self._frozen and self._random.random() < 0.7:
            frozen = self._random.choice(self._frozen)
            source, pid, nonce = frozen.path, frozen.pid, frozen.nonce
        else:
            chosen = self._choose()
            found = self._witness(chosen) if chosen is not None else None
            if chosen is None or found is None:
                return
            found[0].close()
            source, pid, nonce = self._mount / str(chosen), chosen, found[1].nonce
        with suppress(OSError):
            with self._asking(f"list {source}/vmas"):
                names = [name for name in os.listdir(source / "vmas") if int(name[:12], 16) >= ARENA]
            if names and nonce is not None:
                self._copy_one(source / "vmas" / self._random.choice(names), pid, nonce)

    def _copy_one(self, source: Path, pid: int, nonce: int) -> None:
        copy = self._directory / "out" / f"copy-{self._number}"
        try:
            with self._asking(f"copy {source}", seconds=_COPY_SECONDS):
                done = subprocess.run([_MEMFS, "copy", source, copy], capture_output=True, check=False)
            said = done.stderr.decode(errors="replace")
            good = done.returncode == 0 or (
                done.returncode == 1 and said.startswith("memfs: ") and said.count("\n") == 1
            )
            if not good:
                self._find("copy", source=str(source), status=done.returncode, said=said[-2000:])
            if copy.exists() and ("snapshots" in source.parts or self._is_still(pid, nonce)):
                sight = self._eyes.look(copy.read_bytes(), int(source.name[:12], 16))
                foreign = [n for n in sight.nonces if not self._ledger.may_hold(nonce, pid, n)]
                if foreign or sight.misplaced is not None:
                    self._find("copy wrong", source=str(source), foreign=foreign, at=sight.misplaced)
                self._counts["copies"] += 1
        finally:
            copy.unlink(missing_ok=True)


def _interrupt(*_: object) -> None:
    raise Interrupted


def main() -> None:
    """Read until stdin ends."""
    directory, mount, number, seed = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, _interrupt)
    Reader(Path(directory), Path(mount), int(number), int(seed)).run()


if __name__ == "__main__":
    main()
