"""A process that maps at ever new addresses: the daemon that lists it grows to a bound, and no further."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount
from support.compiled import build
from support.outside import read_memory_use

VMAS = 4000
LISTINGS = 120
ENTRY_BYTES = 250
"""Of a table of inode numbers: an int of 36, a key of 32, and the share of the dict for both at its worst."""
BOUND_BYTES = (2 * 2 * VMAS + VMAS) * ENTRY_BYTES
"""Two tables of twice the VMAs that there are, and what one listing puts on top."""


@pytest.fixture
def wanderer() -> Iterator["subprocess.Popen[str]"]:
    """A program of ``wanderer.c``: it maps all anew for each line that it reads, and says so."""
    with subprocess.Popen(
        [build("wanderer"), str(VMAS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        user=65534, group=65534, extra_groups=[],
    ) as program:  # fmt: skip
        yield program
        program.kill()


def test_a_wanderer_makes_the_daemon_grow_no_further(memfs: Mount, wanderer: "subprocess.Popen[str]") -> None:
    assert wanderer.stdin is not None
    assert wanderer.stdout is not None
    vmas = memfs.process(wanderer.pid) / "vmas"
    sizes = []
    seen: set[str] = set()
    for _ in range(LISTINGS):
        wanderer.stdin.write("\n")
        wanderer.stdin.flush()
        assert wanderer.stdout.readline() == "moved\n"
        names = _list_long(vmas)
        assert len(names) >= VMAS
        seen.update(names)
        sizes.append(read_memory_use(memfs.daemon).rss)
    assert len(seen) > VMAS * LISTINGS * 9 / 10
    assert max(sizes) - sizes[LISTINGS // 6] < BOUND_BYTES


def _list_long(directory: Path) -> list[str]:
    """The names, with the attributes that READDIRPLUS brings along."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.stat().st_ino]
