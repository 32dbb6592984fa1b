"""The other programs as a test sees them: `StuckTarget`, `PidNamespace`, `Churn`.

Each is a context manager that owns its `child.Child`; leaving it ends the program and all that it started.
What the commands do is told in `stuck`, `pidreuse` and `churn`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from support.child import Child, Json
from support.ending import Ending
from support.held import Held, HeldMapping, Span
from support.outside import MemoryUse, read_memory_use


class _Driver(Ending):
    """What the three have in common: a child, ended with the ``with`` block."""

    def __init__(self, child: Child) -> None:
        self.child = child

    @property
    def pid(self) -> int:
        """The program's pid."""
        return self.child.pid

    def close(self) -> None:
        """End the program, and all that it started. May be called twice."""
        self.child.close()


class StuckTarget(_Driver):
    """A process some of whose pages fault for ever."""

    def __init__(self, seed: int = 1, pages: int = 128) -> None:
        """Start it; `ChildError` where userfaultfd is not to be had."""
        super().__init__(Child("stuck.py", "--seed", str(seed), "--pages", str(pages)))
        self._read(self.child.hello)

    def _read(self, json: Json) -> None:
        self.mapping = HeldMapping.from_json(json["mapping"])
        """The region: `expected` is zeros where pages are `missing`, their content once they are served."""
        self.missing = tuple(Span(start, end) for start, end in json["missing"])
        """Where process_vm_readv blocks, and /proc/PID/mem gives EIO."""

    def wait_for_fault(self) -> int:
        """Block until somebody is stuck at a missing page; the page's address. Each fault is told once."""
        return int(self.child.ask("wait")["address"])

    def pending_faults(self) -> tuple[int, ...]:
        """The addresses of faults not told of yet, without blocking: () where nobody is newly stuck."""
        return tuple(self.child.ask("pending")["addresses"])

    def serve(self, seed: int) -> None:
        """Fill the missing pages with the pattern of *seed*: blocked readers go on."""
        self._read(self.child.ask("serve", seed))

    def release(self) -> None:
        """Close the userfaultfd: blocked readers go on, and find zeros."""
        self._read(self.child.ask("release"))

    def rss(self) -> MemoryUse:
        """What the kernel counts for it, asked from outside."""
        return read_memory_use(self.pid)


@attrs.frozen
class Outcome:
    """How a program inside a `PidNamespace` ended."""

    status: int
    """The exit status; negative: the signal that killed it."""
    stdout: bytes
    stderr: bytes


class PidNamespace(_Driver):
    """Processes with pids of one's choice, in a pid and mount namespace of their own.

    Pids are those inside, unless a name says outer. Mounts made inside are seen from outside below `root`.
    """

    def __init__(self) -> None:
        """Make the namespaces; `ChildError` where that is not allowed."""
        super().__init__(Child("pidreuse.py"))
        self._init: int | None = os.pidfd_open(self.outer_pid(1))

    def close(self) -> None:
        """Kill all inside, and return once it is gone. May be called twice."""
        if self._init is not None:
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
            os.close(self._init)
            self._init = None
            # The program has reaped pid 1 then, which the kernel lets go after all others inside.
            self.child.reap()
        super().close()

    def _ask(self, *words: object) -> Json:
        return self.child.ask(json.dumps(words))

    def hold(self, pid: int, *kinds: str, seed: int, directory: Path) -> Held:
        """Start a holder as *pid*. Its commands: `tell`."""
        return Held.from_json(self._ask("hold", pid, seed, str(directory), kinds))

    def tell(self, pid: int, *words: object) -> Json:
        """Give a holder a command (``write 0x1000 4096 7``) and return its answer."""
        self.send(pid, " ".join(str(word) for word in words))
        answer: Json = json.loads(self.line(pid))
        return answer

    def run(self, *argv: str, pid: int | None = None) -> int:
        """Start a program, by its full path; returns its pid. One that cannot be executed ends with 127."""
        return int(self._ask("run", pid, argv)["pid"])

    def python(self, source: str, *arguments: str) -> int:
        """Start this Python on *source*, for instance a reader that a test leads by `send` and `line`."""
        return self.run(sys.executable, "-u", "-c", source, *arguments)

    def send(self, pid: int, line: str) -> None:
        """Write a line to a program's stdin."""
        self._ask("send", pid, line)

    def line(self, pid: int) -> bytes:
        """Read the next line of a program's stdout; blocks until there is one."""
        return os.fsencode(self._ask("line", pid)["line"])

    def end(self, pid: int) -> int:
        """SIGKILL a program and reap it, so that its pid is free; returns its status."""
        return int(self._ask("end", pid)["status"])

    def finish(self, pid: int) -> Outcome:
        """Close a program's stdin, wait for its end, reap it."""
        answer = self._ask("finish", pid)
        return Outcome(answer["status"], os.fsencode(answer["stdout"]), os.fsencode(answer["stderr"]))

    def alive(self) -> tuple[int, ...]:
        """The pids inside."""
        return tuple(self._ask("alive")["pids"])

    @property
    def root(self) -> Path:
        """The root directory as it is inside, mounts and all: ``root / "tmp/mnt"`` is its /tmp/mnt."""
        return Path(f"/proc/{self.outer_pid(1)}/root")

    def outer_pid(self, pid: int) -> int:
        """The pid that a process inside has outside.

        Raises:
            LookupError: there is no such process.
        """
        for outer, numbers in self._pids():
            if numbers[-1] == pid:
                return outer
        raise LookupError(f"no process {pid} inside")

    def _pids(self) -> Iterator[tuple[int, list[int]]]:
        namespace = Path(f"/proc/{self.pid}/ns/pid_for_children").readlink()
        for entry in Path("/proc").glob("[1-9]*"):
            try:
                if (entry / "ns/pid").readlink() == namespace:
                    status = (entry / "status").read_text(errors="replace")
                    yield (
                        int(entry.name),
                        [int(n) for n in status.partition("NSpid:")[2].splitlines()[0].split()],
                    )
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


@attrs.frozen
class Count:
    """What a `Churn` has done."""

    started: int
    ended: int
    alive: int
    pids: tuple[int, ...]
    """Workers alive when it answered."""


class Churn(_Driver):
    """A load of processes that come, exec, map, unmap and go; `pages.verify` judges what was read of them."""

    def __init__(self, alive: int = 12, actions_per_second: float = 200, seed: int = 1) -> None:
        """Start *alive* workers, which together do about so many actions a second."""
        pace = ("--actions-per-second", str(actions_per_second))
        super().__init__(Child("churn.py", "--alive", str(alive), *pace, "--seed", str(seed)))

    def count(self) -> Count:
        """What has happened; `ChildError` where a worker failed."""
        return _count(self.child.ask("count"))

    def spawn(self, count: int) -> Count:
        """Start and reap *count* short-lived processes now (about 500 a second), while the others go on."""
        return _count(self.child.ask("spawn", count))

    def stop(self) -> Count:
        """End every worker and the program."""
        final = _count(self.child.ask("stop"))
        self.child.reap()
        return final


def _count(answer: Json) -> Count:
    return Count(answer["started"], answer["ended"], answer["alive"], tuple(answer["pids"]))
