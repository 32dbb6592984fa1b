"""A process that holds memory of every kind, says what it holds, and changes it on command.

    holder.py [--seed N] [--directory DIR] [--size BYTES] KIND...

KIND is a name in `kinds.KINDS`, or ``all``. The program prints one JSON line (pid, seed, directory,
mappings as `describe.Mapping` has them, children that stay, kinds that could not be made and why), then
obeys one command a line on stdin and answers each by one JSON line, ``{"error": ...}`` where it failed.
Numbers may be decimal or 0x-hex.

    touch ADDR LEN            read one byte of each page
    write ADDR LEN SEED       write the pattern
    unmap ADDR LEN            munmap
    map ADDR LEN PERMS        new private anonymous memory, of kind "mapped"
    mprotect ADDR LEN PERMS   PERMS like r-x
    madvise ADDR LEN ADVICE   a name of `kernel.Advice`, or a number
    move ADDR LEN TARGET      mremap
    digest ADDR LEN           SHA-256 of what this process itself reads there
    recurse DEPTH             recurse in C, so that the stack grows
    fork                      fork a child that stays and holds copies
    end PID                   end such a child
    rss                       VmSize VmRSS RssAnon RssFile RssShmem VmPTE in bytes
    name HEX                  set comm
    dumpable 0|1              prctl(PR_SET_DUMPABLE)
    exec SEED KIND...         exec another holder, which maps at the same addresses and says hello
    exec-program PATH ARG...  exec anything; no answer but the program's own
    exit [STATUS]             answer, then exit

Commands that change a mapping answer with its new description. The program ends with its stdin, and is
killed with the thread that started it. Standard library only.
"""

import argparse
import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support import kernel, kinds
from support.describe import Mapping, Run, cut_runs
from support.kernel import Advice, Map, Prot
from support.lines import Answer, commands, memory_figures, obey, say
from support.room import MIB, perms_text, touch_pages, wait_for_end, write_pattern


