"""A fuzzer of the whole: random programs of two users, root's readers of a real mount, and an oracle.

    python tests/fuzz/run.py [--seconds N] [--seed S] [--users UID,UID] [--targets N] [--readers N]
                             [--limit SECONDS] [--without TRICK,...] [-o OPT,...]

The targets map, move, protect, fork, share, exec, trick and end (`program.c`); the readers (`reader.py`) hold
what the mount shows against /proc/PID/mem and against what the pages say of themselves. When the readers have
ended, nothing of them may be left (`aftermath.py`). Status 0: nothing was found. 1: the seed and what was
found. A seed gives the same programs and questions again, though not the same schedule.

As root, with gcc. Everything ends with this program, whatever happens.
"""

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzz import aftermath
from fuzz.aftermath import descendants, in_sessions, session_of
from fuzz.ledger import Ledger
from fuzz.programs import build
from fuzz.room import HEARTBEAT

_HERE = Path(__file__).resolve().parent
_MEMFS = str(Path(sys.executable).with_name("memfs"))
_PR_SET_CHILD_SUBREAPER = 36
_ENDS_SECONDS = 60.0
_USERS = "61001,61002"


class Failed(Exception):
    """The run cannot go on; what was found until then counts."""


class Mount:
    """A mount of this tree, and its daemon, which is our child."""

    def __init__(self, directory: Path, options: str) -> None:
        self.path = directory / "mnt"
        self.log = directory / "log"
        self.path.mkdir()
        before = set(_children())
        subprocess.run(
            [_MEMFS, "mount", "-o", f"log={self.log}{options and ','}{options}", self.path], check=True
        )
        (self.daemon,) = set(_children()) - before
        os.listdir(self.path)
        self.sessions = {session_of(pid) for pid in (self.daemon, *descendants(self.daemon))}
        self._reaped = False

    def answers(self) -> bool:
        """Whether the daemon lives."""
        if not self._reaped and os.waitpid(self.daemon, os.WNOHANG)[0]:
            self._reaped = True
        return not self._reaped

    def kill(self) -> None:
        """End the daemon at once: then the kernel ends every wait for it."""
        if self.answers():
            os.kill(self.daemon, signal.SIGKILL)
            os.waitpid(self.daemon, 0)
            self._reaped = True

    def unmount(self) -> Iterator[str]:
        """End it as a user does; says what went wrong."""
        argv: list[str | Path] = [_MEMFS, "umount", self.path]
        try:
            done = subprocess.run(argv, capture_output=True, timeout=_ENDS_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            yield "umount does not end"
            return
        if done.returncode or done.stderr:
            yield f"umount ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
        if self.answers():
            yield "the daemon lives on after umount"
        for pid in in_sessions(self.sessions):
            yield f"process of the daemon's left: {pid}"

    def clear(self) -> None:
        """Leave no mount behind."""
        self.kill()
        for pid in in_sessions(self.sessions):
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL, check=False)


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()]


@contextmanager
def _program(name: str, *arguments: str | Path | int) -> Iterator[subprocess.Popen[str]]:
    """One of our own programs, which ends when its stdin does."""
    argv: list[str | Path] = [sys.executable, _HERE / f"{name}.py", *map(str, arguments)]
    program = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def _stop(program: subprocess.Popen[str], seconds: float) -> tuple[int | None, str]:
    """Let *program* end; its status and what it said, None where it does not end."""
    try:
        said, _ = program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    return program.returncode, said


