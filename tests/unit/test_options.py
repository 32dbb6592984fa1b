"""Mount options: each is understood, or refused with a sentence."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.errors import BadOption
from memfs.fuse.options import MountOptions, SpliceMode, parse_options


def test_nothing_said_is_the_default() -> None:
    assert parse_options([]) == parse_options(["", ","]) == MountOptions()


def test_options_come_from_every_list() -> None:
    parsed = parse_options(["splice=off,log=/var/log/memfs", "low_latency=off"])
    assert parsed == MountOptions(SpliceMode.OFF, Path("/var/log/memfs"), low_latency=False)


def test_a_log_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_options(["log=here"]).log_file == tmp_path / "here"


def test_saying_the_same_twice_is_no_contradiction() -> None:
    assert parse_options(["splice=on", "splice=on"]).splice is SpliceMode.ON


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("3K", 3072),
        ("64M", 67_108_864),
        ("2G", 2_147_483_648),
        ("1T", 1_099_511_627_776),
    ],
)
def test_a_size_is_a_number_of_bytes_or_of_larger_units(text: str, size_bytes: int) -> None:
    assert parse_options([f"snapshot_copy={text}"]).snapshot_copy_bytes == size_bytes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("frobnicate", "frobnicate"),
        ("splice", "splice=auto|on|off"),
        ("splice=", "splice=auto|on|off"),
        ("splice=maybe", "splice=auto|on|off"),
        ("low_latency=on", "low_latency=auto|off"),
        ("log", "log=FILE"),
        ("log=", "log=FILE"),
        ("splice=on,splice=off", "contradict"),
        ("log=a,log=b", "contradict"),
        *((f"snapshot_copy={size}", "snapshot_copy=SIZE") for size in ("", "1.5G", "-1", "1g", "64MiB", "M")),
        ("snapshot_fallback=on", "snapshot_fallback=copy|off"),
        ("core=half", "core=full|filtered"),
        ("allow_other", "every user"),
        ("allow_root", "every user"),
        ("splice=on,allow_other", "every user"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_hint(text: str, named: str) -> None:
    with pytest.raises(BadOption) as refused:
        parse_options([text])
    assert named in str(refused.value)
    assert refused.value.hint


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_options_or_a_bad_option(texts: list[str]) -> None:
    with contextlib.suppress(BadOption):
        assert isinstance(parse_options(texts), MountOptions)
