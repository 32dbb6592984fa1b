"""Compares two result files of run.py, row by row. Values and text only.

What is compared is the ratio to each peer: two runs differ by the machine's mood, and a ratio has it out.
Where a row has no peer, its speeds are compared.
"""

import json
import re
from pathlib import Path

import attrs
from results import OURS

_TOLERANCE = 0.25


@attrs.frozen
class Change:
    """One ratio, before and after; None where one of the runs does not have it."""

    what: str
    before: float | None
    after: float | None

    @property
    def factor(self) -> float | None:
        """How many times as good it is now."""
        return self.after / self.before if self.before and self.after is not None else None

    @property
    def is_worse(self) -> bool:
        """Whether something was lost: more than varies by itself, or the whole row."""
        return self.after is None or (self.factor is not None and self.factor < 1 - _TOLERANCE)

    def __str__(self) -> str:
        shown = ["-" if value is None else f"{value:.3g}" for value in (self.before, self.after)]
        factor = "" if self.factor is None else f"{self.factor:.2f}x"
        return f"{self.what:<72} {shown[0]:>9} {shown[1]:>9} {factor:>7}{'  WORSE' if self.is_worse else ''}"


def compare(before: Path, after: Path, only: re.Pattern[str] | None = None) -> list[Change]:
    """Every ratio of the two files, in the order of the first."""
    old, new = (_ratios(json.loads(path.read_text())) for path in (before, after))
    return [
        Change(what, old.get(what), new.get(what))
        for what in {**old, **new}
        if only is None or only.search(what)
    ]


def _ratios(document: dict[str, list[dict[str, dict[str, dict[str, float]]]]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in document["rows"]:
        contenders = row.get("contenders", {})
        peers = {name: each for name, each in contenders.items() if name != OURS}
        for name, each in peers.items():
            found[f"{row['row']}: of {name}"] = each["ratio"]
        if contenders and not peers:
            found[f"{row['row']}: per second"] = contenders[OURS]["median_speed"]
    return found