class Holder:
    """The mappings of this process, and the commands that change them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        directory = options.directory / f"{os.getpid()}-{options.seed:x}"
        directory.mkdir()
        wanted = kinds.KINDS if "all" in options.kinds else options.kinds
        self._made = kinds.make(wanted, options.seed, directory, options.size)
        self._directory = directory

    def hello(self) -> Answer:
        """What this process is and holds."""
        return {
            "pid": os.getpid(),
            "seed": self._options.seed,
            "directory": str(self._directory),
            "children": self._made.children,
            "unavailable": self._made.unavailable,
            "mappings": [mapping.describe() for mapping in self._made.mappings],
        }

    def _overlapping(self, run: Run) -> Iterator[Mapping]:
        return (each for each in self._made.mappings if each.run.start < run.end and run.start < each.run.end)

    def _changed(self, run: Run) -> Answer:
        return {"mappings": [mapping.describe() for mapping in self._overlapping(run)]}

    def do_touch(self, address: str, length: str) -> Answer:
        """Fault pages in by reading them."""
        run = _run(address, length)
        touch_pages(run)
        for mapping in self._overlapping(run):
            mapping.touched.append(run)
        return self._changed(run)

    def do_write(self, address: str, length: str, seed: str) -> Answer:
        """Write the pattern of another seed."""
        run = _run(address, length)
        write_pattern(run, int(seed, 0))
        for mapping in self._overlapping(run):
            mapping.wrote(run, int(seed, 0))
            mapping.touched.append(run)
        return self._changed(run)

    def do_unmap(self, address: str, length: str) -> Answer:
        """Unmap pages."""
        run = _run(address, length)
        kernel.unmap(run.start, run.end - run.start)
        for mapping in self._overlapping(run):
            mapping.dropped(run)
            mapping.unreadable.append(run)
        return self._changed(run)

    def do_map(self, address: str, length: str, perms: str) -> Answer:
        """Map new private anonymous memory."""
        run, prot = _run(address, length), _prot(perms)
        kernel.map_memory(run.start, run.end - run.start, prot, Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE)
        kernel.advise(run.start, run.end - run.start, Advice.NOHUGEPAGE)
        new = Mapping("mapped", run, perms_text(prot, shared=False), self._options.seed)
        kept = [old for old in self._made.mappings if old.run.start != run.start]
        self._made.mappings = [*kept, new]
        return self._changed(run)

    def do_mprotect(self, address: str, length: str, perms: str) -> Answer:
        """Set permissions; the description follows where the whole mapping is meant."""
        run, prot = _run(address, length), _prot(perms)
        kernel.protect(run.start, run.end - run.start, prot)
        for mapping in self._overlapping(run):
            if mapping.run == run:
                mapping.perms = perms_text(prot, mapping.shared)
        return self._changed(run)

    def do_madvise(self, address: str, length: str, advice: str) -> Answer:
        """Advise the kernel; the description follows what drops pages or makes guards."""
        run = _run(address, length)
        number = Advice[advice.upper()] if advice.upper() in Advice.__members__ else int(advice, 0)
        kernel.advise(run.start, run.end - run.start, number)
        for mapping in self._overlapping(run):
            _follow_advice(mapping, run, number)
        return self._changed(run)

    def do_move(self, address: str, length: str, target: str) -> Answer:
        """Move a whole mapping; its description is forgotten, but its bytes are the old pattern."""
        run, new = _run(address, length), int(target, 0)
        kernel.move(run.start, run.end - run.start, new)
        self._made.mappings = [mapping for mapping in self._made.mappings if mapping.run != run]
        return {"start": new, "end": new + run.end - run.start}

    def do_digest(self, address: str, length: str) -> Answer:
        """Hash memory from the inside."""
        run = _run(address, length)
        digest = hashlib.sha256()
        for start in range(run.start, run.end, MIB):
            digest.update(kernel.peek(start, min(MIB, run.end - start)))
        return {"sha256": digest.hexdigest()}

    def do_recurse(self, depth: str) -> Answer:
        """Grow the stack by calls that nest in C."""
        levels = int(depth, 0)
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * levels + 1000))

        def step(left: int) -> int:
            return int(descend(left - 1)) + 1 if left > 0 else 0

        descend = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(step)
        before = kinds.stack_run()
        reached = descend(levels)
        after = kinds.stack_run()
        return {"depth": reached, "before": before.start, "start": after.start, "end": after.end}

    def do_fork(self) -> Answer:
        """Fork a child that stays."""
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            kernel.die_with_parent(parent)
            wait_for_end()
        self._made.children.append(child)
        return {"pid": child}

    def do_end(self, pid: str) -> Answer:
        """End a child that `fork` or a kind left."""
        child = int(pid, 0)
        self._made.children.remove(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"pid": child}

    def do_rss(self) -> Answer:
        """The memory figures of /proc/self/status, in bytes."""
        return memory_figures()

    def do_name(self, name: str) -> Answer:
        """Set comm to bytes given in hexadecimal."""
        kernel.set_name(bytes.fromhex(name))
        return {}

    def do_dumpable(self, value: str) -> Answer:
        """Set or clear what lets others with the same uid read this process."""
        kernel.prctl(kernel.Prctl.SET_DUMPABLE, int(value))
        return {}

    def do_exec(self, seed: str, *wanted: str) -> Answer:
        """Become another holder."""
        options = self._options
        command = [sys.executable, os.path.realpath(__file__), "--seed", seed, "--size", str(options.size)]
        os.execv(sys.executable, [*command, "--directory", str(options.directory), *wanted])

    def do_exec_program(self, *argv: str) -> Answer:
        """Become something else."""
        os.execv(argv[0], list(argv))

    def do_exit(self, status: str = "0") -> Answer:
        """Answer, then exit."""
        say({"exit": int(status)})
        os._exit(int(status))


def _follow_advice(mapping: Mapping, run: Run, advice: int) -> None:
    if advice in (Advice.DONTNEED, Advice.GUARD_INSTALL):
        mapping.dropped(run)
    if advice == Advice.GUARD_INSTALL:
        mapping.unreadable.append(run)
    if advice == Advice.GUARD_REMOVE:
        mapping.unreadable = cut_runs(mapping.unreadable, run)
    if advice in (Advice.POPULATE_READ, Advice.POPULATE_WRITE):
        mapping.touched.append(run)


def _run(address: str, length: str) -> Run:
    start = int(address, 0)
    return Run(start, start + int(length, 0))


def _prot(perms: str) -> Prot:
    letters = {"r": Prot.READ, "w": Prot.WRITE, "x": Prot.EXEC, "-": Prot.NONE, "p": Prot.NONE}
    prot = Prot.NONE
    for letter in perms:
        prot |= letters[letter]
    return prot


def main() -> None:
    """Make the mappings, say so, obey until stdin ends."""
    kernel.die_with_parent(os.getppid())
    parser = argparse.ArgumentParser(description="Hold memory of every kind.")
    parser.add_argument("--seed", type=lambda text: int(text, 0), default=1)
    parser.add_argument("--directory", type=Path, default=Path("/tmp"))
    parser.add_argument("--size", type=int, default=4 * MIB, help="bytes of private-full")
    parser.add_argument("kinds", nargs="+", choices=("all", *kinds.KINDS), metavar="KIND")
    holder = Holder(parser.parse_args())
    say(holder.hello())
    for line in commands():
        say(obey(holder, line))


if __name__ == "__main__":
    main()
