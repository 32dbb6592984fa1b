"""info.json: what a snapshot is, for people and programs. Pure: it reads nothing."""

import datetime
import json
from collections import Counter

import attrs

from memfs.snapshot.missing import find_missing
from memfs.snapshot.values import Frozen


def format_info(frozen: Frozen) -> bytes:
    """The text of info.json: sizes in bytes, times in microseconds, addresses in hex as in maps."""
    totals: Counter[str] = Counter()
    for part in frozen.parts:
        totals[part.fate.value] += part.region.span.size
    taken = datetime.datetime.fromtimestamp(frozen.taken_ns / 1e9, datetime.UTC)
    info = {
        "pid": frozen.identity.pid,
        "comm": frozen.stat.comm.decode(errors="backslashreplace"),
        "taken": taken.isoformat(timespec="microseconds"),
        "pause_us": frozen.phases.pause,
        "phases_us": attrs.asdict(frozen.phases),
        "longest_look_us": frozen.longest_look_us,
        "threads": len(frozen.threads),
        "vmas": len(frozen.parts),
        "bytes": {fate: totals[fate] for fate in ("frozen", "copied", "live", "absent")},
        "missing": [
            {"reason": missing.reason, "vmas": missing.vmas, "bytes": missing.size_bytes}
            for missing in find_missing(frozen.parts)
        ],
        "mappings": [
            {
                "start": f"{part.region.span.start:012x}",
                "end": f"{part.region.span.end:012x}",
                "perms": str(part.region.mapping.access),
                "path": part.region.mapping.path.decode(errors="backslashreplace"),
                "state": part.fate.value,
                **({"reason": part.reason} if part.reason else {}),
            }
            for part in frozen.parts
        ],
    }
    return json.dumps(info, indent=1).encode() + b"\n"
