"""What must be true when the readers have ended: nothing is stopped, left over, or was signalled."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from fuzz.ledger import ALARM, Ledger

_SETTLES_SECONDS = 30.0
"""How long a thing that passes by itself may take; that it passes is what counts."""
_STAND_BY = 12
"""Descriptors that the daemon may come to hold for itself: a pipe for each thread, the latency request."""
_THREADS = 48
"""Threads that it may keep, for a while at least."""
_NUMBERS = re.compile(r"\d+")
_OWN = re.compile(r"pipe:|/dev/fuse|/dev/cpu_dma_latency|anon_inode:\[eventpoll\]|/dev/null")
_QUIET_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING) ")
_STAMPED = re.compile(r"\d{4}-\d\d-\d\d ")
_BUG = re.compile(r"Traceback|no known reason|a request was lost|the daemon ends|libfuse")
_SELF_TRACED = re.compile(r"process \d+ is traced by process \d+ already")


def _settle(question: Callable[[], list[str]]) -> list[str]:
    """The answer to *question* as soon as it is empty, or its last one."""
    deadline = time.monotonic() + _SETTLES_SECONDS
    while (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def descriptors(pid: int) -> Counter[str]:
    """What *pid* has open, by kind: the target of each link without its numbers."""
    found: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found[_NUMBERS.sub("N", os.readlink(entry.path))] += 1
    return found


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def session_of(pid: int) -> int:
    """The session of *pid*; 0 where it has ended."""
    return int(stat[3]) if (stat := _stat(pid)) else 0


def in_sessions(sessions: set[int]) -> list[int]:
    """All processes of *sessions*: a worker that has lost its parent stays in that of the fork server."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in pids if session_of(pid) in sessions]


def descendants(pid: int) -> Iterator[int]:
    """All children of *pid*, and theirs."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from descendants(child)


def of_daemon(daemon: int, sessions: set[int], baseline: Counter[str], threads: int) -> Iterator[str]:
    """What the daemon still holds that it did not hold before."""

    def more() -> list[str]:
        extra = descriptors(daemon) - baseline
        own = sum(count for kind, count in extra.items() if _OWN.match(kind))
        kept = [f"descriptor: {count} of {kind}" for kind, count in extra.items() if not _OWN.match(kind)]
        return kept + ([f"descriptor: {own} for itself"] if own > _STAND_BY else [])

    servers = list(descendants(daemon))[:1]

    def workers() -> list[str]:
        gone = not servers or _stat(servers[0])[:1] in ([], [b"Z"])
        left = [pid for pid in in_sessions(sessions) if pid not in (daemon, *servers)]
        return [f"worker left: process {pid}" for pid in left] + (["fork server gone"] if gone else [])

    def too_many_threads() -> list[str]:
        count = len(os.listdir(f"/proc/{daemon}/task"))
        return [f"threads: {count}, {threads} before"] if count > threads + _THREADS else []

    for question in (workers, more, too_many_threads):
        yield from _settle(question)


def of_targets(pen: int) -> Iterator[str]:
    """Targets that stand still or are traced, and children of theirs that they did not make."""

    def seen() -> dict[int, str]:
        odd = {}
        for pid in descendants(pen):
            stat = _stat(pid)
            if not stat:
                continue
            # The exit signal is the 38th field of proc(5); the children of the targets have SIGCHLD.
            if stat[35] == b"0":
                odd[pid] = f"target left with a copy of memfs's: process {pid}, state {stat[0].decode()}"
            elif stat[0] == b"T" and int(stat[1]) == pen and int(stat[3]) != pid:
                pass  # an orphan: who stopped it was killed before it could have it go on
            elif stat[0] in (b"T", b"t"):
                odd[pid] = f"target left stopped: process {pid}, state {stat[0].decode()}"
            else:
                with suppress(FileNotFoundError, ProcessLookupError):
                    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
                    if "\nTracerPid:\t0\n" not in status:
                        odd[pid] = f"target left traced: process {pid}"
        return odd

    # No worker is left, so each copy has been reaped. Targets stop each other for a moment, though: of those
    # that stand still it counts only who is found so each time.
    first = seen()
    yield from (odd for odd in first.values() if "copy" in odd)
    lasting = {pid: odd for pid, odd in first.items() if "copy" not in odd}

    def still() -> list[str]:
        now = seen()
        for pid in list(lasting):
            if lasting[pid] != now.get(pid):
                del lasting[pid]
        return list(lasting.values())

    yield from _settle(still)


def of_ledger(ledger: Ledger) -> Iterator[str]:
    """Signals that nobody of a target's family sent."""
    for record in ledger.records():
        if record.kind == ALARM and not (record.parent and ledger.harmed(record.parent)):
            if record.first == signal.SIGCHLD and record.parent:
                told = f"{record.second} SIGCHLD, and {record.third} children of its own have died"
                yield f"target signalled: process {record.pid} got {told}, life {record.parent:#x}"
                continue
            who = "victim" if not record.parent else "target"
            name = signal.Signals(record.first).name if record.first in set(signal.Signals) else record.first
            origin = f"code {record.second - (1 << 64) * (record.second >> 63)}, by or at {record.third:#x}"
            yield f"{who} signalled: process {record.pid} got {name} ({origin}), life {record.parent:#x}"


def of_files(directory: Path) -> Iterator[str]:
    """What sandboxed targets have made, though their filter forbids it."""
    for path in directory.glob("of-*/escaped-*"):
        yield f"sandbox left: {path.name}"


def _entries(log: Path) -> list[list[str]]:
    """What the daemon logged, each with the lines that follow it."""
    entries: list[list[str]] = []
    for line in log.read_text(errors="replace").splitlines():
        if _STAMPED.match(line) or not entries:
            entries.append([])
        entries[-1].append(line)
    return entries


def sentences(log: Path) -> Counter[str]:
    """How often the daemon logged what, numbers aside."""
    return Counter("log: " + _NUMBERS.sub("N", entry[0].partition("WARNING ")[2]) for entry in _entries(log))


def of_log(log: Path) -> Iterator[str]:
    """What the daemon should not have had to say."""
    for entry in _entries(log):
        text = " / ".join(line.strip() for line in entry[:1] + entry[1:][-6:] if line.strip())
        if _SELF_TRACED.search(text):
            yield f"busy by itself: {text}"
        elif not _QUIET_LINE.match(text) or any(map(_BUG.search, entry)):
            yield f"log: {text}"
