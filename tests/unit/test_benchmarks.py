"""What the benchmark makes of its samples: medians, verdicts, tables, and two runs compared."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import results
from compare import Change, NotResultsError, compare
from report import as_json, as_tables, summary
from results import AtLeast, AtMost, Exactly, Failed, Measured, Sample, Unit, Within

RUN = Path(results.__file__).with_name("run.py")


def rates(*gigabytes_per_second: float) -> list[Sample]:
    """Samples of a gigabyte each."""
    return [Sample(1 / rate, 10**9) for rate in gigabytes_per_second]


def times(*seconds: float) -> list[Sample]:
    """Samples of one run each."""
    return [Sample(each) for each in seconds]


# Medians, ratios, verdicts


def test_the_speed_is_the_median_of_the_samples_and_not_their_mean() -> None:
    row = Measured("a row", Unit.RATE, {"memfs": rates(2, 10, 4), "odd": rates(1, 9), "one": rates(8)}, ())
    assert {name: row.speed(name) for name in row.samples} == pytest.approx(
        {"memfs": 4e9, "odd": 5e9, "one": 8e9}
    )
    assert row.ratio("one") == pytest.approx(0.5)
    assert row.ratio("odd") == pytest.approx(0.8)
    assert row.peers == ("odd", "one")


def test_a_ratio_of_times_is_how_many_times_as_fast_we_are() -> None:
    row = Measured("a row", Unit.TIME, {"memfs": times(0.5), "slow": times(2), "fast": times(0.1)}, ())
    assert (row.ratio("slow"), row.ratio("fast")) == pytest.approx((4, 0.2))


@pytest.mark.parametrize(
    ("unit", "speed", "shown"),
    [
        (Unit.RATE, 2_345_000_000, "2.35 GB/s"),
        (Unit.RATE, 1_000_000_000, "1.00 GB/s"),
        (Unit.RATE, 999_000_000, "999 MB/s"),
        (Unit.TIME, 0.0625, "16000 ms"),
        (Unit.TIME, 8, "125 ms"),
        (Unit.TIME, 4000, "0.2500 ms"),
    ],
)
def test_a_speed_is_shown_in_its_unit(unit: Unit, speed: float, shown: str) -> None:
    assert unit.format(speed) == shown


def test_a_requirement_is_met_up_to_its_very_bound() -> None:
    half = Measured("a row", Unit.TIME, {"memfs": times(4), "peer": times(2)}, ())
    assert AtLeast("peer", 0.5).met(half)
    assert not AtLeast("peer", 0.51).met(half)
    assert AtMost("peer", 2).met(half)
    assert not AtMost("peer", 1.9).met(half)
    assert Within(4).met(half)
    assert not Within(3.9).met(half)


def test_a_fact_must_be_seen_in_every_sample() -> None:
    samples = [Sample(1, facts={"bytes_on_disk": size}) for size in (4096, 4096, 8192)]
    always, once = (Measured("a row", Unit.TIME, {"memfs": each}, ()) for each in (samples[:2], samples))
    required = Exactly("bytes_on_disk", 4096)
    assert required.met(always)
    assert not required.met(once)
    assert not Exactly("bytes_read", 4096).met(always)
    assert str(required) == "bytes on disk = 4,096"


# Tables

ROWS = (
    Measured(
        "large",
        Unit.RATE,
        {"memfs": rates(6, 6.5, 7), "kernel": rates(5.2), "pyfuse3": rates(6.5 / 1.2)},
        (AtLeast("kernel", 0.7), AtLeast("pyfuse3", 1.3)),
    ),
    Measured("small", Unit.RATE, {"memfs": rates(0.05), "kernel": rates(2), "pyfuse3": rates(0.1)}, ()),
    Failed("broken", "there is no zstd here"),
    Measured("names", Unit.TIME, {"memfs": times(0.7, 0.9, 0.8)}, (Within(1.0),)),
)


def cells(line: str) -> list[str]:
    """What stands between the bars of a line."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_with_the_same_contenders_share_a_table_and_failures_stand_below() -> None:
    large, names, failure = (block.splitlines() for block in as_tables(ROWS).split("\n\n"))
    assert [cells(line) for line in large[::2]] == [
        ["row", "memfs", "kernel", "ratio", "pyfuse3", "ratio", "required"],
        ["large", "6.50 GB/s", "5.20 GB/s", "1.25", "5.42 GB/s", "1.20",
         "≥ 0.7 of kernel ok, ≥ 1.3 of pyfuse3 MISS"],
    ]  # fmt: skip
    assert cells(large[3]) == ["small", "50 MB/s", "2.00 GB/s", "0.025", "100 MB/s", "0.50", ""]
    assert [cells(names[0]), *map(cells, names[2:])] == [
        ["row", "memfs", "required"],
        ["names", "800 ms", "≤ 1 s ok"],
    ]
    assert failure == ["FAILED broken: there is no zstd here"]


