"""A load of processes that start, exec, map, unmap and exit, while readers read them.

    churn.py [--alive N] [--actions-per-second N] [--seed N]

At most *alive* workers live at a time; one that ends is replaced. A worker publishes mappings of
checksummed pages (`pages`): it fills a new mapping at a private place, seals it by mremap into the
published range, never changes it, and unmaps it later. New generations get new mappings, often at an
address that an earlier one had. Now and then a worker execs itself, which gives it a new life number, or
exits. Among the workers are forks that exit at once.

Workers are paced: between two actions one waits for the stop word, at most so long as its pace allows. The
program prints one JSON line and obeys:

    count          what has happened: started ended alive
    spawn N        start and reap N short-lived processes now, then answer
    stop           end every worker, answer the final count, end

Workers die with the program, and the program with the thread that started it. Standard library only.
"""

import argparse
import os
import random
import select
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.describe import Run
from support.kernel import Map, Prot
from support.lines import Answer, obey, say
from support.pages import PUBLISHED_END, PUBLISHED_START, make_page
from support.pattern import PAGE

_SCRATCH = 0x4000_0000_0000
_SLOTS = 64
_SLOT = (PUBLISHED_END - PUBLISHED_START) // _SLOTS
_PAGES = (1, 2, 7, 16, 64, 300)
_NAME = b"churn"


class Worker:
    """One process of the load: a writer that publishes and takes back."""

    def __init__(self, seed: int, pace_seconds: float) -> None:
        self._random = random.Random(seed)
        self._pace_seconds = pace_seconds
        self._life = self._random.getrandbits(63) | 1
        self._generation = 0
        self._published: dict[int, Run] = {}

    def run(self, stop: int) -> None:
        """Act until *stop* is readable, or fate says exit."""
        kernel.set_name(_NAME)
        for _ in range(3):
            self._publish()
        while not select.select([stop], [], [], self._pace_seconds)[0]:
            chance = self._random.random()
            if chance < 0.55:
                self._publish()
            elif chance < 0.85:
                self._take_back()
            elif chance < 0.93:
                self._exec(stop)
            elif chance < 0.96:
                return

    def _publish(self) -> None:
        slot = self._random.randrange(_SLOTS)
        if slot in self._published:
            self._unmap(slot)
        length = self._random.choice(_PAGES) * PAGE
        target = PUBLISHED_START + slot * _SLOT
        self._generation += 1
        kernel.map_memory(_SCRATCH, length, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        for offset in range(0, length, PAGE):
            kernel.poke(_SCRATCH + offset, make_page(target + offset, self._life, self._generation))
        kernel.move(_SCRATCH, length, target)
        self._published[slot] = Run(target, target + length)

    def _take_back(self) -> None:
        if self._published:
            self._unmap(self._random.choice(list(self._published)))

    def _unmap(self, slot: int) -> None:
        run = self._published.pop(slot)
        kernel.unmap(run.start, run.end - run.start)

    def _exec(self, stop: int) -> None:
        os.set_inheritable(stop, True)
        options = ["--worker", str(stop), "--pace", str(self._pace_seconds)]
        seed = str(self._random.getrandbits(48))
        os.execv(sys.executable, [sys.executable, os.path.realpath(__file__), *options, "--seed", seed])


class Churn:
    """The parent: keeps the number of workers up, and counts."""

    def __init__(self, alive: int, actions_per_second: float, seed: int) -> None:
        self._alive_wanted = alive
        self._pace_seconds = alive / actions_per_second
        self._random = random.Random(seed)
        self._workers: dict[int, int] = {}
        """Pids, by pidfd."""
        self._stop, self._stop_writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._started = self._ended = 0

    def run(self) -> None:
        """Serve stdin and replace what ends, until stdin ends."""
        self._fill()
        say({"pid": os.getpid(), "alive": len(self._workers)})
        line = b""
        while True:
            for descriptor, _events in self._poll.poll():
                if descriptor != 0:
                    self._reap(descriptor)
                    continue
                byte = os.read(0, 1)
                if not byte:
                    return
                line += byte
                if byte == b"\n":
                    say(obey(self, line.decode()))
                    line = b""
            self._fill()

    def _fill(self) -> None:
        while len(self._workers) < self._alive_wanted:
            self._start()

    def _start(self) -> None:
        seed, short, parent = self._random.getrandbits(48), self._random.random() < 0.3, os.getpid()
        pid = os.fork()
        if pid == 0:
            kernel.die_with_parent(parent)
            os.close(self._stop_writer)
            if not short:
                Worker(seed, self._pace_seconds).run(self._stop)
            os._exit(0)
        descriptor = os.pidfd_open(pid)
        self._workers[descriptor] = pid
        self._poll.register(descriptor, select.POLLIN)
        self._started += 1

    def _reap(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        _pid, status = os.waitpid(self._workers.pop(descriptor), 0)
        self._ended += 1
        if status:
            raise ChildProcessError(f"a worker ended with {os.waitstatus_to_exitcode(status)}")

    def do_count(self) -> Answer:
        """What has happened."""
        pids = sorted(self._workers.values())
        return {"started": self._started, "ended": self._ended, "alive": len(pids), "pids": pids}

    def do_spawn(self, count: str) -> Answer:
        """Short-lived processes, one after another, half of them with an exec."""
        for index in range(int(count)):
            if index % 2:
                pid = os.posix_spawn("/bin/true", ["true"], {})
            else:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
            os.waitpid(pid, 0)
        self._started += int(count)
        self._ended += int(count)
        return self.do_count()

    def do_stop(self) -> Answer:
        """End every worker, and this."""
        os.close(self._stop_writer)
        for descriptor in list(self._workers):
            self._reap(descriptor)
        say(self.do_count())
        os._exit(0)


def main() -> None:
    """Be the parent; or, after an exec, a worker again."""
    kernel.die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(description="Make a load of processes.")
    parser.add_argument("--alive", type=int, default=12)
    parser.add_argument("--actions-per-second", type=float, default=200, help="of all workers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        Churn(options.alive, options.actions_per_second, options.seed).run()
    else:
        Worker(options.seed, options.pace).run(options.worker)


if __name__ == "__main__":
    main()