class Run:
    """One run: what is running, and what was found."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._random = random.Random(options.seed)
        self.found: list[str] = []
        self.details: list[dict[str, object]] = []
        self.counts: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}

    def run(self) -> None:
        """Do all of it."""
        directory, options = self._directory, self._options
        directory.chmod(0o755)
        (directory / "out").mkdir(mode=0o700)
        build(directory)
        ledger = Ledger(directory / "ledger")
        with ExitStack() as stack:
            stack.callback(ledger.close)
            seed = self._random.getrandbits(40)
            pen = stack.enter_context(
                _program("pen", directory, seed, options.without, options.targets, *options.users)
            )
            assert pen.stdout is not None
            if not pen.stdout.readline():
                raise Failed("the targets do not start")
            mount = Mount(directory, options.options)
            stack.callback(mount.clear)
            baseline, threads = (
                aftermath.descriptors(mount.daemon),
                len(os.listdir(f"/proc/{mount.daemon}/task")),
            )
            readers = [
                stack.enter_context(
                    _program("reader", directory, mount.path, number, self._random.getrandbits(40))
                )
                for number in range(options.readers + 1)
            ]
            try:
                with suppress(KeyboardInterrupt):  # what was found until then is told
                    self._watch(mount, pen, readers)
                self._end_readers(readers)
                self.found += aftermath.of_daemon(mount.daemon, mount.sessions, baseline, threads)
                self.found += aftermath.of_targets(pen.pid)
                self.found += mount.unmount()
            except Failed as failure:
                self.found.append(str(failure))
                for reader in readers:
                    reader.kill()  # a mount that is gone is no finding of theirs
                mount.kill()
            self._end_pen(pen)
            self.found += (directory / "odd").read_text().splitlines()
            self.found += aftermath.of_ledger(ledger)
            self.found += aftermath.of_files(directory)
            self.found += aftermath.of_log(mount.log)
            self.counts.update(aftermath.sentences(mount.log))
            self._collect(ledger)

    def _watch(self, mount: Mount, pen: subprocess.Popen[str], readers: list[subprocess.Popen[str]]) -> None:
        end = time.monotonic() + self._options.seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            if not mount.answers():
                raise Failed("the daemon ended")
            if pen.poll() is not None:
                raise Failed("the pen ended")
            for number, reader in enumerate(readers):
                if reader.poll() is not None:
                    raise Failed(f"reader {number} ended with {reader.returncode}")
            self._look_for_hangs(len(readers))

    def _look_for_hangs(self, readers: int) -> None:
        for number in range(readers):
            with suppress(FileNotFoundError):
                data = (self._directory / f"heartbeat-{number}").read_bytes()
                if len(data) >= HEARTBEAT.size:
                    begun, what = HEARTBEAT.unpack(data[: HEARTBEAT.size])
                    if begun and time.monotonic() - begun > self._options.limit:
                        raise Failed(f"hang: reader {number}: {what.rstrip(bytes(1)).decode()}")

    def _end_readers(self, readers: list[subprocess.Popen[str]]) -> None:
        for number, reader in enumerate(readers):
            status, _ = _stop(reader, _ENDS_SECONDS)
            if status is None:
                self._look_for_hangs(len(readers))
                raise Failed(f"reader {number} does not end")
            if status:
                raise Failed(f"reader {number} ended with {status}")

    def _end_pen(self, pen: subprocess.Popen[str]) -> None:
        status, said = _stop(pen, _ENDS_SECONDS)
        if status != 0:
            self.found.append(f"the pen ended with {status}")
            return
        self.counts.update(json.loads(said))

    def _collect(self, ledger: Ledger) -> None:
        for path in sorted(self._directory.glob("reader-*.json")):
            report = json.loads(path.read_text())
            self.counts.update(report["counts"])
            for kind, seconds in report["slowest"].items():
                self.slowest[kind] = max(seconds, self.slowest.get(kind, 0.0))
        for path in sorted(self._directory.glob("findings-*")):
            self.details += map(json.loads, path.read_text().splitlines())
        kinds = ("", "forks", "execs", "execs of the set-uid program", "objects", "alarms", "changed vDSOs")
        for record in ledger.records():
            self.counts[kinds[record.kind]] += 1


_KNOWN = re.compile(r"got \d+ SIGCHLD")
"""What comes about once in some minutes, and does no harm: a target that runs exec just when a copy of it
ends is told of that."""


def _report(run: Run, options: argparse.Namespace, wall_seconds: float) -> int:
    for name, count in sorted(run.counts.items()):
        print(f"{count:>14,}  {name}")
    print(f"{run.counts['bytes'] / wall_seconds / 1e6:>14.1f}  MB a second read")
    for kind, seconds in sorted(run.slowest.items(), key=lambda item: -item[1])[:6]:
        print(f"{seconds:>14.3f}  seconds for the slowest {kind}")
    # One of each kind is told in full, the others are counted.
    kinds: dict[str, list[str]] = {}
    for line in run.found:
        kinds.setdefault(re.sub(r"(0x)?[0-9a-f]*\d[0-9a-f]*", "N", line), []).append(line)
    for detail in run.details:
        error = str(detail.get("error", "")).partition(":")[0]
        kinds.setdefault(f"{detail['kind']} {error}", []).append(json.dumps(detail))
    known = [kind for kind, lines in kinds.items() if options.suite and _KNOWN.search(lines[0])]
    for kind, lines in kinds.items():
        print(f"\n{'KNOWN' if kind in known else 'FOUND'} {len(lines)}x: {lines[0]}")
        for line in lines[1 : options.verbose]:
            print(f"  also: {line}")
    print(f"\nseed {options.seed}, {options.seconds:g} s: {len(kinds)} kinds of findings")
    return 1 if len(kinds) > len(known) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz a mount with random programs and random readers.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument(
        "--seed", type=int, default=None, help="of programs and readers; by default a new one"
    )
    parser.add_argument("--users", default=_USERS, help="two plain uids that no one else uses")
    parser.add_argument("--targets", type=int, default=2, help="programs of each user")
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--limit", type=float, default=30, help="seconds within which each answer must come")
    parser.add_argument("-o", dest="options", default="", help="options of the mount")
    parser.add_argument("--without", default="", help="tricks that no target plays: vdso, auxv")
    parser.add_argument("--verbose", type=int, default=1, metavar="N", help="show N findings of each kind")
    parser.add_argument("--suite", action="store_true", help="what is known to come about is no failure")
    parser.add_argument("--keep", action="store_true", help="leave the directory of the run")
    options = parser.parse_args()
    options.seed = random.getrandbits(32) if options.seed is None else options.seed
    options.users = [int(user) for user in options.users.split(",")]
    return options


def main() -> int:
    """Run once; the exit status."""
    options = _parse()
    print(f"seed {options.seed}", flush=True)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    directory = Path(tempfile.mkdtemp(prefix="memfs-fuzz-"))
    begun = time.monotonic()
    run = Run(options, directory)
    try:
        run.run()
        return _report(run, options, time.monotonic() - begun)
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
