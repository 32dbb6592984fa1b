"""A program forges what tells it from the next one: an open file never shows a byte of a set-uid program."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path

import pytest
from mount.mounted import Mount

USER = 65533
ADDRESS = 0x2100_0000_0000  # as forger.c has them
SIZE = 16 << 20
PUBLIC = b"public, 16 bytes"
READ_BYTES = 1 << 20

_SOURCE = Path(__file__).parents[1] / "support" / "forger.c"
_BUILDS = {
    "pie": ("-fPIE", "-pie"),
    "non-pie": ("-fno-pie", "-no-pie"),
    "static": ("-static",),
    "not random": ("-fPIE", "-pie"),
}


@pytest.fixture(params=_BUILDS)
def forger(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path, Path]:
    """How to start it, the program, and the same program, set-uid root."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    program, victim = tmp_path / "forger", tmp_path / "victim"
    subprocess.run(["gcc", "-O1", *_BUILDS[request.param], "-o", program, _SOURCE], check=True)
    shutil.copy(program, victim)
    victim.chmod(0o4755)
    start = ["setarch", "-R"] if request.param == "not random" else []
    return start, program, victim


@contextmanager
def _attacker(forger: tuple[list[str], Path, Path]) -> Iterator[subprocess.Popen[bytes]]:
    start, program, victim = forger
    argv = [*start, program, "attack", victim]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=USER) as attacker:
        try:
            yield attacker
        finally:
            attacker.kill()


def _line(program: subprocess.Popen[bytes]) -> bytes:
    assert program.stdout is not None
    return program.stdout.readline()


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["cached", "direct"])
@pytest.mark.parametrize("name", ["vma", "mem"])
def test_memory_of_a_set_uid_program_never_comes_through_a_file_that_was_open(
    memfs: Mount, forger: tuple[list[str], Path, Path], flags: int, name: str
) -> None:
    with _attacker(forger) as attacker:
        assert _line(attacker) == b"attack %d\n" % USER
        directory = memfs.path / str(attacker.pid)
        if name == "mem":
            path, start = directory / "mem", ADDRESS
        else:
            (path,) = (directory / "vmas").glob(f"{ADDRESS:012x}-*")
            start = 0
        opened = os.open(path, os.O_RDONLY | flags)
        try:
            with mmap(-1, READ_BYTES) as memory:
                assert os.preadv(opened, [memory], start) == READ_BYTES
                assert memory[:] == PUBLIC + b"A" * (READ_BYTES - len(PUBLIC))
                assert attacker.stdin is not None
                attacker.stdin.write(b"\n")
                attacker.stdin.flush()
                assert _line(attacker) == b"victim 0\n"
                for offset in range(0, SIZE, READ_BYTES):
                    memory[:] = bytes(READ_BYTES)
                    with suppress(OSError):
                        os.preadv(opened, [memory], start + offset)
                    assert b"S" not in memory[:]
        finally:
            os.close(opened)
