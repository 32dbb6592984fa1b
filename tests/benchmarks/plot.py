"""Draws results as SVG: throughput by read size, and by the number of readers. Text only, no library."""

import itertools
import re
from collections.abc import Sequence
from html import escape

from results import Measured, Result

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 170, 40, 50
_COLOURS = {
    "memfs": "#0b6e4f", "/proc/PID/mem": "#c1440e", "pyfuse3": "#6b7a8f",
    "process_vm_readv": "#b8860b", "one after another": "#7fb69e",
}  # fmt: skip
_GRID, _INK = "#dddddd", "#333333"

_BLOCK = re.compile(r"private, dd bs=(\d+)([KM])$")
_READERS = re.compile(r"(\d+) readers of one process")


def by_read_size(results: Sequence[Result]) -> str | None:
    """Private memory, dd by block size; None where no such row was measured."""
    return _draw("Private memory by size of read", "read size", _points(results, _BLOCK))


def by_readers(results: Sequence[Result]) -> str | None:
    """Several readers of one process, in all; None where no such row was measured."""
    return _draw("Readers at once, in all (dd bs=1M)", "readers", _points(results, _READERS))


def _points(results: Sequence[Result], pattern: re.Pattern[str]) -> dict[str, Measured]:
    found = {}
    for result in results:
        match = pattern.search(result.row)
        if match is not None and isinstance(result, Measured):
            found["".join(match.groups())] = result
    return found


def _draw(title: str, axis: str, rows: dict[str, Measured]) -> str | None:
    if not rows:
        return None
    names = list(dict.fromkeys(itertools.chain.from_iterable(row.samples for row in rows.values())))
    top = -(-max(row.speed(name) for row in rows.values() for name in row.samples) // 1e9)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    step = width / max(1, len(rows) - 1)

    def x(place: int) -> float:
        return _LEFT + place * step

    def y(speed: float) -> float:
        return _TOP + height * (1 - speed / 1e9 / top)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 24, title, "start"),
        _text(_LEFT - 8, _TOP - 10, "GB/s", "end"),
        _text(_LEFT + width / 2, _HEIGHT - 12, axis, "middle"),
    ]
    for mark in range(int(top) + 1):
        height_of = y(mark * 1e9)
        lines.append(f'<path d="M{_LEFT} {height_of:.1f}h{width}" stroke="{_GRID}"/>')
        lines.append(_text(_LEFT - 8, height_of + 4, str(mark), "end"))
    lines += [_text(x(place), _HEIGHT - _BOTTOM + 20, label, "middle") for place, label in enumerate(rows)]
    last_label = -1e9
    ends = sorted(names, key=lambda name: y(list(rows.values())[-1].speed(name)))
    for name in ends:
        points = [(x(place), y(row.speed(name))) for place, row in enumerate(rows.values())]
        colour = _COLOURS.get(name, _INK)
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        lines += [
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.5" fill="{colour}"/>' for across, up in points
        ]
        last_label = max(last_label + 16, points[-1][1] + 4)
        lines.append(_text(x(len(rows) - 1) + 10, last_label, name, "start", colour))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
