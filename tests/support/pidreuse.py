"""A pid namespace of its own, in which processes are started with a pid of one's choice, again and again.

    pidreuse.py

Needs root. The program leaves the pid and the mount namespace, forks what becomes pid 1 inside, and mounts
a proc there, so that a memfs started inside sees the processes inside and nothing of it shows outside
(every mount is made private first). Pid 1 prints one JSON line and obeys lines of JSON, each a list: a
command and its arguments.

    ["hold", PID, SEED, DIR, [KIND, ...]]    start a holder as pid PID; answers its own first line
    ["run", PID|null, [PROGRAM, ARG, ...]]   start any program, PROGRAM a full path; answers {"pid"}
    ["send", PID, LINE]                      write a line to its stdin
    ["line", PID]                            read a line of its stdout; answers {"line"}
    ["end", PID]                             SIGKILL and reap it: the pid is free; answers {"status"}
    ["finish", PID]                          close its stdin, wait for its end, reap it; answers {"status",
                                             "stdout", "stderr"}; status < 0 is a signal
    ["alive"]                                the pids inside

What was started stays a zombie until it is ended or finished. A program that leaves a daemon behind may be
finished: what the daemon writes later is not waited for. Orphans are reaped by pid 1 as they should be. All
inside is killed when pid 1 ends, and pid 1 when whoever started the program does. Standard library only.
"""

import contextlib
import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel
from support.lines import Answer, commands, say

_HOLDER = str(Path(__file__).resolve().with_name("holder.py"))


@dataclass
class Inside:
    """A process started inside, and this side of its pipes."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]

    def close(self) -> None:
        """Close all three."""
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


def _read_until_end(pid: int, descriptor: int) -> bytes:
    """What comes from *descriptor* until *pid* ends, even where another process keeps it open for longer."""
    content, ended = bytearray(), os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(ended, select.POLLIN)
    try:
        while True:
            ready = {number for number, _events in poll.poll()}
            if descriptor not in ready:
                return bytes(content)
            data = os.read(descriptor, 1 << 16)
            content += data
            if not data:
                poll.unregister(descriptor)
                poll.poll()
                return bytes(content)
    finally:
        os.close(ended)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Init:
    """Pid 1 of the namespace."""

    def __init__(self) -> None:
        self._processes: dict[int, Inside] = {}

    def obey(self, line: str) -> Answer:
        """Carry out one command."""
        name, *arguments = json.loads(line)
        command: Callable[..., Answer] = getattr(self, f"do_{name}")
        try:
            self._reap_orphans()
            return command(*arguments)
        except (OSError, TypeError, LookupError) as error:
            return {"error": f"{name}: {error!r}"}

    def do_run(self, pid: int | None, argv: list[str]) -> Answer:
        """Start a program, as *pid* or as any."""
        child_stdin, stdin = os.pipe()
        stdout, child_stdout = os.pipe()
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by Inside.close
        inside = Inside(os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0), stderr)
        try:
            started = kernel.start(argv, (child_stdin, child_stdout, stderr.fileno()), pid)
        except OSError:
            inside.close()
            raise
        finally:
            os.close(child_stdin)
            os.close(child_stdout)
        self._processes[started] = inside
        return {"pid": started}

    def do_hold(self, pid: int, seed: int, directory: str, kinds: list[str]) -> Answer:
        """Start a holder as *pid*."""
        options = ["--seed", str(seed), "--directory", directory]
        self.do_run(pid, [sys.executable, _HOLDER, *options, *kinds])
        hello = self._processes[pid].stdout.readline()
        if not hello:
            raise ChildProcessError(self.do_finish(pid)["stderr"])
        answer: Answer = json.loads(hello)
        return answer

    def do_send(self, pid: int, line: str) -> Answer:
        """Write to a process."""
        self._processes[pid].stdin.write(line.encode() + b"\n")
        return {}

    def do_line(self, pid: int) -> Answer:
        """Read from a process."""
        line = self._processes[pid].stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError(f"{pid} has closed its stdout, after {line!r}")
        return {"line": os.fsdecode(line[:-1])}

    def do_end(self, pid: int) -> Answer:
        """Kill a process; its pid is free afterwards."""
        os.kill(pid, signal.SIGKILL)
        status = _wait(pid)
        self._processes.pop(pid).close()
        return {"status": status}

    def do_finish(self, pid: int) -> Answer:
        """Let a process come to its end."""
        inside = self._processes[pid]
        inside.stdin.close()
        stdout, status = _read_until_end(pid, inside.stdout.fileno()), _wait(pid)
        inside.stderr.seek(0)
        answer: Answer = {"status": status, "stdout": os.fsdecode(stdout)}
        answer["stderr"] = os.fsdecode(inside.stderr.read())
        self._processes.pop(pid).close()
        return answer

    def do_alive(self) -> Answer:
        """What runs in here."""
        return {"pids": sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())}

    def _reap_orphans(self) -> None:
        """Reap what others left to pid 1. What this started stays a zombie until `end` or `finish`."""
        for stat in Path("/proc").glob("[1-9]*/stat"):
            # What pid 1 does not reap itself may end between the listing and this.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self._reap_orphan(stat)

    def _reap_orphan(self, stat: Path) -> None:
        state, parent = stat.read_bytes().rpartition(b")")[2].split()[:2]
        if state == b"Z" and parent == b"1" and int(stat.parent.name) not in self._processes:
            os.waitpid(int(stat.parent.name), 0)


def be_init() -> None:
    """Pid 1: mount a proc, say hello, obey."""
    kernel.mount_private()
    kernel.mount_proc()
    say({"pid": os.getpid()})
    init = Init()
    for line in commands():
        say(init.obey(line))


def main() -> None:
    """Make the namespaces; stay outside until pid 1 has ended."""
    kernel.die_with_parent(os.getppid())
    try:
        kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS)
    except OSError as error:
        say({"error": f"unshare: {error}"})
        return
    init = os.fork()
    if init == 0:
        # The parent is in the outer pid namespace: from in here it has no number, and getppid() is 0.
        kernel.die_with_parent(0)
        be_init()
        os._exit(0)
    os.waitpid(init, 0)


if __name__ == "__main__":
    main()
