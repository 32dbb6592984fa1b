"""The plots of the benchmark: SVG that shows each contender where it was measured, to everyone."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import attrs
import pytest
from plot import by_read_size, by_readers
from results import Failed, Measured, Result, Sample, Unit

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]


def row(name: str, **gigabytes_per_second: float) -> Measured:
    """A row with one sample of each contender."""
    samples = {who: [Sample(1, int(1e9 * rate))] for who, rate in gigabytes_per_second.items()}
    return Measured(name, Unit.RATE, samples, ())


SIZES = (
    row("private, dd bs=1M", memfs=6, pyfuse3=4, kernel=7.5),
    row("private, dd bs=4K", memfs=0.5, pyfuse3=0.25, kernel=3),
    Failed("private, dd bs=128K", "why ever"),
    row("private, dd bs=16K", memfs=2, pyfuse3=0.25, kernel=5),
    row("private, dd bs=1M direct", memfs=1, pyfuse3=1, kernel=1),
    row("shared, dd bs=64K", memfs=12, pyfuse3=1, kernel=5),
)
READERS = (
    *(
        row(f"{count} readers of one process, dd bs=1M", memfs=count / 32, pyfuse3=0.25)
        for count in (1, 2, 4, 8, 16)
    ),
    row("2 readers of as many processes, dd bs=1M", memfs=40, pyfuse3=40),
)


@attrs.frozen
class Plot:
    """What the elements of a plot say."""

    root: ElementTree.Element

    def texts(self, kind: str) -> dict[str, Point]:
        """The labels of a class, and where they are."""
        return {
            text.text or "": (float(text.attrib["x"]), float(text.attrib["y"]))
            for text in self.root.iter(f"{SVG}text")
            if text.get("class") == kind
        }

    def series(self) -> dict[str, list[Point]]:
        """The points of each line, by the label in its group."""
        found = {}
        for group in self.root.iter(f"{SVG}g"):
            (line,), (label,) = group.findall(f"{SVG}polyline"), group.findall(f"{SVG}text")
            points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
            found[label.text or ""] = [(x, y) for x, y in points]
        return found

    def speeds(self, name: str) -> list[float]:
        """What a reader takes from the vertical axis for each point, in GB/s."""
        marks = {float(mark): height for mark, (_, height) in self.texts("mark").items()}
        lines = [
            float(path.attrib["d"].partition(",")[2].partition("h")[0])
            for path in self.root.iter(f"{SVG}path")
            if "h" in path.attrib["d"] and path.get("class") == "grid"
        ]
        assert len(lines) == len(marks)
        bottom, top = max(lines), min(lines)
        return [max(marks) * (bottom - y) / (bottom - top) for _, y in self.series()[name]]


def parse(drawn: str | None) -> Plot:
    """A plot that there is."""
    assert drawn is not None
    return Plot(ElementTree.fromstring(drawn))


@pytest.mark.parametrize(("draw", "results"), [(by_read_size, SIZES), (by_readers, READERS)])
def test_a_plot_is_an_image_with_a_title_and_its_figures_in_words(
    draw: Callable[[Sequence[Result]], str | None], results: Sequence[Result]
) -> None:
    plot = parse(draw(results))
    assert plot.root.tag == f"{SVG}svg"
    assert plot.root.attrib["role"] == "img"
    named = {element.get("id"): element for element in plot.root if element.get("id")}
    title, description = (named[each].text or "" for each in plot.root.attrib["aria-labelledby"].split())
    assert title in [text.text for text in plot.root.iter(f"{SVG}text")]
    assert re.search(r"memfs: .*pyfuse3: .*250 MB/s", description)
    assert plot.texts("mark")["0"]
    assert any("GB/s" in (text.text or "") for text in plot.root.iter(f"{SVG}text"))


def test_sizes_of_reads_lie_in_order_and_as_far_apart_as_they_are_times_as_large() -> None:
    plot = parse(by_read_size(SIZES))
    places = {label: x for label, (x, _) in plot.texts("column").items()}
    assert list(places) == ["4 KiB", "16 KiB", "1 MiB"]
    small, middle, large = places.values()
    assert small < middle < large
    assert (middle - small) / (large - small) == pytest.approx(2 / 8, abs=0.0005)
    assert set(plot.series()) == {"memfs", "pyfuse3", "kernel"}
    for points in plot.series().values():
        assert [x for x, _ in points] == list(places.values())


def test_each_doubling_of_the_readers_is_one_step() -> None:
    plot = parse(by_readers(READERS))
    places = {label: x for label, (x, _) in plot.texts("column").items()}
    assert list(places) == ["1", "2", "4", "8", "16"]
    xs = list(places.values())
    assert [after - before for before, after in itertools.pairwise(xs)] == pytest.approx(
        [(xs[-1] - xs[0]) / 4] * 4, abs=0.2
    )


def test_a_point_is_as_high_as_its_speed() -> None:
    plot = parse(by_read_size(SIZES))
    assert plot.speeds("memfs") == pytest.approx([0.5, 2, 6], abs=0.01)
    assert plot.speeds("pyfuse3") == pytest.approx([0.25, 0.25, 4], abs=0.01)
    assert plot.speeds("kernel") == pytest.approx([3, 5, 7.5], abs=0.01)
    assert list(plot.texts("mark")) == ["0", "2", "4", "6", "8"]


def test_slow_readers_get_an_axis_of_their_own() -> None:
    plot = parse(by_readers(READERS))
    assert list(plot.texts("mark")) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert plot.speeds("memfs") == pytest.approx([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], abs=0.001)


@pytest.mark.parametrize("level", [0, 5, 10])
def test_labels_of_contenders_that_are_level_stand_apart_and_on_the_paper(level: float) -> None:
    alike = {f"peer{number}": level + 0.01 * number for number in range(6)}
    plot = parse(by_read_size([row(f"private, dd bs={size}", memfs=10, **alike) for size in ("4K", "1M")]))
    heights = sorted(
        float(text.attrib["y"]) for group in plot.root.iter(f"{SVG}g") for text in group.iter(f"{SVG}text")
    )
    assert len(heights) == 7
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 13
    assert heights[-1] < float(plot.root.attrib["height"])
    (unit,) = (text for text in plot.root.iter(f"{SVG}text") if (text.text or "").startswith("GB/s"))
    assert heights[0] > float(unit.attrib["y"]) + 13


def _luminance(colour: str) -> float:
    """The relative luminance of WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_everything_written_can_be_read_on_white_and_on_black(dark: bool) -> None:
    contenders = (
        "memfs",
        "/proc/PID/mem",
        "pyfuse3",
        "process_vm_readv",
        "one reader",
        "someone else",
    )
    plot = parse(by_readers([row("1 readers of one process, dd bs=1M", **dict.fromkeys(contenders, 1.0))]))
    (style,) = plot.root.findall(f"{SVG}style")
    light_rules, _, dark_rules = (style.text or "").partition("@media(prefers-color-scheme:dark)")
    colours = dict(re.findall(r"([.\w-]+)\{color:(#[0-9a-f]{6})\}", dark_rules if dark else light_rules))
    paper = colours.pop(".paper")
    assert (_luminance(paper) < 0.1) is dark
    classes = {f".{group.attrib['class'].split()[1]}" for group in plot.root.iter(f"{SVG}g")}
    assert len(classes) == len(contenders)
    assert {"svg", *classes} == set(colours) - {".grid"}
    del colours[".grid"]
    assert {who for who, colour in colours.items() if _contrast(colour, paper) < 4.5} == set()
    assert math.isclose(_contrast("#000000", "#ffffff"), 21)


def test_where_nothing_was_measured_nothing_is_drawn() -> None:
    assert by_read_size(READERS) is None
    assert by_readers([Failed("1 readers of one process, dd bs=1M", "why ever")]) is None


def test_one_column_is_a_plot_too_and_a_name_is_text_whatever_is_in_it() -> None:
    plot = parse(by_read_size([row("private, dd bs=4K", **{"memfs": 1.0, "a<b>&c": 2.0})]))
    assert plot.speeds("a<b>&c") == pytest.approx([2], abs=0.01)
