"""Contenders that ask for names and attributes: listings and stats, of many VMAs and of many processes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from contenders import Contender, counting
from lab import Lab
from results import Sample
from target import LAST_OF_CROWD

_ANY_NUMBER = 1 << 62
_UNREADABLE = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
_ENTRIES_OF_A_PROCESS = 5
_FORGOTTEN_S = 0.6
"""The kernel believes a name for half a second."""
_STATS = 50
_ATTRIBUTES = 10
_MANY_VMAS = 60_000
_FEW_VMAS = 60

AMONG_FEW = f"among {_FEW_VMAS}"


def _vmas(lab: Lab, count: int) -> tuple[Path, Path, int, int]:
    """Of the process with *count* VMAs: its vmas/, its /proc, how many VMAs memfs has a file for, and all."""
    pid = lab.many(count)
    proc = Path(f"/proc/{pid}")
    lines = (proc / "maps").read_text().splitlines()
    readable = [line for line in lines if not line.endswith(_UNREADABLE)]
    return lab.memfs.path / str(pid) / "vmas", proc, len(readable), len(lines)


def list_names(tool: str, arguments: tuple[str, ...], count: int, lab: Lab) -> tuple[Contender, ...]:
    """The names of the VMA files of a process with *count* VMAs."""
    vmas, proc, readable, all_of_them = _vmas(lab, count)
    return (
        counting("memfs", [tool, vmas, *arguments], readable),
        counting("the same names on tmpfs", [tool, lab.twin(vmas), *arguments], readable),
        counting("cat /proc/PID/maps", ["cat", proc / "maps"], all_of_them),
    )


def list_long(count: int, lab: Lab) -> tuple[Contender, ...]:
    """The names and attributes of the VMA files of a process with *count* VMAs."""
    vmas, proc, readable, all_of_them = _vmas(lab, count)
    return (
        counting("memfs", ["ls", "-l", vmas], readable + 1),
        counting("the same names on tmpfs", ["ls", "-l", lab.twin(vmas)], readable + 1),
        counting("cat /proc/PID/smaps", ["cat", proc / "smaps"], all_of_them, _ANY_NUMBER),
    )


def list_attributes(count: int, lab: Lab) -> tuple[Contender, ...]:
    """All attributes of the VMA files of a process with *count* VMAs: a line for each, two for each file."""
    vmas, proc, readable, all_of_them = _vmas(lab, count)
    command = ["sh", "-c", 'getfattr -d --absolute-names "$1"/*', "sh", vmas]
    return (
        counting("memfs", command, (_ATTRIBUTES + 2) * readable),
        counting("cat /proc/PID/smaps", ["cat", proc / "smaps"], all_of_them, _ANY_NUMBER),
    )


def stat_vmas(lab: Lab) -> tuple[Contender, ...]:
    """One VMA file of a process that has many, and of one that has few."""

    def some(count: int) -> Callable[[], list[Path]]:
        vmas, _, readable, _ = _vmas(lab, count)
        names = sorted(os.listdir(vmas))[:: readable // _STATS][:_STATS]
        return lambda: [vmas / name for name in names]

    return _stats("memfs", some(_MANY_VMAS)), _stats(AMONG_FEW, some(_FEW_VMAS))


def list_process(lab: Lab) -> tuple[Contender, ...]:
    """What is in the directory of a process that has many VMAs, and of one that has few."""

    def count(name: str, vmas: int) -> Contender:
        return counting(name, ["ls", lab.memfs.path / str(lab.many(vmas))], 1, _ENTRIES_OF_A_PROCESS * 2)

    return count("memfs", _MANY_VMAS), count(AMONG_FEW, _FEW_VMAS)


def find_machine(depth: int, count: int, lab: Lab) -> tuple[Contender, ...]:
    """Every name on a machine with *count* processes and more."""
    lab.crowd(count)
    lowest = count if depth == 1 else _ENTRIES_OF_A_PROCESS * count
    arguments = ["-ignore_readdir_race", "-maxdepth", str(depth)]
    return (
        counting("memfs", ["find", lab.memfs.path, *arguments], lowest, _ANY_NUMBER, races=True),
        counting("find /proc", ["find", "/proc", *arguments], lowest, _ANY_NUMBER, races=True),
    )


def list_machine(count: int, lab: Lab) -> tuple[Contender, ...]:
    """The owner and the time of every process."""
    lab.crowd(count)
    return (
        counting("memfs", ["ls", "-l", lab.memfs.path], count, _ANY_NUMBER, races=True),
        counting("ls -l /proc", ["ls", "-l", "/proc"], count, _ANY_NUMBER, races=True),
    )


def list_by_name(count: int, lab: Lab) -> tuple[Contender, ...]:
    """The names of the programs that run."""
    lab.crowd(count)
    return (
        counting("memfs", ["ls", lab.memfs.path / "by-name"], 1, _ANY_NUMBER),
        counting("ps -eo comm", ["ps", "-eo", "comm"], count, _ANY_NUMBER),
    )


def stat_processes(count: int, lab: Lab) -> tuple[Contender, ...]:
    """One process of *count*."""
    some = _children(lab.crowd(count))[:_STATS]
    return (
        _stats("memfs", lambda: [lab.memfs.path / pid for pid in some]),
        _stats("/proc", lambda: [Path("/proc", pid) for pid in some]),
    )


def stat_by_name(count: int, lab: Lab) -> tuple[Contender, ...]:
    """One process of *count*, found by what it is called: the kernel knows none of its names yet."""
    pid = _children(lab.crowd(count))[-1]
    return (_stats("memfs", lambda: [lab.memfs.path / "by-name" / os.fsdecode(LAST_OF_CROWD) / pid]),)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _stats(name: str, files: Callable[[], list[Path]]) -> Contender:
    """How long the stat of one of *files* takes, its name being new to the kernel."""

    def stat_all() -> Sample:
        chosen = files()
        time.sleep(_FORGOTTEN_S)
        begun = time.perf_counter()
        for file in chosen:
            os.lstat(file)
        return Sample(time.perf_counter() - begun, len(chosen))

    return Contender(name, stat_all)
