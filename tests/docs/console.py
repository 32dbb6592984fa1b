"""Runs the examples of the documents again, and compares what they print with what the documents show.

    python tests/docs/console.py [--update] FILE.md...

In each block that is fenced as ``console``, a line after ``$ `` is a command (``> `` continues it), and the
lines below it are what it prints. ``...`` stands for anything in a line, and alone for any number of lines.
What no two runs have in common is left out of the comparison (see `_VARYING`), and other numbers may be off
by half. A command that shows no output must end with status 0. In ``<!-- console: COMMAND -->`` stands
a command that the reader does not see.

The blocks of a file are one session of bash, as root, in namespaces of its own: its processes, its mounts
and its network end with it, whatever happens. ``--update`` writes what was printed into each file in which
something differs.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

PROJECT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 30.0
_ANYTHING = "..."

_PREPARE = r"""
exec 2>&1
mount -t tmpfs -o size=2g tmpfs /mnt
mkdir /mnt/here
cd /mnt/here
ln -s "$PROJECT/examples" examples
python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP'
while IFS= read -r -d "" -u "$COMMANDS" command; do
    eval "$command"
    printf '\001%d\001' $?
done
"""

_UNSHARE = ("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "--mount-proc")

_VARYING = (
    (re.compile(r"\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d\b"), "<time>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?"), "<time>"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])"), "<address>"),
    (re.compile(r"(?<=copied, ).*"), "<speed>"),
    (re.compile(r"(?<=_us\": )\d+"), "<microseconds>"),
    (re.compile(r"(?<=flags=\").*(?=\")"), "<flags>"),
    (re.compile(r"\d+ -> \.\./\.\./\d+"), "<pid> -> ../../<pid>"),
    (re.compile(r"(?<=process )\d+|(?<=/proc/)\d+|(?<=/mnt/mem/)\d+|(?<=daemon=\")\d+"), "<pid>"),
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PART = re.compile(rf"(?P<any>{re.escape(_ANYTHING)})|(?P<number>{_NUMBER.pattern})|(?P<space>\s+)|.")
_MOST_OFF = 0.5


@attrs.frozen
class Command:
    """A command and the lines that the document shows below it; *first_line* and *end_line* are theirs."""

    text: str
    expected: tuple[str, ...]
    first_line: int
    end_line: int


class ConsoleError(Exception):
    """A session that does not go on."""


_HIDDEN = re.compile(r"<!-- console: (.*) -->")


def parse(lines: Sequence[str]) -> Iterator[Command]:
    """The commands of a document, in order."""
    inside = False
    text: list[str] = []
    shown: list[str] = []
    begin = 0
    for number, line in enumerate((*lines, "```"), start=1):
        ends = line.startswith(("```", "$ ")) if inside else True
        if text and ends:
            yield Command("\n".join(text), tuple(shown), begin, number - 1)
            text, shown = [], []
        if hidden := _HIDDEN.fullmatch(line):
            yield Command(hidden[1], (), number, number)
        elif line.startswith("```"):
            inside = not inside and line == "```console"
        elif inside and line.startswith("$ "):
            text, begin = [line[2:]], number
        elif inside and text and not shown and line.startswith("> "):
            text.append(line[2:])
        elif inside:
            shown.append(line)


def _plain(line: str) -> str:
    for pattern, name in _VARYING:
        line = pattern.sub(name, line)
    return line.rstrip()


def _line_matches(expected: str, actual: str) -> bool:
    expected = _plain(expected)
    forms = {"any": ".*", "number": f"({_NUMBER.pattern})", "space": r"\s+"}
    form = "".join(
        forms[part.lastgroup] if part.lastgroup else re.escape(part[0]) for part in _PART.finditer(expected)
    )
    found = re.fullmatch(form, _plain(actual))
    if found is None:
        return False
    numbers = (part[0] for part in _PART.finditer(expected) if part.lastgroup == "number")
    return all(
        abs(float(one) - float(other)) <= _MOST_OFF * float(one)
        for one, other in zip(numbers, found.groups(), strict=True)
    )


def matches(expected: Sequence[str], actual: Sequence[str]) -> bool:
    """Whether the lines *actual* are what *expected* describes."""
    if not expected:
        return not actual
    if expected[0].strip() == _ANYTHING:
        return any(matches(expected[1:], actual[start:]) for start in range(len(actual) + 1))
    return bool(actual) and _line_matches(expected[0], actual[0]) and matches(expected[1:], actual[1:])


@attrs.frozen
class Outcome:
    """What a command of a document did."""

    command: Command
    status: int
    actual: tuple[str, ...]

    @property
    def as_told(self) -> bool:
        """Whether the document tells just that."""
        failed = self.status != 0 and not self.command.expected
        return not failed and matches(self.command.expected, self.actual)

    def __str__(self) -> str:
        told = (f"    {line}" for line in (*self.command.expected, f"now it prints (status {self.status}):"))
        printed = (f"    {line}" for line in self.actual)
        return "\n".join((f"line {self.command.first_line}: $ {self.command.text}", *told, *printed))


def why_impossible() -> str:
    """Why no session can be had here, in a chroot or without root say; empty where it can."""
    done = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


class Session:
    """A bash in namespaces of its own, in an empty directory in which ``examples`` is."""

    def __init__(self) -> None:
        commands, self._commands = os.pipe()
        programs = Path(sys.executable).parent
        environment = {
            "COLUMNS": "80",
            "COMMANDS": str(commands),
            "HOME": "/root",
            "LC_ALL": "C",
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PROJECT": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._bash = subprocess.Popen(
            [*_UNSHARE, "bash", "--norc", "--noprofile", "-c", _PREPARE],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=[commands], env=environment,
        )  # fmt: skip
        os.close(commands)
        self._unread = b""

    def run(self, command: Command) -> Outcome:
        """Run *command*.

        The shell does not wait for what a command that ends in ``&`` prints: here it is waited for.
        """
        os.write(self._commands, command.text.encode() + b"\0")
        try:
            output, status = self._until(re.compile(rb"\x01(\d+)\x01"))
            if command.text.endswith("&"):
                while output.count(b"\n") < len(command.expected):
                    output += self._until(re.compile(rb"(\n)"))[0] + b"\n"
        except ConsoleError as error:
            raise ConsoleError(f"line {command.first_line}: $ {command.text}\n    {error}") from None
        return Outcome(command, int(status), tuple(output.decode(errors="replace").splitlines()))

    def _until(self, end: re.Pattern[bytes]) -> tuple[bytes, bytes]:
        deadline = time.monotonic() + _TIMEOUT_S
        assert self._bash.stdout is not None
        while (found := end.search(self._unread)) is None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._bash.stdout], [], [], left)[0]:
                raise ConsoleError(f"nothing comes any more after {self._unread!r}")
            block = os.read(self._bash.stdout.fileno(), 1 << 16)
            if not block:
                raise ConsoleError(f"bash has ended after {self._unread!r}")
            self._unread += block
        output, self._unread = self._unread[: found.start()], self._unread[found.end() :]
        return output, found[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every process of the session ends with its first one."""
        os.close(self._commands)
        self._bash.send_signal(signal.SIGKILL)
        self._bash.wait()
        if self._bash.stdout is not None:
            self._bash.stdout.close()


def run(document: Path) -> list[Outcome]:
    """What the commands of *document* do."""
    with Session() as session:
        return [session.run(command) for command in parse(document.read_text().splitlines())]


def update(document: Path, outcomes: Sequence[Outcome]) -> None:
    """Write into *document* what its commands print now, but for what has wildcards and still is true."""
    lines = document.read_text().splitlines()
    for outcome in reversed(outcomes):
        command = outcome.command
        kept = outcome.as_told and any(_ANYTHING in line for line in command.expected)
        if not kept:
            first = command.end_line - len(command.expected)
            lines[first : command.end_line] = outcome.actual
    document.write_text("\n".join(lines) + "\n")


def main() -> int:
    """The command; returns its status."""
    wants_update = sys.argv[1:2] == ["--update"]
    status = 0
    for name in sys.argv[2 if wants_update else 1 :]:
        outcomes = run(Path(name))
        wrong = [outcome for outcome in outcomes if not outcome.as_told]
        for outcome in wrong:
            sys.stdout.write(f"{name}: {outcome}\n")
            status = 1
        if wants_update and wrong:
            update(Path(name), outcomes)
    return status


if __name__ == "__main__":
    sys.exit(main())
