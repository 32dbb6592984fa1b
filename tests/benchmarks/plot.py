"""Draws results as SVG: throughput by read size, and by the number of readers. Text only, no library.

A plot brings its own paper in two colours and takes the one that its reader prefers, so it can be read on
any page. It is not colour alone that tells who is who: each has a mark of its own, and its name at the end of
its line. The description says the figures, for who does not see them.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from html import escape

import attrs
from results import OURS, Measured, Result

_WIDTH, _HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 176, 76, 62
_WIDE, _HIGH = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_LABEL_HEIGHT = 18
_MOST_MARKS = 6
_STEPS = (1, 2, 5)

_PAPER = ("#ffffff", "#131416")
_INK = ("#1f2328", "#e6edf3")
_GRID = ("#d8dee4", "#3d444d")
_ROUND = "m-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z"
_SQUARE = "m-4,-4h8v8h-8z"
_DIAMOND = "m0,-5.5l5.5,5.5l-5.5,5.5l-5.5,-5.5z"
_UP = "m0,-5.5l5,9h-10z"
_DOWN = "m0,5.5l5,-9h-10z"


@attrs.frozen
class _Look:
    """How a contender is drawn, in all plots.

    Attributes:
        colours: on white paper, and on black.
        mark: a path around its point.
    """

    colours: tuple[str, str]
    mark: str


_LOOKS = {
    OURS: _Look(("#0b6e4f", "#4fc48f"), _ROUND),
    "/proc/PID/mem": _Look(("#b5400c", "#ff9b6a"), _SQUARE),
    "pyfuse3": _Look(("#59636e", "#a9b4c0"), _DIAMOND),
    "process_vm_readv": _Look(("#856000", "#e0b84a"), _UP),
    "one reader": _Look(("#2f64b0", "#7fb0f5"), _DOWN),
}
_OTHER = _Look(_INK, _ROUND)

_BLOCK = re.compile(r"^private, dd bs=(\d+)([KM])$")
_KIB = {"K": 1, "M": 1024}
_READERS = re.compile(r"^(\d+) readers of one process,")


@attrs.frozen
class _Column:
    """What was measured at one place of the horizontal axis, which is logarithmic."""

    place: int
    label: str
    row: Measured


def by_read_size(results: Sequence[Result]) -> str | None:
    """Private memory, dd by block size; None where no such row was measured."""
    columns = [
        _Column(int(match[1]) * _KIB[match[2]], f"{match[1]} {match[2]}iB", row)
        for match, row in _found(results, _BLOCK)
    ]
    return _draw("Private memory, dd to /dev/null, by size of read", "size of a read", columns)


def by_readers(results: Sequence[Result]) -> str | None:
    """Several readers of one process, in all; None where no such row was measured."""
    columns = [_Column(int(match[1]), match[1], row) for match, row in _found(results, _READERS)]
    return _draw("Several dd bs=1M of one process at once, all together", "how many at once", columns)


def _found(results: Sequence[Result], pattern: re.Pattern[str]) -> list[tuple[re.Match[str], Measured]]:
    return [
        (match, result)
        for result in results
        if isinstance(result, Measured) and (match := pattern.search(result.row))
    ]


@attrs.frozen
class _Axes:
    """Where things are on the paper.

    Attributes:
        columns: from left to right.
        marks: the speeds that the vertical axis names, from 0.
    """

    columns: Sequence[_Column]
    marks: Sequence[float]

    def across(self, column: _Column) -> float:
        """The horizontal place of what was measured there."""
        first, place, last = (math.log2(each.place) for each in (self.columns[0], column, self.columns[-1]))
        return _LEFT + (_WIDE * (place - first) / (last - first) if last > first else 0)

    def up(self, speed: float) -> float:
        """The height of a speed, counted downwards as SVG does."""
        return _TOP + _HIGH * (1 - speed / self.marks[-1])

    def points(self, name: str) -> list[tuple[float, float]]:
        """Where a contender's speeds are."""
        return [
            (self.across(column), self.up(column.row.speed(name)))
            for column in self.columns
            if name in column.row.samples
        ]

    def drawn(self) -> Iterator[str]:
        """The grid, and what stands at its sides."""
        for mark in self.marks:
            yield f'<path class="grid" d="M{_LEFT},{self.up(mark):.1f}h{_WIDE}"/>'
            yield _text(_LEFT - 10, self.up(mark) + 4.5, f"{mark / 1e9:g}", "end", 'class="mark"')
        for column in self.columns:
            across = self.across(column)
            yield f'<path class="grid" d="M{across:.1f},{_TOP + _HIGH}v6"/>'
            yield _text(across, _TOP + _HIGH + 24, column.label, "middle", 'class="column"')


