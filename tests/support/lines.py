"""The programs' side of the pipe: a command a line in, a JSON object a line out. Standard library only."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Answer = dict[str, object]


def say(answer: Answer) -> None:
    """Write one line to stdout, at once."""
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(1, data) :]


def commands() -> Iterator[str]:
    """The lines of stdin, read a byte at a time: what follows an exec stays for the next program."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        while line := stdin.readline():
            yield line.decode().rstrip("\n")


def obey(owner: object, line: str) -> Answer:
    """Carry out *line* by the method ``do_NAME`` of *owner*; the words behind the name are its arguments."""
    name, *words = line.split()
    command: Callable[..., Answer] | None = getattr(owner, "do_" + name.replace("-", "_"), None)
    if command is None:
        return {"error": f"no command {name}"}
    try:
        return command(*words)
    except (OSError, ValueError, TypeError, LookupError) as error:
        return {"error": f"{name}: {error!r}"}


def memory_figures() -> Answer:
    """The Vm and Rss figures of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.findall(r"^(Vm\w+|Rss\w+):\s+(\d+) kB$", status, re.MULTILINE)
    return {name: int(figure) * 1024 for name, figure in found}
