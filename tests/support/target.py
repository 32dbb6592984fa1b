"""A holder as a test sees it: start it, know what it holds, change it, and be sure that it ends.

    with Target("private-runs", "guard", directory=tmp_path) as target:
        mapping = target.mapping("guard")
        assert read(...) == mapping.expected(offset, length)

What a command changes is in the descriptions at once. See `holder` for what each command does and `kinds`
for what each kind is.
"""

import shutil
import sys
from pathlib import Path

import attrs

from support.child import Child, ChildError
from support.ending import Ending
from support.held import Held, HeldMapping
from support.outside import MemoryUse, read_memory_use


class KindUnavailableError(Exception):
    """This machine cannot make a kind of mapping; the message says why. Tests skip."""


class Target(Ending):
    """A running holder."""

    def __init__(
        self,
        *kinds: str,
        directory: Path,
        seed: int = 1,
        size: int = 4 << 20,
        user: int | None = None,
        python: str = sys.executable,
    ) -> None:
        """Start a holder of *kinds* (``all`` for every one), and wait until it holds them.

        Args:
            directory: where it makes a directory for its files, which goes with it.
            size: the length of kind ``private-full``.
            user: the uid it runs as; *directory*, *python* and these files must be open to it.

        Raises:
            KindUnavailableError: a kind named here cannot be made (``all`` leaves such kinds out).
        """
        options = ("--seed", str(seed), "--directory", str(directory), "--size", str(size))
        self.child = Child("holder.py", *options, *kinds, user=user, python=python)
        self._directories = [Path(self.child.hello["directory"])]
        self.held = Held.from_json(self.child.hello)
        self._refuse_unavailable(kinds)

    def _refuse_unavailable(self, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            if kind in self.held.unavailable:
                self.close()
                raise KindUnavailableError(f"{kind}: {self.held.unavailable[kind]}")

    @property
    def pid(self) -> int:
        """The holder's pid."""
        return self.child.pid

    @property
    def mappings(self) -> tuple[HeldMapping, ...]:
        """Everything it holds, as it is now."""
        return self.held.mappings

    def mapping(self, kind: str) -> HeldMapping:
        """The only mapping of *kind*."""
        (mapping,) = self.held.of(kind)
        return mapping

    def close(self) -> None:
        """Kill the holder, reap it, and remove its files. May be called twice."""
        self.child.close()
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    def _change(self, *words: object) -> tuple[HeldMapping, ...]:
        changed = tuple(HeldMapping.from_json(each) for each in self.child.ask(*words)["mappings"])
        self.held = self.held.with_changed(changed)
        return changed

    def touch(self, address: int, length: int) -> None:
        """Make it read one byte of each page."""
        self._change("touch", address, length)

    def write(self, address: int, length: int, seed: int) -> None:
        """Make it write the pattern of *seed*."""
        self._change("write", address, length, seed)

    def unmap(self, address: int, length: int) -> None:
        """Make it unmap pages."""
        self._change("unmap", address, length)

    def map(self, address: int, length: int, perms: str = "rw-") -> HeldMapping:
        """Make it map new private anonymous memory, where nothing is mapped."""
        changed = self._change("map", address, length, perms)
        return next(mapping for mapping in changed if mapping.start == address)

    def mprotect(self, address: int, length: int, perms: str) -> None:
        """Make it change permissions; *perms* like ``r-x``."""
        self._change("mprotect", address, length, perms)

    def madvise(self, address: int, length: int, advice: str | int) -> None:
        """Make it call madvise; *advice* like ``dontneed``, or a number."""
        self._change("madvise", address, length, advice)

    def move(self, address: int, length: int, new_address: int) -> None:
        """Make it move a whole mapping by mremap; it has no description then."""
        self.child.ask("move", address, length, new_address)
        kept = tuple(mapping for mapping in self.mappings if mapping.start != address)
        self.held = attrs.evolve(self.held, mappings=kept)

    def digest(self, address: int, length: int) -> str:
        """The SHA-256, in hexadecimal, of what it itself reads there."""
        return str(self.child.ask("digest", address, length)["sha256"])

    def recurse(self, depth: int) -> tuple[int, int]:
        """Make it recurse in C; returns where its stack began before and begins after."""
        answer = self.child.ask("recurse", depth)
        return answer["before"], answer["start"]

    def fork(self) -> int:
        """Make it fork a child that holds copies of everything and stays; returns the child's pid."""
        return int(self.child.ask("fork")["pid"])

    def end(self, pid: int) -> None:
        """Make it kill and reap such a child."""
        self.child.ask("end", pid)

    def set_name(self, name: bytes) -> None:
        """Set its comm."""
        self.child.ask("name", name.hex())

    def set_dumpable(self, value: bool) -> None:
        """Set or clear its dumpable flag."""
        self.child.ask("dumpable", int(value))

    def rss(self) -> MemoryUse:
        """What the kernel counts for it, asked from outside, so that asking changes nothing."""
        return read_memory_use(self.pid)

    def exec(self, *kinds: str, seed: int) -> Held:
        """Make it exec another holder, which maps at the same addresses; returns what was held before."""
        before = self.held
        self.child.send(f"exec {seed} {' '.join(kinds)}")
        self.held = Held.from_json(self.child.answer())
        self._directories.append(self.held.directory)
        self._refuse_unavailable(kinds)
        return before

    def exec_program(self, *argv: str) -> None:
        """Make it exec a program that echoes its stdin, like cat; returns once that one runs."""
        self.child.send(" ".join(("exec-program", *argv)))
        self.child.send("here")
        line = self.child.line()
        if line != b"here":
            raise ChildError(line.decode())
        self.held = attrs.evolve(self.held, mappings=())

    def exit(self, status: int = 0) -> None:
        """Make it exit, and reap it: its pid is free after this."""
        self.child.ask("exit", status)
        self.child.reap()
