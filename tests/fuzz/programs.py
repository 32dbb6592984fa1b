"""The programs of the fuzzer, built anew for each run, and what Python must know of their headers."""

import ctypes
import os
import subprocess
from pathlib import Path

import attrs

_HERE = Path(__file__).resolve().parent
_FLAGS = ("-g", "-Wall", "-Wextra", "-Werror", "-pthread")

PAGE = 4096
LINE = 64
ARENA = 0x200_0000_0000
CONTROL = 0x100_0000_0000
SLOTS = 48
SLOT = 4 << 20
MOST_PAGES = 300
OF_OBJECT = 1 << 63
LEDGER_FD, FAULTS_FD, DIRECTORY_FD = 100, 101, 102


@attrs.frozen
class Programs:
    """Where the programs are.

    Attributes:
        target: of everybody, linked at a fixed address as *secret* is.
        secret: set-uid root.
        check: a shared library.
    """

    target: Path
    secret: Path
    check: Path


def names(directory: Path) -> tuple[str, str]:
    """What the targets of the run in *directory* are called, and those that are set-uid.

    Another run on the same machine has others: its targets are in nobody's ledger here.
    """
    mark = directory.name[-8:]
    return f"fz-{mark}", f"fs-{mark}"


def build(directory: Path) -> Programs:
    """Compile all of them into *directory*, which must be root's and open to all."""
    programs = Programs(directory / "program", directory / "secret", directory / "check.so")
    # Linked statically and at a fixed address, both have the same bytes at the same place: their ELF headers.
    for path, name in zip((programs.target, programs.secret), names(directory), strict=True):
        argv: list[str | Path] = [
            "gcc",
            "-O1",
            "-static",
            "-no-pie",
            *_FLAGS,
            f'-DNAME="{name}"',
            "-o",
            path,
            _HERE / f"{path.name}.c",
        ]
        subprocess.run(argv, check=True)
    argv = ["gcc", "-O2", "-shared", "-fPIC", *_FLAGS, "-o", programs.check, _HERE / "check.c"]
    subprocess.run(argv, check=True)
    os.chmod(programs.secret, 0o4755)
    return programs


class Slot(ctypes.Structure):
    """``struct slot``: what a piece of the arena holds, as its owner writes it down."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("state", "content", "pages", "nonce", "generation", "object")
    )
    state: int
    content: int
    pages: int
    nonce: int
    generation: int
    object: int


class Control(ctypes.Structure):
    """``struct control``: whose memory this is."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("nonce", ctypes.c_uint64),
        ("parent", ctypes.c_uint64),
        ("pid", ctypes.c_uint32),
        ("family", ctypes.c_uint32),
        ("steps", ctypes.c_uint64),
        ("generation", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("slots", Slot * SLOTS),
    )
    magic: int
    nonce: int
    parent: int
    pid: int
    family: int
    steps: int
    flags: int
    slots: ctypes.Array[Slot]


CONTROL_MAGIC = 0x91C4B0A7E65D2F38
FILLED = 2
PLAIN, MOVED, WIPED, NOT_FORKED, SHARED, MIXED, SUPPLIED = range(7)
FORGED, DISTORTED, HARMED = 4, 8, 16


def parse_control(page: bytes) -> Control | None:
    """The control page in *page*; None where there is none (yet)."""
    if len(page) < ctypes.sizeof(Control):
        return None
    control = Control.from_buffer_copy(page)
    return control if control.magic == CONTROL_MAGIC else None