def _draw(title: str, axis: str, columns: list[_Column]) -> str | None:
    if not columns:
        return None
    columns = sorted(columns, key=lambda column: column.place)
    names = list(dict.fromkeys(itertools.chain.from_iterable(column.row.samples for column in columns)))
    axes = _Axes(
        columns, _scale(max(column.row.speed(name) for column in columns for name in column.row.samples))
    )
    points = {name: axes.points(name) for name in names}
    heights = _spread({name: each[-1][1] for name, each in points.items()}, _TOP + _HIGH)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="13" role="img" '
        'aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(_in_words(names, axis, columns))}</desc>',
        f"<style>{_style(names)}</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>',
        _text(16, 28, title, "start", 'font-size="15" font-weight="600"'),
        _text(16, _TOP - 20, "GB/s, the median of all rounds; more is better", "start"),
        _text(_LEFT + _WIDE / 2, _HEIGHT - 14, axis, "middle"),
        *axes.drawn(),
    ]
    for name in sorted(names, key=OURS.__eq__):  # ours lies over the others
        lines += _series(name, points[name], heights[name])
    return "\n".join([*lines, "</svg>"]) + "\n"


def _scale(fastest: float) -> list[float]:
    """From 0 in equal, round steps to at least *fastest*: few enough to be told apart."""
    step = next(
        float(digit * 10**power)
        for power, digit in itertools.product(range(15), _STEPS)
        if fastest <= digit * 10**power * _MOST_MARKS
    )
    return [step * number for number in range(math.ceil(fastest / step) + 1)]


def _spread(wanted: dict[str, float], lowest: float) -> dict[str, float]:
    """Heights for labels near those *wanted*: none over another, none below *lowest*."""
    placed: dict[str, float] = {}
    at = -math.inf
    for name in sorted(wanted, key=wanted.__getitem__):
        at = placed[name] = max(wanted[name], at + _LABEL_HEIGHT)
    limit = lowest
    for name in reversed(placed):
        placed[name] = min(placed[name], limit)
        limit = placed[name] - _LABEL_HEIGHT
    return placed


def _series(name: str, points: list[tuple[float, float]], label_height: float) -> list[str]:
    corners = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
    mark = _LOOKS.get(name, _OTHER).mark
    marks = "".join(f"M{across:.1f},{up:.1f}{mark}" for across, up in points)
    across, up = points[-1]
    beside = _LEFT + _WIDE + 26
    return [
        f'<g class="series {_class(name)}">',
        f'<polyline points="{corners}"/>',
        f'<path class="leader" d="M{across + 8:.1f},{up:.1f}L{beside - 6:.1f},{label_height:.1f}"/>',
        f'<path class="marks" d="{marks}"/>',
        _text(beside, label_height + 4.5, name, "start"),
        "</g>",
    ]


def _style(names: Sequence[str]) -> str:
    rules = [
        "text{fill:currentColor}.grid{stroke:currentColor}.paper{fill:currentColor}",
        ".series polyline{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}",
        ".series .marks{fill:currentColor}.series .leader{stroke:currentColor;opacity:.5}",
    ]
    for place, query in enumerate(("", "@media(prefers-color-scheme:dark)")):
        colours = {"svg": _INK, ".grid": _GRID, ".paper": _PAPER}
        colours |= {f".{_class(name)}": _LOOKS.get(name, _OTHER).colours for name in names}
        block = "".join(f"{who}{{color:{pair[place]}}}" for who, pair in colours.items())
        rules.append(f"{query}{{{block}}}" if query else block)
    return "".join(rules)


def _class(name: str) -> str:
    return "of-" + re.sub(r"\W+", "-", name).strip("-")


def _in_words(names: Sequence[str], axis: str, columns: Sequence[_Column]) -> str:
    sentences = []
    for name in names:
        figures = [
            f"{column.label}: {column.row.unit.format(column.row.speed(name))}"
            for column in columns
            if name in column.row.samples
        ]
        sentences.append(f"{name}: {', '.join(figures)}.")
    return f"By {axis}. {' '.join(sentences)}"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
