"""Does the daemon grow? Copies much, lets many short-lived processes come and go under find, and looks.

    python tests/benchmarks/endurance.py [--copy-gib N] [--processes N] [--limit-mib N] [--json FILE]

Status 0: the daemon's RSS stayed under the limit, and it has no more descriptors than before; 1: it did
not, or a command failed; 130: interrupted. It leaves nothing behind.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import attrs
import machine
from commands import CommandFailed
from contenders import Feed, copy, count_everything
from lab import Lab, Scale, Target
from target import MIB

_GIB = 1 << 30
_PIECE_BYTES = _GIB
_CALM_S = 1.0
_FAILED = 1
_INTERRUPTED = 130


@attrs.frozen
class Reading:
    """The daemon at one moment."""

    after: str
    resident_bytes: int
    peak_bytes: int
    descriptors: int
    page_cache_bytes: int

    def __str__(self) -> str:
        return (
            f"after {self.after}: RSS {self.resident_bytes / MIB:.1f} MiB, "
            f"{self.peak_bytes / MIB:.1f} MiB at most, {self.descriptors} descriptors, "
            f"page cache {self.page_cache_bytes / MIB:.0f} MiB"
        )


def read(lab: Lab, after: str) -> Reading:
    """Look at the daemon; some of what it closes, it closes a moment later."""
    time.sleep(_CALM_S)
    reading = Reading(after, *lab.memfs.resident_bytes(), lab.memfs.descriptors(), machine.page_cache_bytes())
    print(reading, flush=True)
    return reading


def copy_much(lab: Lab, size_bytes: int) -> None:
    """Copy a VMA again and again, as often as it takes."""
    feed = Feed(lab.private, lab.private.file)
    for _ in range(-(-size_bytes // feed.memory.size_bytes)):
        copy(lab, feed)


def churn_under_find(lab: Lab, processes: int) -> tuple[int, int]:
    """Run find over the mount for as long as processes come and go; returns its passes, and all its lines."""
    passes = lines = 0
    with Target("churn", processes) as churn:
        while not churn.is_ready() or not passes:
            lines += count_everything(lab.memfs.path)
            passes += 1
        churn.start()
    return passes, lines


def endure(lab: Lab, copied_bytes: int, processes: int) -> list[Reading]:
    """The readings before, between and after."""
    readings = [read(lab, "mounting")]
    copy_much(lab, copied_bytes)
    readings.append(read(lab, f"copying {copied_bytes / _GIB:g} GiB"))
    passes, lines = churn_under_find(lab, processes)
    readings.append(read(lab, f"{processes} processes under {passes} passes of find with {lines} entries"))
    return readings


def faults(readings: list[Reading], limit_bytes: int) -> list[str]:
    """What is wrong with the readings, in sentences."""
    first, last = readings[0], readings[-1]
    found = []
    if last.resident_bytes >= limit_bytes:
        found.append(f"the daemon's RSS is not under {limit_bytes / MIB:.0f} MiB")
    if last.descriptors > first.descriptors:
        found.append(f"the daemon has {last.descriptors - first.descriptors} descriptors more than before")
    return found


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copy-gib", type=float, default=8)
    parser.add_argument("--processes", type=int, default=10_000)
    parser.add_argument("--limit-mib", type=int, default=80)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Lab(Scale(private_bytes=_PIECE_BYTES)) as lab:
            readings = endure(lab, int(options.copy_gib * _GIB), options.processes)
            complaints = lab.memfs.complaints()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (CommandFailed, OSError) as error:
        print(f"endurance.py: {error}", file=sys.stderr)
        return _FAILED
    found = faults(readings, options.limit_mib * MIB)
    for line in complaints:
        print(f"the daemon's log: {line}")
    print("MISS: " + "; ".join(found) if found else "ok: the daemon's memory stays small")
    if options.json:
        document = {
            "machine": machine.describe(),
            "readings": [attrs.asdict(reading) for reading in readings],
            "faults": found,
            "complaints": complaints,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return _FAILED if found else 0


if __name__ == "__main__":
    sys.exit(main())
