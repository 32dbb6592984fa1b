"""The documents are true: they build, their examples run, and nothing that can be said is left out."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import console

DOCUMENTS = (console.PROJECT / "README.md", *sorted((console.PROJECT / "docs").glob("*.md")))
MEMFS = str(Path(sys.executable).with_name("memfs"))
_WITH_EXAMPLES = [path for path in DOCUMENTS if "```console" in path.read_text()]
_TROUBLESHOOTING = (console.PROJECT / "docs/troubleshooting.md").read_text()
_COMMANDS = (console.PROJECT / "docs/commands.md").read_text()


def _output(*argv: str) -> str:
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=wide)
    return done.stdout + done.stderr


@pytest.mark.parametrize("builder", ["html", "man"])
def test_the_documents_build_without_a_warning(builder: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", builder,
         "-d", tmp_path / "trees", console.PROJECT / "docs", tmp_path / "built"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "built" / {"html": "index.html", "man": "memfs.1"}[builder]).exists()


@pytest.mark.parametrize("document", _WITH_EXAMPLES, ids=lambda path: path.name)
def test_the_examples_print_what_is_shown(document: Path) -> None:
    if reason := console.why_impossible():
        pytest.skip(reason)
    wrong = [str(outcome) for outcome in console.run(document) if not outcome.as_told]
    assert not wrong, "\n".join([*wrong, f"mend it, or run: {console.__file__} --update {document}"])


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", DOCUMENTS[0].read_text())
    assert links
    assert [link for link in links if not (console.PROJECT / link).exists()] == []


def _commands() -> list[str]:
    return re.findall(r"^  ([a-z]+)  ", _output(MEMFS, "--help").partition("Commands:")[2], re.MULTILINE)


def test_every_command_and_every_flag_is_documented() -> None:
    assert _commands()
    for command in _commands():
        assert f"### memfs {command}\n" in _COMMANDS
        for flag in re.findall(r"^  (-{1,2}[a-z-]+)", _output(MEMFS, command, "--help"), re.MULTILINE):
            assert re.search(f"^`{flag}[` ]", _COMMANDS, re.MULTILINE) or flag in ("-h", "--help"), flag


def test_every_mount_option_is_documented() -> None:
    told = re.search(r"the options are (.*)", _output(MEMFS, "mount", "-o", "nonsense", "/"))
    assert told is not None
    for option in told[1].split(", "):
        assert f"`{option}`\n: " in _COMMANDS


_SPEAKERS = {
    "CannotMount", "BadOption", "AccessDenied", "Denial",
    "CannotFreeze", "TargetBusy", "TargetStuck", "TooMany", "CannotCopy", "NoRoom",
}  # fmt: skip
_LOUD = {"info", "warning", "error", "critical", "exception"}
_SOURCES = sorted((console.PROJECT / "memfs").rglob("*.py"))


def _texts(node: ast.expr) -> Iterator[str]:
    """What a message can be, with a NUL for each part that is only known when it is printed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[a-z]", "\0", node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value)


def _messages(source: Path) -> Iterator[str]:
    """The first sentence of all that a user can get to read from *source*."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and node.args:
            called = node.func
            speaks = isinstance(called, ast.Name) and called.id in _SPEAKERS
            logs = (
                isinstance(called, ast.Attribute)
                and called.attr in _LOUD
                and isinstance(called.value, ast.Name)
                and called.value.id == "log"
            )
            if speaks or logs:
                yield from _texts(node.args[0])


@pytest.mark.parametrize("source", _SOURCES, ids=lambda path: path.stem)
def test_every_message_is_explained(source: Path) -> None:
    missing = []
    for message in _messages(source):
        literal = message.strip("\0 :")
        form = r".+?".join(re.escape(part) for part in re.split("\0+", literal))
        if literal and not re.search(form, _TROUBLESHOOTING):
            missing.append(message.replace("\0", "…"))
    assert missing == [], "docs/troubleshooting.md has to explain these"
