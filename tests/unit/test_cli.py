"""The command line: whatever is wrong is one line on stderr and status 1 or 2, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memfs import __version__
from memfs.cli.main import run


def complaint(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``memfs`` says of *arguments*, which must be one line and end with *status*."""
    assert run(arguments) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("memfs: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["mount"], "MOUNTPOINT"),
        (["mount", "a", "b"], "b"),
        (["mount", "--frobnicate", "/tmp"], "--frobnicate"),
        (["mount", "-o"], "-o"),
        (["mount", "-o", "frobnicate", "/tmp"], "frobnicate"),
        (["mount", "-o", "splice=perhaps", "/tmp"], "splice=auto|on|off"),
        (["mount", "-o", "splice=on,splice=off", "/tmp"], "contradict"),
        (["mount", "-o", "splice=on", "-o", "splice=off", "/tmp"], "contradict"),
        (["mount", "-o", "allow_other", "/tmp"], "every user"),
        (["umount"], "MOUNTPOINT"),
        (["umount", "a", "b"], "b"),
        (["doctor", "surplus"], "surplus"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in complaint(arguments, 2, capsys)


def test_a_mount_point_that_cannot_be_used_is_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases = {
        tmp_path / "missing": "mkdir",
        tmp_path / "file": "not a directory",
        tmp_path / "file" / "below": "there is no",
        tmp_path: "not empty",
        tmp_path / ("n" * 300): "cannot be used",
        loop: str(loop),
    }
    for mountpoint, named in cases.items():
        assert named in complaint(["mount", str(mountpoint)], 1, capsys)


def test_a_log_that_cannot_be_written_is_told_before_anything_is_mounted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for options in (["-f"], []):
        log = tmp_path / "missing" / "log"
        said = complaint(["mount", *options, "-o", f"log={log}", str(place)], 1, capsys)
        assert str(log) in said


def test_what_is_no_memfs_is_not_unmounted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is mounted" in complaint(["umount", str(tmp_path)], 1, capsys)
    assert "nothing is mounted" in complaint(["umount", str(tmp_path / "missing")], 1, capsys)
    assert "not of memfs" in complaint(["umount", "/proc"], 1, capsys)
    assert Path("/proc/self/stat").exists()


def test_a_name_that_is_no_text_is_told_too(tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/\xff\xfe \n name"
    for command in ("mount", "umount"):
        code = "import sys; from memfs.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, command, name], capture_output=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith(b"memfs: ")
        assert done.stderr.count(b"\n") == 1


def test_help_and_version_go_to_stdout_and_end_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"memfs {__version__}\n"
    for arguments in (["--help"], ["mount", "--help"], ["umount", "-h"], ["doctor", "--help"]):
        assert run(arguments) == 0
        said = capsys.readouterr()
        assert "Usage: memfs" in said.out
        assert said.err == ""


def test_no_command_is_help_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Usage: memfs" in said.err


def test_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) in (0, 1)
    assert isinstance(json.loads(capsys.readouterr().out), list)
