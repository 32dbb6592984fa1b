"""Measures memfs against its peers, by turns in one run.

    python tests/benchmarks/run.py [--quick] [--rounds N] [--size-mib N] [--only PATTERN] [--json FILE]
                                   [--plot DIRECTORY]
    python tests/benchmarks/run.py --check BEFORE.json AFTER.json

It makes its own targets, mounts memfs itself, and leaves nothing behind. A ratio says how many times as
fast as the peer memfs is, medians of the same run. Run it as root on a machine that has nothing else to
do. Status 0: everything was measured; 1: a row failed, or something was lost from BEFORE to AFTER; 2: bad
arguments; 130: interrupted, what was measured is shown.
"""

import argparse
import json
import re
import signal
import sys
import time
from pathlib import Path

import attrs
import machine
from commands import CommandFailed
from compare import NotResultsError, compare
from contenders import Contender
from lab import Lab, Scale
from plot import by_read_size, by_readers
from report import as_json, as_tables, summary
from results import Failed, Measured, Result, Sample
from rows import Row, all_rows
from target import MIB

_QUICK = Scale(private_bytes=128 * MIB, shared_bytes=128 * MIB, random_reads=2000, pack_bytes=16 * MIB)
_SETTLE_S = 0.25
_FAILED = 1
_USAGE = 2
_INTERRUPTED = 130


@attrs.frozen
class Usage:
    """What the run cost, of the daemon's memory and of the machine's page cache."""

    daemon_bytes: int
    daemon_peak_bytes: int
    page_cache_bytes: int

    @classmethod
    def read(cls, lab: Lab) -> "Usage":
        """As it is now."""
        return cls(*lab.memfs.resident_bytes(), machine.page_cache_bytes())


@attrs.define
class Outcome:
    """What is known so far: an interrupted run shows that much."""

    results: list[Result] = attrs.field(factory=list)
    before: Usage | None = None
    after: Usage | None = None
    complaints: list[str] = attrs.field(factory=list)


def measure(row: Row, lab: Lab, rounds: int) -> Result:
    """Run the contenders of *row* by turns; each once before that, unmeasured."""
    try:
        contenders = row.contenders(lab)
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        for contender in contenders:
            if contender.rounds is None:
                _run_settled(contender)
        for number in range(rounds):
            first = number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                if contender.rounds is None or number < contender.rounds:
                    samples[contender.name].append(_run_settled(contender))
    except (CommandFailed, OSError) as error:
        return Failed(row.name, str(error))
    return Measured(row.name, row.unit, samples, row.required)


def _run_settled(contender: Contender) -> Sample:
    """Run it when the one before has no hand in it: memfs keeps CPUs awake for 0.2 s after its last read."""
    time.sleep(_SETTLE_S)
    return contender.run()


def measure_all(rows: list[Row], scale: Scale, rounds: int, outcome: Outcome) -> None:
    """Measure *rows* one after the other into *outcome*."""
    with Lab(scale) as lab:
        outcome.before = Usage.read(lab)
        for number, row in enumerate(rows, start=1):
            _progress(f"[{number}/{len(rows)}] {row.name}")
            result = measure(row, lab, rounds)
            outcome.results.append(result)
            _progress(_in_brief(result))
        outcome.after = Usage.read(lab)
        outcome.complaints = lab.memfs.complaints()


def _in_brief(result: Result) -> str:
    if isinstance(result, Failed):
        return f"    FAILED: {result.reason}"
    return "    " + ", ".join(f"{name} {result.unit.format(result.speed(name))}" for name in result.samples)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_outcome(outcome: Outcome, facts: dict[str, str]) -> None:
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"\n{as_tables(outcome.results)}\n")
    if outcome.before and outcome.after:
        before, after = outcome.before, outcome.after
        grown = after.page_cache_bytes - before.page_cache_bytes
        print(
            f"The daemon's RSS: {before.daemon_bytes / MIB:.1f} MiB before, "
            f"{after.daemon_bytes / MIB:.1f} MiB after, {after.daemon_peak_bytes / MIB:.1f} MiB at most. "
            f"The machine's page cache grew by {grown / MIB:.1f} MiB."
        )
    for line in outcome.complaints:
        print(f"the daemon's log: {line}")
    print(summary(outcome.results))


def _write_json(path: Path, outcome: Outcome, facts: dict[str, str], options: argparse.Namespace) -> None:
    document = {
        "machine": facts,
        "options": {key: str(value) for key, value in vars(options).items()},
        "rows": [as_json(result) for result in outcome.results],
        "before": outcome.before and attrs.asdict(outcome.before),
        "after": outcome.after and attrs.asdict(outcome.after),
        "complaints": outcome.complaints,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="measured runs of each contender (5; 2 with --quick)")
    parser.add_argument("--size-mib", type=int, help="of the large targets; shared memory takes half of it")
    parser.add_argument("--only", type=re.compile, metavar="PATTERN", help="rows whose name this regex finds")
    parser.add_argument(
        "--quick", action="store_true", help="small and few: to see that it works, not how fast"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, every sample too")
    parser.add_argument("--plot", type=Path, metavar="DIRECTORY", help="draw two SVG files there")
    parser.add_argument(
        "--check",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="compare two result files; status 1 where a ratio has become worse by a quarter",
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


def _scale(options: argparse.Namespace) -> Scale:
    scale = _QUICK if options.quick else Scale()
    if options.size_mib:
        size = options.size_mib * MIB
        scale = attrs.evolve(scale, private_bytes=size, shared_bytes=size // 2)
    return scale


def _draw(directory: Path, outcome: Outcome) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, drawn in (
        ("throughput.svg", by_read_size(outcome.results)),
        ("readers.svg", by_readers(outcome.results)),
    ):
        if drawn is not None:
            (directory / name).write_text(drawn)


def _check(before: Path, after: Path, only: re.Pattern[str] | None) -> int:
    try:
        changes = compare(before, after, only)
    except NotResultsError as error:
        _progress(f"run.py: {error}")
        return _USAGE
    print("\n".join(map(str, changes)))
    worse = sum(change.is_worse for change in changes)
    print(f"{len(changes)} ratios, {worse} worse")
    return _FAILED if worse else 0


def main() -> int:
    """The command; returns its status."""
    options = _parse_arguments()
    if options.check:
        return _check(*options.check, options.only)
    rows = [row for row in all_rows() if options.only is None or options.only.search(row.name)]
    if options.list or not rows:
        print("\n".join(row.name for row in rows) or "no row has such a name")
        return 0 if rows else _USAGE
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    facts = machine.describe()
    outcome = Outcome()
    status = 0
    try:
        measure_all(rows, _scale(options), options.rounds, outcome)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except (CommandFailed, OSError) as error:
        _progress(f"run.py: {error}")
        status = _FAILED
    _print_outcome(outcome, facts)
    if options.json:
        _write_json(options.json, outcome, facts, options)
    if options.plot:
        _draw(options.plot, outcome)
    return status or (_FAILED if any(isinstance(each, Failed) for each in outcome.results) else 0)


if __name__ == "__main__":
    sys.exit(main())