def test_a_table_is_markdown_that_is_in_line_as_text_too() -> None:
    for table in as_tables(ROWS).split("\n\n")[:2]:
        head, rule, *rows = table.splitlines()
        assert {len(line) for line in (head, rule, *rows)} == {len(head)}
        flush_left, *figures, last = cells(rule)
        assert {*flush_left, *last} == {"-"}
        assert figures
        assert all(re.fullmatch("-+:", figure) for figure in figures)
        assert all(cell[-2] != " " for line in (head, *rows) for cell in line.split("|")[2:-2])


def test_the_summary_counts_rows_failures_and_what_was_missed() -> None:
    assert summary(ROWS) == "4 rows, 1 failed; 3 requirements, 1 missed"


# Two runs compared


def written(path: Path, *rows: Measured | Failed) -> Path:
    """A file as ``run.py --json`` writes it, as far as it matters here."""
    path.write_text(json.dumps({"rows": [as_json(row) for row in rows]}))
    return path


def row(name: str, ours: float, **peers: float) -> Measured:
    """A row with one sample, in GB/s, of each contender."""
    return Measured(
        name, Unit.RATE, {"memfs": rates(ours), **{peer: rates(speed) for peer, speed in peers.items()}}, ()
    )


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """Before: ratios of 1; and after."""
    before = written(
        tmp_path / "before",
        row("same", 2, kernel=2),
        row("other machine", 2, kernel=2),
        row("lost", 2, kernel=2, pyfuse3=2),
        row("won", 2, kernel=2),
        row("alone", 2),
        row("fails now", 2, kernel=2),
        row("not run", 2, kernel=2),
    )
    after = written(
        tmp_path / "after",
        row("same", 1.6, kernel=2),
        row("other machine", 20, kernel=20),
        row("lost", 2, kernel=3, pyfuse3=2),
        row("won", 4, kernel=2),
        row("alone", 1),
        Failed("fails now", "why ever"),
        row("more", 2, kernel=2),
    )
    return before, after


def test_two_runs_are_compared_by_the_ratios_of_each_row(two_runs: tuple[Path, Path]) -> None:
    changes = compare(*two_runs)
    assert [(change.what, change.verdict, change.is_worse) for change in changes] == [
        ("same: of kernel", "", False),
        ("other machine: of kernel", "", False),
        ("lost: of kernel", "WORSE", True),
        ("lost: of pyfuse3", "", False),
        ("won: of kernel", "better", False),
        ("alone: per second", "WORSE", True),
        ("fails now: of kernel", "MISSING", True),
        ("not run: of kernel", "MISSING", True),
        ("more: of kernel", "new", False),
    ]
    factors = {change.what: change.factor for change in changes}
    assert [factors[f"{name}: of kernel"] for name in ("same", "lost", "won")] == pytest.approx(
        [0.8, 2 / 3, 2]
    )
    assert factors["not run: of kernel"] is factors["more: of kernel"] is None


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1.0, 0.5, "1 0.5 0.50x WORSE"),
        (2.0, 3.0, "2 3 1.50x better"),
        (4.0, 3.0, "4 3 0.75x"),
        (0.125, None, "0.125 - MISSING"),
        (None, 0.125, "- 0.125 new"),
    ],
)
def test_a_change_is_one_line(before: float | None, after: float | None, words: str) -> None:
    assert str(Change("a row: of kernel", before, after)).split() == [
        "a",
        "row:",
        "of",
        "kernel",
        *words.split(),
    ]


def _check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN, "--check", *arguments], capture_output=True, text=True, check=False
    )


def test_the_status_says_whether_anything_was_lost(two_runs: tuple[Path, Path]) -> None:
    before, after = two_runs
    worse = _check(before, after)
    assert (worse.returncode, worse.stderr) == (1, "")
    assert worse.stdout.splitlines()[-1] == "9 ratios, 4 worse"
    some = _check(before, after, "--only", "^(same|won|more)")
    assert (some.returncode, some.stderr) == (0, "")
    assert some.stdout.splitlines()[-1] == "3 ratios, 0 worse"
    assert _check(before, before).returncode == 0


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"rows": [{"contenders": {"memfs": 1}}]}'])
def test_what_are_no_results_is_one_sentence(content: str | None, tmp_path: Path) -> None:
    good, other = written(tmp_path / "good", row("same", 2, kernel=2)), tmp_path / "other"
    if content is not None:
        other.write_text(content)
    with pytest.raises(NotResultsError, match=re.escape(str(other))):
        compare(good, other)
    if content is None:
        done = _check(good, other)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"run.py: {other}: No such file or directory\n"
