"""Prints results as Markdown tables that are also easy to read as they are, and as JSON."""

import itertools
from collections.abc import Iterable, Sequence

import attrs
from results import OURS, Failed, Measured, Result


def as_tables(results: Sequence[Result]) -> str:
    """A table for each stretch of rows that have the same contenders; what failed stands below."""
    measured = [result for result in results if isinstance(result, Measured)]
    failed = [result for result in results if isinstance(result, Failed)]
    tables = [
        _table(peers, list(rows)) for peers, rows in itertools.groupby(measured, key=lambda row: row.peers)
    ]
    return "\n\n".join(tables + [f"FAILED {result.row}: {result.reason}" for result in failed])


def _table(peers: Sequence[str], rows: Sequence[Measured]) -> str:
    head = ["row", OURS, *itertools.chain.from_iterable((peer, "ratio") for peer in peers), "required"]
    lines = [head, *(_cells(row) for row in rows)]
    return "\n".join(aligned(lines, left=(0, len(head) - 1)))


def _cells(row: Measured) -> list[str]:
    cells = [row.row, row.unit.format(row.speed(OURS))]
    for peer in row.peers:
        cells += [row.unit.format(row.speed(peer)), _ratio(row.ratio(peer))]
    return [*cells, ", ".join(f"{each} {_verdict(each.met(row))}" for each in row.required)]


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def _verdict(met: bool) -> str:
    return "ok" if met else "MISS"


def aligned(lines: Sequence[Sequence[str]], *, left: Sequence[int]) -> Iterable[str]:
    """A Markdown table, its head first; the columns *left* are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    yield line(lines[0])
    yield line(["-" * (width - 1) + ("-" if place in left else ":") for place, width in enumerate(widths)])
    yield from map(line, lines[1:])


def as_json(result: Result) -> dict[str, object]:
    """One row with every sample."""
    if isinstance(result, Failed):
        return attrs.asdict(result)
    return {
        "row": result.row,
        "unit": result.unit.value,
        "contenders": {
            name: {
                "median_speed": result.speed(name),
                "ratio": result.ratio(name),
                "samples": [attrs.asdict(sample) for sample in samples],
            }
            for name, samples in result.samples.items()
        },
        "required": [{"what": str(each), "met": each.met(result)} for each in result.required],
    }


def summary(results: Sequence[Result]) -> str:
    """One line: how many requirements are met."""
    verdicts = [
        each.met(result) for result in results if isinstance(result, Measured) for each in result.required
    ]
    failed = sum(isinstance(result, Failed) for result in results)
    return (
        f"{len(results)} rows, {failed} failed; {len(verdicts)} requirements, {verdicts.count(False)} missed"
    )
