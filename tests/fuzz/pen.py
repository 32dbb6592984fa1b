"""The pen: the processes that are looked at, as two users, and the victims that nobody may touch.

    pen.py DIRECTORY SEED WITHOUT TARGETS UID...

It keeps *TARGETS* random programs of each user running and reaps every orphan. It prints a line when all
run, and its counts at the end of stdin, when all have ended; what must not be it writes into ``odd`` at once.
Processes die with it.
"""

import ctypes
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzz.ledger import Ledger
from fuzz.programs import DIRECTORY_FD, FAULTS_FD, LEDGER_FD

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
_TICK_SECONDS = 0.02
_ENDS_SECONDS = 20.0
_PROCESSES = 80
_ADDRESS_SPACE = 1 << 30
_SANDBOXED = 1

_libc = ctypes.CDLL(None)


def _prepare() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_NPROC, (_PROCESSES, _PROCESSES))


class Pen:
    """All processes of a run but memfs and its readers."""

    def __init__(self, directory: Path, seed: int, without: str, targets: int, users: list[int]) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._users = users
        self._environment = {"SECRET": str(directory / "secret"), "WITHOUT": without}
        self._slots = [user for user in users for _ in range(targets)]
        self._walkers: dict[int, tuple[int, int]] = {}
        """By pid: its number among the slots, and its family."""
        self._victims: dict[int, subprocess.Popen[bytes]] = {}
        self._families = 0
        self._odd = directory / "odd"
        self._odd.touch()
        self._counts: Counter[str] = Counter()
        self._hold_descriptors()

    def _hold_descriptors(self) -> None:
        ledger = Ledger(self._directory / "ledger")
        os.dup2(ledger.fd, LEDGER_FD)
        try:
            os.dup2(os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC), FAULTS_FD)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), FAULTS_FD)
        self._ledger = ledger
        for user in self._users:
            own = self._directory / f"of-{user}"
            own.mkdir(mode=0o700)
            os.chown(own, user, user)

    def _note(self, what: str) -> None:
        """Write down what must not be, at once: who ends us may not wait."""
        with self._odd.open("a") as file:
            print(what, file=file)

    def start(self) -> None:
        """Start the victims, and the targets."""
        for user in (0, *self._users, 0, *self._users):
            victim = self._spawn(user, "victim", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert victim.stdout is not None
            victim.stdout.readline()
            self._victims[victim.pid] = victim
        self._ledger.name_victims(list(self._victims))
        for number in range(len(self._slots)):
            self._walk(number)

    def _spawn(
        self, user: int, *argv: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        own = os.open(self._directory / f"of-{user}" if user else self._directory, os.O_RDONLY)
        os.dup2(own, DIRECTORY_FD)
        os.close(own)
        return subprocess.Popen(
            [self._directory / "program", *argv],
            stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL,
            env=self._environment, cwd="/",
            pass_fds=(LEDGER_FD, FAULTS_FD, DIRECTORY_FD), start_new_session=True,
            user=user, group=user, extra_groups=[], preexec_fn=_prepare,
        )  # fmt: skip

    def _walk(self, number: int) -> None:
        self._families += 1
        seed = self._random.getrandbits(63)
        flags = _SANDBOXED if self._random.random() < 0.25 else 0
        user = self._slots[number]
        walker = self._spawn(user, "walk", str(seed), "0", str(self._families), "0", str(flags))
        self._walkers[walker.pid] = number, self._families
        walker.returncode = 0  # we wait for it ourselves
        self._counts["walkers"] += 1

    def run(self) -> None:
        """Keep the number of targets up until stdin ends."""
        while not select.select([0], [], [], _TICK_SECONDS)[0]:
            for number in self._reap():
                self._walk(number)

    def _reap(self) -> list[int]:
        """Reap all that has ended; returns the slots of targets that are free."""
        free: list[int] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return free
            if not pid:
                return free
            if pid in self._victims:
                self._note(f"victim {pid} {_describe(status)}")
                if not os.WIFSTOPPED(status):
                    self._victims.pop(pid).returncode = 0
            elif os.WIFSTOPPED(status):
                if pid in self._walkers:
                    self._note(f"target {pid} {_describe(status)}")
            elif pid in self._walkers:
                number, family = self._walkers.pop(pid)
                free.append(number)
                self._counts[f"walkers that {_describe(status)}"] += 1
                if status and os.waitstatus_to_exitcode(status) != 99:  # then there is an alarm in the ledger
                    self._note(f"target {pid} of family {family} {_describe(status)}")

    def end(self) -> None:
        """End everything, and say what was odd."""
        for victim in list(self._victims.values()):
            assert victim.stdin is not None
            victim.stdin.close()
            if status := victim.wait():
                self._note(f"victim {victim.pid} ended with {status}")
            del self._victims[victim.pid]
        deadline = time.monotonic() + _ENDS_SECONDS
        while pids := _children():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                self._walkers.pop(pid, None)
            self._reap()
            if time.monotonic() > deadline:
                for pid in pids:
                    self._note(f"process {pid} cannot be ended: {_threads(pid)}")
                break
            time.sleep(0.01)  # for the orphans of those that have just been killed
        print(json.dumps(self._counts), flush=True)


def _threads(pid: int) -> str:
    """The state and the tracer of each thread."""
    found = []
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        found.append(f"thread {lines['Pid']} {lines['State']} traced by {lines['TracerPid']}")
    return ", ".join(found)


def _describe(status: int) -> str:
    if os.WIFSTOPPED(status):
        return f"was stopped by {signal.Signals(os.WSTOPSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"


def _children() -> list[int]:
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]


def main() -> None:
    """Keep the pen until stdin ends."""
    directory, seed, without, targets, *users = sys.argv[1:]
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    pen = Pen(Path(directory), int(seed), without, int(targets), [int(user) for user in users])
    try:
        pen.start()
        print(json.dumps({"ready": True}), flush=True)
        pen.run()
    finally:
        pen.end()


if __name__ == "__main__":
    main()
