"""Contenders that ask something of one file, in round trips, and tools that walk over many small mappings."""

import mmap
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from commands import Argv, run
from contenders import Contender
from lab import Lab
from results import Sample

ROUND_TRIP = "a direct read of 4 KiB"
SAME_ON_TMPFS = "the same files on tmpfs"
_PAGE_BYTES = mmap.PAGESIZE
_TIMES = 200
_MAPPINGS = 2_000


def _timed(name: str, ask: Callable[[], object], amount: int = _TIMES) -> Contender:
    def run_all() -> Sample:
        begun = time.perf_counter()
        for _ in range(amount):
            ask()
        return Sample(time.perf_counter() - begun, amount)

    return Contender(name, run_all)


def _round_trip(file: Path) -> Contender:
    page = mmap.mmap(-1, _PAGE_BYTES)  # direct reads want an aligned buffer

    def run_all() -> Sample:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            begun = time.perf_counter()
            for _ in range(_TIMES):
                os.preadv(fd, [page], 0)
            return Sample(time.perf_counter() - begun, _TIMES)
        finally:
            os.close(fd)

    return Contender(ROUND_TRIP, run_all)


def _files(lab: Lab) -> list[Path]:
    """Those of anonymous private memory."""
    vmas = lab.memfs.path / str(lab.many(_MAPPINGS)) / "vmas"
    return [vmas / name for name in sorted(os.listdir(vmas)) if name.endswith("p_anon")]


def stat_one(lab: Lab) -> tuple[Contender, ...]:
    """The first stat of each of some files: the kernel has forgotten their names."""
    files = _files(lab)[:_TIMES]

    def run_all() -> Sample:
        _forget_names()
        os.stat(files[0].parent)  # the way to it is known
        begun = time.perf_counter()
        for file in files:
            os.stat(file)
        return Sample(time.perf_counter() - begun, len(files))

    return Contender("memfs", run_all), _round_trip(files[0])


def _forget_names() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def open_one(lab: Lab) -> tuple[Contender, ...]:
    """A file opened, a page of it read, and closed."""
    file = _files(lab)[0]

    def read_page() -> None:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.pread(fd, _PAGE_BYTES, 0)
        finally:
            os.close(fd)

    return _timed("memfs", read_page), _round_trip(file)


def ask_attribute(lab: Lab) -> tuple[Contender, ...]:
    """An extended attribute that smaps does not tell."""
    file = _files(lab)[0]
    return _timed("memfs", lambda: os.getxattr(file, "user.memfs.path")), _round_trip(file)


def follow_link(lab: Lab) -> tuple[Contender, ...]:
    """Where ``stack`` leads."""
    files = _files(lab)
    link = files[0].parent.parent / "stack"
    return _timed("memfs", lambda: os.readlink(link)), _round_trip(files[0])


def walk(command: Argv, lab: Lab) -> tuple[Contender, ...]:
    """*command* in the directory of the mappings of a process that has many, and in a copy of it on a tmpfs.

    What it writes goes to a directory ``$OUT`` on that tmpfs.
    """
    vmas = _files(lab)[0].parent
    twin, out = lab.scratch / "small", lab.scratch / "walked"
    if not twin.exists():
        run(["cp", "-r", vmas, twin])

    def walking(name: str, directory: Path) -> Contender:
        def run_once() -> Sample:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            return Sample(run(["env", "-C", directory, f"OUT={out}", *command]).seconds)

        return Contender(name, run_once)

    return walking("memfs", vmas), walking(SAME_ON_TMPFS, twin)
