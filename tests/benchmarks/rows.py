"""The rows of the benchmark, and what each must show. To add one is to add a line here.

The requirements stand in the project's issues; "at least" is a ratio of speeds within one run.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import attrs
from contenders import (
    Contender,
    Feed,
    Tool,
    by_tool,
    copy,
    counting,
    dd,
    nc,
    openssl,
    random_reads,
    readv_loop,
    zstd,
)
from lab import Lab, Memory
from results import AtLeast, Exactly, Requirement, Unit, Within
from target import SPARSE_RUN_BYTES, SPARSE_RUNS

_K = 1 << 10
_ANY_NUMBER = 1 << 62
_MEM = "/proc/PID/mem"
_UNREADABLE = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
_ENTRIES_OF_A_PROCESS = 5

Pick = Callable[[Lab], Memory]


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        contenders: makes them, memfs first; it may start targets, so it is called when the row's turn comes.
    """

    name: str
    unit: Unit
    contenders: Callable[[Lab], tuple[Contender, ...]]
    required: tuple[Requirement, ...] = ()


def _private(lab: Lab) -> Memory:
    return lab.private


def _huge(lab: Lab) -> Memory:
    return lab.huge


def _shared(lab: Lab) -> Memory:
    return lab.shared


def _dd_row(label: str, pick: Pick, block: str, required: tuple[Requirement, ...] = ()) -> Row:
    size_bytes, direct = _BLOCKS[block]

    def contenders(lab: Lab) -> tuple[Contender, ...]:
        memory = pick(lab)
        return (*by_tool(lab, memory, dd(size_bytes, direct=direct)), readv_loop(memory))

    return Row(f"{label}, dd bs={block}", Unit.RATE, contenders, required)


_BLOCKS = {
    "16K": (16 * _K, False),
    "128K": (128 * _K, False),
    "1M": (1024 * _K, False),
    "1M direct": (1024 * _K, True),
}
_TOOLS = {
    "openssl dgst -sha256": (openssl, (AtLeast(_MEM, 0.9),)),
    "zstd -1": (zstd, ()),
    "nc over loopback": (nc, (AtLeast(_MEM, 0.9),)),
    "cp to tmpfs": (copy, ()),
}
_DD_REQUIRED = {"128K": (AtLeast(_MEM, 0.5),), "1M": (AtLeast(_MEM, 0.5),)}


def _sparse_copy(lab: Lab) -> tuple[Contender, ...]:
    """As runs, not as bytes: the two copies hold as much, and differ in what lies between."""

    def copied(name: str, memory: Memory) -> Contender:
        feed = Feed(memory, memory.file)
        return Contender(name, lambda: attrs.evolve(copy(lab, feed), amount=1))

    return copied("memfs", lab.sparse), copied("cp of 64 MiB, not sparse", lab.dense)


def _vmas(lab: Lab) -> tuple[Path, Path, int, int]:
    """Of the process with many VMAs: its vmas/, its /proc, how many VMAs memfs has a file for, and all."""
    proc = Path(f"/proc/{lab.many}")
    lines = (proc / "maps").read_text().splitlines()
    readable = [line for line in lines if not line.endswith(_UNREADABLE)]
    return lab.memfs.path / str(lab.many) / "vmas", proc, len(readable), len(lines)


def _list_names(tool: str, arguments: tuple[str, ...], lab: Lab) -> tuple[Contender, ...]:
    vmas, proc, readable, all_of_them = _vmas(lab)
    return (
        counting("memfs", [tool, vmas, *arguments], readable),
        counting("the same names on tmpfs", [tool, lab.twin(vmas), *arguments], readable),
        counting("cat /proc/PID/maps", ["cat", proc / "maps"], all_of_them),
    )


def _list_long(lab: Lab) -> tuple[Contender, ...]:
    vmas, proc, readable, all_of_them = _vmas(lab)
    return (
        counting("memfs", ["ls", "-l", vmas], readable + 1),
        counting("the same names on tmpfs", ["ls", "-l", lab.twin(vmas)], readable + 1),
        counting("cat /proc/PID/smaps", ["cat", proc / "smaps"], all_of_them, _ANY_NUMBER),
    )


def _find_machine(lab: Lab) -> tuple[Contender, ...]:
    assert lab.crowd
    lowest = _ENTRIES_OF_A_PROCESS * lab.scale.processes
    depth = ["-ignore_readdir_race", "-maxdepth", "2"]
    return (
        counting("memfs", ["find", lab.memfs.path, *depth], lowest, _ANY_NUMBER, races=True),
        counting("find /proc", ["find", "/proc", *depth], lowest, _ANY_NUMBER, races=True),
    )


def _private_by(tool: Tool, lab: Lab) -> tuple[Contender, ...]:
    return by_tool(lab, lab.private, tool)


def _random_reads(lab: Lab) -> tuple[Contender, ...]:
    return random_reads(lab, lab.private, 4 * _K)


def all_rows() -> list[Row]:
    """Every row, in the order of the table: those with the same contenders stand together."""
    return [
        *(_dd_row("private", _private, block, _DD_REQUIRED.get(block, ())) for block in _BLOCKS),
        *(_dd_row("huge pages", _huge, block) for block in _BLOCKS),
        *(_dd_row("shared", _shared, block) for block in ("16K", "128K", "1M")),
        Row("private, pread of 4 KiB", Unit.TIME, _random_reads),
        *(
            Row(f"private, {name}", Unit.RATE, functools.partial(_private_by, tool), required)
            for name, (tool, required) in _TOOLS.items()
        ),
        Row(
            "64 GiB with 64 MiB touched, cp",
            Unit.TIME,
            _sparse_copy,
            (
                AtLeast("cp of 64 MiB, not sparse", 0.5),
                Exactly("bytes_on_disk", SPARSE_RUNS * SPARSE_RUN_BYTES),
            ),
        ),
        Row("60,000 VMAs, ls", Unit.TIME, functools.partial(_list_names, "ls", ()), (Within(1.0),)),
        Row("60,000 VMAs, find", Unit.TIME, functools.partial(_list_names, "find", ("-type", "f"))),
        Row("60,000 VMAs, ls -l", Unit.TIME, _list_long, (Within(3.0),)),
        Row("the whole machine, find -maxdepth 2", Unit.TIME, _find_machine),
    ]
