"""Measures whether a process stands still for longer when the machine is busy.

    python tests/benchmarks/busy.py [--rounds N]

Of a small process and of one with 2,000 threads memfs takes snapshots by turns: with nothing else to do, and
beside two busy loops for each core. The pause is what info.json says: with that load the target's own clock
shows how it waits for its turn. Run it as root. Status 0: everything was measured; 1: a row failed.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import machine
from commands import CommandFailed
from mounts import MemfsMount, memfs_mount
from report import as_tables, summary
from results import OURS, AtMost, Failed, Measured, Result, Sample, Unit
from stopped import Pages, Shape, StoppedTarget, build_target

_MIB = 1 << 20
_SHAPES = (Shape(8 * _MIB, Pages.SMALL, 1), Shape(8 * _MIB, Pages.SMALL, 2000))
_LOOPS_PER_CORE = 2
_SNAPSHOTS = 5
_QUIET = "memfs, nothing else to do"
_LOOP = "print(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """Busy loops, which all run by now."""
    with contextlib.ExitStack() as stack:
        for _ in range(_LOOPS_PER_CORE * (os.cpu_count() or 1)):
            argv = [sys.executable, "-c", _LOOP]
            loop = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
            stack.callback(loop.kill)
            assert loop.stdout is not None
            loop.stdout.readline()
        yield


def _pauses(memfs: MemfsMount, target: StoppedTarget) -> list[Sample]:
    found = []
    directory = memfs.path / str(target.pid) / "snapshots" / "bench"
    for _ in range(_SNAPSHOTS):
        directory.mkdir()
        found.append(Sample(json.loads((directory / "info.json").read_bytes())["pause_us"] / 1e6))
        directory.rmdir()
    return found


def _measure(memfs: MemfsMount, program: Path, control: Path, shape: Shape, rounds: int) -> Result:
    busy: list[Sample] = []
    quiet: list[Sample] = []
    try:
        with StoppedTarget(program, control, shape) as target:
            _pauses(memfs, target)  # the first are slower
            for _ in range(rounds):
                quiet += _pauses(memfs, target)
                with _load():
                    busy += _pauses(memfs, target)
    except (CommandFailed, OSError) as error:
        return Failed(str(shape), str(error))
    return Measured(
        f"pause beside busy loops, {shape}", Unit.TIME, {OURS: busy, _QUIET: quiet}, (AtMost(_QUIET, 1.3),)
    )


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of 5 snapshots each (5)")
    options = parser.parse_args()
    facts = machine.describe()
    with tempfile.TemporaryDirectory(prefix="memfs-busy-") as name, memfs_mount(Path(name)) as memfs:
        directory = Path(name)
        program = build_target(directory)
        results = [
            _measure(memfs, program, directory / "control", shape, options.rounds) for shape in _SHAPES
        ]
    print("\n".join(f"{fact}: {value}" for fact, value in facts.items()))
    print(f"\n{as_tables(results)}\n")
    print(summary(results))
    return int(any(isinstance(result, Failed) for result in results))


if __name__ == "__main__":
    sys.exit(main())
