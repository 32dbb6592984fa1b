"""Compares two result files of run.py, row by row. Values and text only.

What is compared is the ratio to each peer: two runs differ by the machine's mood, and a ratio has it out.
Where a row has no peer, its speeds are compared.
"""

import json
import re
from pathlib import Path

import attrs
from results import OURS

_LEAST = 0.75
"""What becomes of a ratio by itself from one run to the next, at the worst."""


class NotResultsError(Exception):
    """A file is not there, or is none that run.py has written."""


@attrs.frozen
class Change:
    """One ratio, before and after; None where one of the runs does not have it."""

    what: str
    before: float | None
    after: float | None

    @property
    def factor(self) -> float | None:
        """How many times as good it is now."""
        return None if self.before is None or self.after is None else self.after / self.before

    @property
    def verdict(self) -> str:
        """In a word, and in capitals where something was lost; none where it is as good as before."""
        if self.before is None:
            return "new"
        if self.factor is None:
            return "MISSING"
        if self.factor < _LEAST:
            return "WORSE"
        return "better" if self.factor > 1 / _LEAST else ""

    @property
    def is_worse(self) -> bool:
        """Whether something was lost: more than varies by itself, or the whole row."""
        return self.verdict.isupper()

    def __str__(self) -> str:
        shown = ["-" if value is None else f"{value:.3g}" for value in (self.before, self.after)]
        factor = "" if self.factor is None else f"{self.factor:.2f}x"
        return f"{self.what:<72} {shown[0]:>9} {shown[1]:>9} {factor:>7}  {self.verdict}".rstrip()


def compare(before: Path, after: Path, only: re.Pattern[str] | None = None) -> list[Change]:
    """Every ratio of the two files, in the order of the first.

    Raises:
        NotResultsError: one of them is none.
    """
    old, new = _read(before), _read(after)
    return [
        Change(what, old.get(what), new.get(what))
        for what in {**old, **new}
        if only is None or only.search(what)
    ]


def _read(path: Path) -> dict[str, float]:
    try:
        return _ratios(json.loads(path.read_text()))
    except OSError as error:
        raise NotResultsError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotResultsError(f"{path}: no results of run.py --json") from error


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
