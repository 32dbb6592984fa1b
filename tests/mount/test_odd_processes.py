"""Programs for i386, and processes whose main thread has ended, by way of a mount and the tools for it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount, check, in_session, opened, read_all
from support.child import Program
from support.compiled import build, why_no_32_bits
from support.cores import wait_until_let_go
from support.outside import children_of
from support.target import Target

_FILL, _NEW = 5, 9


@pytest.fixture(params=[(64, True), (32, False), (32, True)], ids=["ended", "i386", "i386-ended"])
def odd(request: pytest.FixtureRequest) -> Iterator[tuple[Program, int]]:
    """The program of ``leaderless.c``, and its bits."""
    bits, ended = request.param
    if bits == 32 and (reason := why_no_32_bits()):
        pytest.skip(reason)
    with Program(build("leaderless", bits=bits), str(_FILL)) as program:
        if ended:
            program.ask("main-ends")
        yield program, bits


def _vma(directory: Path, program: Program) -> Path:
    (found,) = directory.glob(f"vmas/{program.hello['private'][0]:012x}-*")
    return found


def test_it_is_listed_read_frozen_and_debugged(
    memfs: Mount, odd: tuple[Program, int], tmp_path: Path
) -> None:
    program, bits = odd
    directory = memfs.process(program.pid)
    assert str(program.pid) in check("ls", memfs.path).decode().split()
    assert check("ls", directory / "vmas").split()
    start, end = program.hello["private"]
    with opened(_vma(directory, program)) as descriptor:
        assert read_all(descriptor, end - start) == bytes([_FILL]) * (end - start)
    check("cp", "-r", directory / "vmas", tmp_path / "vmas")
    snapshot = directory / "snapshots" / "one"
    snapshot.mkdir()
    program.ask("fill", _NEW)
    assert _vma(snapshot, program).read_bytes() == bytes([_FILL]) * (end - start)
    check("cp", "--sparse=auto", snapshot / "core", tmp_path / "core")
    snapshot.rmdir()
    wait_until_let_go(program.pid)
    assert children_of(program.pid) == set()
    assert _vma(directory, program).read_bytes() == bytes([_NEW]) * (end - start)
    gdb = ("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-ex", "thread apply all bt")
    shown = check(
        "sh", "-c", '"$@" 2>/dev/null', "sh", *gdb, build("leaderless", bits=bits), tmp_path / "core"
    )
    assert len(re.findall(r" in (?:idle|obey) ", shown.decode())) == 3
    assert f"ELF{bits}" in check("readelf", "-h", tmp_path / "core").decode()


def test_processes_are_listed_whatever_bytes_their_names_have(memfs: Mount, tmp_path: Path) -> None:
    """Those of others on this machine too, which the helpers of these tests look through."""
    with Target("private-runs", directory=tmp_path) as target:
        target.set_name(b"\xff\xfe (x) \n")
        assert str(target.pid) in check("ls", memfs.path).decode().split()
        assert memfs.daemon in in_session(memfs.daemon)
