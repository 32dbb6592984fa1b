"""Measures for how long a process stands still while it is dumped, and what a snapshot costs it afterwards.

    python tests/benchmarks/pause.py [--quick] [--rounds N] [--only PATTERN] [--json FILE]

A target that does nothing but look at the clock tells its longest pause. Of targets of several sizes
memfs, gcore and CRIU make a snapshot or a core by turns, onto a tmpfs where they write one, and the target
itself calls fork(). Then a snapshot is held, and the target writes all over its memory. Run it as root on a
machine that has nothing else to do. Status 0: everything was measured; 1: a row failed.
"""

import argparse
import contextlib
import itertools
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import machine
from commands import CommandFailed, run
from mounts import MemfsMount, memfs_mount, tmpfs_mount
from report import aligned, as_json, as_tables, summary
from results import OURS, AtLeast, AtMost, Failed, Measured, Result, Sample, Unit
from stopped import Pages, Shape, StoppedTarget, available_bytes, build_target, page_table_bytes, rollup_bytes

_GIB = 1 << 30
_SIZES = (1 * _GIB, 4 * _GIB, 8 * _GIB)
_QUICK_SIZES = (_GIB // 4,)
_THREADS = (1, 64)
_SPARE_BYTES = 2 * _GIB
_SETTLE_S = 0.25
_IDLE_S = 0.5
_GONE_S = 10
_CORE = "memfs, cp core"
_FORK = "a plain fork()"
_GCORE = "gcore"
_CRIU = "criu dump"
_CRIU_LOG = "log"
_NOTHING = "nothing, 0.5 s"
_QUARTERS = 4
_SHARED = Shape(2 * _GIB, Pages.SHARED, 1)
_REQUIRED = {
    Shape(4 * _GIB, Pages.SMALL, 1): (AtLeast(_GCORE, 40), AtMost(_FORK, 1.3)),
    _SHARED: (AtMost(_FORK, 1.5),),
}


@attrs.frozen
class Bench:
    """What all rows of a run share."""

    memfs: MemfsMount
    directory: Path
    scratch: Path
    program: Path
    criu_works: bool


@contextlib.contextmanager
def bench(largest_bytes: int) -> Iterator[Bench]:
    """Make all that, and take it down again."""
    directory = Path(tempfile.mkdtemp(prefix="memfs-pause-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        scratch = stack.enter_context(tmpfs_mount(directory, largest_bytes + _GIB))
        memfs = stack.enter_context(memfs_mount(directory))
        program = build_target(directory)
        why_not = _why_no_criu(scratch)
        if why_not:
            print(f"CRIU cannot run here: {why_not}\n", flush=True)
        yield Bench(memfs, directory, scratch, program, not why_not)


def _criu(pid: int, images: Path) -> None:
    images.mkdir()
    try:
        run(["criu", "dump", "--leave-running", "-t", str(pid), "-D", images, "-o", _CRIU_LOG])
    except CommandFailed as error:
        log = images / _CRIU_LOG
        lines = log.read_text().splitlines() if log.exists() else []
        causes = [line for line in lines if "Error" in line and "exited" not in line]
        raise CommandFailed(causes[0] if causes else str(error)) from None
    finally:
        shutil.rmtree(images)


def _why_no_criu(scratch: Path) -> str:
    """What CRIU says of a process that does nothing; empty where it can dump it."""
    if shutil.which("criu") is None:
        return "it is not installed"
    done = run(["criu", "--version"], capture=True)
    version = done.output.split()[1].decode()
    program = build_target(scratch)
    try:
        with StoppedTarget(program, scratch / "control", Shape(1 << 20, Pages.SMALL, 1)) as target:
            _criu(target.pid, scratch / "images")
    except CommandFailed as error:
        return f"version {version} says: {error}"
    finally:
        program.unlink()
    return ""


# What stops the target


def _snapshot(bench: Bench, target: StoppedTarget) -> None:
    (bench.memfs.path / str(target.pid) / "snapshots" / "bench").mkdir()


def _let_go(bench: Bench, target: StoppedTarget) -> None:
    path = bench.memfs.path / str(target.pid) / "snapshots" / "bench"
    if path.exists():
        path.rmdir()
    _await_end_of_copies(target)


def _await_end_of_copies(target: StoppedTarget) -> None:
    deadline = time.monotonic() + _GONE_S
    while target.copies():
        if time.monotonic() > deadline:
            raise CommandFailed("the frozen copy does not end")
        time.sleep(0.01)


def _copy_core(bench: Bench, target: StoppedTarget) -> None:
    run(["cp", bench.memfs.path / str(target.pid) / "core", bench.scratch / "core"])


def _gcore(bench: Bench, target: StoppedTarget) -> None:
    run(["gcore", "-o", bench.scratch / "gcore", str(target.pid)])


def _dump_by_criu(bench: Bench, target: StoppedTarget) -> None:
    _criu(target.pid, bench.scratch / "images")


def _nothing(bench: Bench, target: StoppedTarget) -> None:  # noqa: ARG001 as all of them
    time.sleep(_IDLE_S)


def _clear(bench: Bench, target: StoppedTarget) -> None:
    (bench.scratch / "core").unlink(missing_ok=True)
    (bench.scratch / f"gcore.{target.pid}").unlink(missing_ok=True)
    _let_go(bench, target)


_Action = Callable[[Bench, StoppedTarget], None]
_ACTIONS: dict[str, _Action] = {OURS: _snapshot, _CORE: _copy_core, _GCORE: _gcore, _CRIU: _dump_by_criu}


@attrs.frozen
class Dump:
    """One dump: the target's longest pause, and how long it took whoever asked for it."""

    pause: Sample
    total: Sample


def _dump(bench: Bench, target: StoppedTarget, action: _Action) -> Dump:
    time.sleep(_SETTLE_S)
    target.reset()
    begun = time.perf_counter()
    action(bench, target)
    total_s = time.perf_counter() - begun
    pause_s = target.longest_s()
    _clear(bench, target)
    return Dump(Sample(pause_s), Sample(total_s))


def _fork(target: StoppedTarget) -> Sample:
    time.sleep(_SETTLE_S)
    return Sample(target.fork_s())


def measure_pauses(
    bench: Bench, shape: Shape, target: StoppedTarget, forks: StoppedTarget, rounds: int
) -> tuple[Result, Result]:
    """All who dump *target*, by turns, each once before that; their pauses, and their times.

    *forks* is the process whose fork they are held against.
    """
    actions = {name: act for name, act in _ACTIONS.items() if bench.criu_works or name != _CRIU}
    pauses: dict[str, list[Sample]] = {name: [] for name in (*actions, _FORK, _NOTHING)}
    totals: dict[str, list[Sample]] = {name: [] for name in actions}
    for number in range(-1, rounds):
        measured = number >= 0
        order = [*actions]
        first = number % len(order)
        for name in order[first:] + order[:first]:
            found = _dump(bench, target, actions[name])
            if measured:
                pauses[name].append(found.pause)
                totals[name].append(found.total)
        forked, idle = _fork(forks), _dump(bench, target, _nothing)
        if measured:
            pauses[_FORK].append(forked)
            pauses[_NOTHING].append(idle.pause)
    required = _REQUIRED.get(shape, ())
    return (
        Measured(f"pause, {shape}", Unit.TIME, pauses, required),
        Measured(f"all of it, {shape}", Unit.TIME, totals, ()),
    )


# What comes after


@attrs.frozen
class Aftermath:
    """What it costs to write to a quarter of the memory while a snapshot is held.

    Attributes:
        written: how much of the memory has been written since the snapshot, this quarter included.
        plain_ns, first_ns, again_ns: for each page: without a snapshot, for the first time since, and again.
        held_bytes: what only the snapshot has afterwards, of pages and page tables.
    """

    written: float
    plain_ns: float
    first_ns: float
    again_ns: float
    held_bytes: int


def measure_aftermath(bench: Bench, shape: Shape, target: StoppedTarget) -> list[Aftermath]:
    """Hold one snapshot of *target*, and let it write to each quarter of its memory, one after the other."""
    pages = shape.size_bytes // 4096
    ends = [pages * number // _QUARTERS for number in range(_QUARTERS + 1)]
    quarters = list(itertools.pairwise(ends))

    def write_ns(first: int, end: int) -> float:
        return 1e9 * target.write_s(first, end) / (end - first)

    target.write_s(0, pages)  # after a fork each page is taken over once
    plain = [write_ns(*quarter) for quarter in quarters]
    _snapshot(bench, target)
    found = []
    (copy,) = target.copies()
    tables_bytes = page_table_bytes(copy)
    found.append(Aftermath(0, 0, 0, 0, tables_bytes + _only_in(copy)))
    for number, quarter in enumerate(quarters):
        first, again = write_ns(*quarter), write_ns(*quarter)
        held_bytes = tables_bytes + _only_in(copy)
        found.append(Aftermath((number + 1) / _QUARTERS, plain[number], first, again, held_bytes))
    _let_go(bench, target)
    return found


def _only_in(pid: int) -> int:
    return rollup_bytes(pid, "Private_Clean") + rollup_bytes(pid, "Private_Dirty")


def aftermath_table(found: dict[str, list[Aftermath]]) -> str:
    """All of it, in a table."""
    head = [
        "target",
        "written since",
        "a page, without",
        "for the first time",
        "again",
        "only the snapshot holds",
    ]
    lines = [head]
    for shape, steps in found.items():
        for step in steps:
            times = (step.plain_ns, step.first_ns, step.again_ns)
            cells = [f"{ns:.0f} ns" if ns else "" for ns in times]
            lines.append([shape, f"{step.written:.0%}", *cells, f"{step.held_bytes / (1 << 20):.1f} MiB"])
    return "\n".join(aligned(lines, left=(0,)))


# The run


@attrs.define
class Outcome:
    """What is known so far."""

    results: list[Result] = attrs.field(factory=list)
    aftermath: dict[str, list[Aftermath]] = attrs.field(factory=dict)


def _shapes(*, quick: bool) -> list[Shape]:
    sizes = _QUICK_SIZES if quick else _SIZES
    private = (Pages.SMALL, Pages.HUGE)
    shapes = [Shape(size, pages, threads) for size in sizes for pages in private for threads in _THREADS]
    return [*shapes, attrs.evolve(_SHARED, size_bytes=_QUICK_SIZES[0]) if quick else _SHARED]


def _measure(bench: Bench, shape: Shape, rounds: int, outcome: Outcome) -> None:
    needed = (3 if shape.pages is Pages.SHARED else 2) * shape.size_bytes + _SPARE_BYTES
    if available_bytes() < needed:
        raise CommandFailed(f"needs {needed / _GIB:.0f} GiB of free memory")
    with StoppedTarget(bench.program, bench.directory / "control", shape) as target:
        huge_bytes = target.smaps_bytes("AnonHugePages")
        if (shape.pages is Pages.HUGE) != (huge_bytes >= shape.size_bytes * 0.95):
            raise CommandFailed(f"{huge_bytes} bytes of the target are huge pages")
        if (
            shape.pages is Pages.SHARED
        ):  # a fork copies none of it: what counts is that of as much private memory
            private = attrs.evolve(shape, pages=Pages.SMALL)
            with StoppedTarget(bench.program, bench.directory / "private", private) as forks:
                outcome.results += measure_pauses(bench, shape, target, forks, rounds)
            return
        outcome.results += measure_pauses(bench, shape, target, target, rounds)
        if shape.threads == 1:
            outcome.aftermath[str(shape)] = measure_aftermath(bench, shape, target)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured dumps by each (3)")
    parser.add_argument(
        "--only", type=re.compile, metavar="PATTERN", help="targets whose name this regex finds"
    )
    parser.add_argument("--quick", action="store_true", help="a small target: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, every sample too")
    return parser.parse_args()


def main() -> int:
    """The command; returns its status."""
    options = _parse_arguments()
    shapes = _shapes(quick=options.quick)
    shapes = [shape for shape in shapes if options.only is None or options.only.search(str(shape))]
    if not shapes:
        print("no target has such a name: they are " + "; ".join(map(str, _shapes(quick=options.quick))))
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    facts = machine.describe()
    outcome = Outcome()
    with bench(max(shape.size_bytes for shape in shapes)) as made:
        for number, shape in enumerate(shapes, start=1):
            print(f"[{number}/{len(shapes)}] {shape}", file=sys.stderr, flush=True)
            try:
                _measure(made, shape, options.rounds, outcome)
            except (CommandFailed, OSError) as error:
                outcome.results.append(Failed(str(shape), str(error)))
        complaints = made.memfs.complaints()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    # Rows with the same contenders make one table.
    results = sorted(
        outcome.results, key=lambda result: isinstance(result, Measured) and len(result.samples), reverse=True
    )
    print(f"\n{as_tables(results)}\n")
    if outcome.aftermath:
        print(f"{aftermath_table(outcome.aftermath)}\n")
    for line in complaints:
        print(f"the daemon's log: {line}")
    print(summary(outcome.results))
    if options.json:
        document = {
            "machine": facts,
            "rows": [as_json(result) for result in outcome.results],
            "aftermath": {
                shape: [attrs.asdict(each) for each in steps] for shape, steps in outcome.aftermath.items()
            },
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(isinstance(result, Failed) for result in outcome.results))


if __name__ == "__main__":
    sys.exit(main())
