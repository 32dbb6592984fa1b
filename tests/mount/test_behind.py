"""Behind the end of a mapped file and in a guard region there is no page: all tools find a hole of zeros."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from elftools.elf.elffile import ELFFile
from mount.mounted import MIB, Mount, check, mounted, opened, read_all, run
from support.compiled import build
from support.pattern import PAGE

_TEXT = b"x" * 10_000
_FILE = _TEXT + bytes(MIB - len(_TEXT))
_CONTENT = {
    "hidden": _FILE,
    "beyond": bytes(MIB),
    "shared": _FILE,
    "written": b"x" * PAGE + b"w" * PAGE + _FILE[2 * PAGE :],
    "guarded": b"x" * PAGE + bytes(PAGE) + _FILE[2 * PAGE :],
    "memory": b"m" * (MIB // 2) + bytes(MIB // 2),
}
"""In the order in which the program prints their addresses."""
_CANNOT = 77


@attrs.frozen
class Behind:
    """The program, and where it maps what."""

    pid: int
    addresses: dict[str, int]

    def vma(self, directory: Path, name: str) -> Path:
        """The file of a mapping in a directory ``vmas``."""
        (found,) = directory.glob(f"{self.addresses[name]:012x}-*")
        return found


_OVERLAY = """
mount -t overlay -o "lowerdir=$1,upperdir=$1/../upper,workdir=$1/../work" none "$1" && exec "$2" "$1/file"
"""
"""A file system that only the program's own namespace has: another process reads it for memfs."""


@pytest.fixture(params=["disk", "served"])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Behind]:
    """The program, its file on a disk, or on a file system that may be someone else's."""
    program, directory = build("behind"), tmp_path / "lower"
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (directory / "file").write_bytes(_TEXT)
    os.utime(directory / "file", (1e9, 1e9))  # one that was just written is no part of a snapshot
    argv = [program, directory / "file"]
    if request.param == "served":
        argv = ["unshare", "-m", "sh", "-c", _OVERLAY, "sh", directory, program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            addresses = [int(word, 16) for word in child.stdout.readline().split()]
            if len(addresses) < len(_CONTENT) and child.wait() == _CANNOT:
                pytest.skip("this kernel has no guard regions in mapped files")
            yield Behind(child.pid, dict(zip(_CONTENT, addresses, strict=True)))
        finally:
            child.stdin.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Mount]:
    """A mount whose core files hold all that can be read."""
    with mounted(tmp_path, "core=full") as mount:
        yield mount


def _check_all(behind: Behind, directory: Path, copies: Path) -> None:
    vmas = directory / "vmas"
    for tool in (["cat"], ["sha256sum"], ["wc", "-c"]):
        check(*tool, *vmas.iterdir())
    check("tar", "-c", "-f", copies / "vmas.tar", "-C", directory, "vmas")
    searched = run("grep", "-r", "-a", "-l", "no one has " + "written that", vmas)
    assert (searched.returncode, searched.stdout, searched.stderr) == (1, b"", b"")
    check("cp", "-r", vmas, copies)
    check("cp", "-r", "--sparse=never", vmas, copies / "whole")
    with opened(directory / "mem") as flat:
        for name, content in _CONTENT.items():
            file = behind.vma(vmas, name)
            for copy in (copies / "vmas", copies / "whole"):
                assert (copy / file.name).read_bytes() == content
            assert read_all(flat, MIB, behind.addresses[name]) == content
            # Each piece of it alone, small and large, over the edges and not.
            with opened(file) as own:
                for start, size in ((9_990, 20), (2 * PAGE + 1, 2 * PAGE), (3 * PAGE, PAGE), (MIB - 1, 1)):
                    assert os.pread(own, size, start) == content[start : start + size]


def test_every_tool_finds_a_hole_where_there_is_no_page(memfs: Mount, behind: Behind, shm: Path) -> None:
    for name in ("live", "frozen"):
        (shm / name).mkdir()
    _check_all(behind, memfs.process(behind.pid), shm / "live")
    with memfs.snapshot(behind.pid) as snapshot:
        _check_all(behind, snapshot, shm / "frozen")


def test_a_core_file_has_a_hole_there(full: Mount, behind: Behind, shm: Path) -> None:
    for core in ("core", "frozen"):
        if core == "core":
            check("cp", full.process(behind.pid) / "core", shm / core)
        else:
            with full.snapshot(behind.pid) as snapshot:
                check("cp", snapshot / "core", shm / core)
        with (shm / core).open("rb") as file:
            segments = {segment["p_vaddr"]: segment for segment in ELFFile(file).iter_segments("PT_LOAD")}
            for name, content in _CONTENT.items():
                segment = segments[behind.addresses[name]]
                if (name, segment["p_filesz"]) == (
                    "shared",
                    0,
                ):  # a snapshot leaves it out where it is served
                    continue
                assert segment["p_filesz"] == MIB
                file.seek(segment["p_offset"])
                assert file.read(MIB) == content


@pytest.mark.parametrize("behind", ["disk"], indirect=True)
def test_only_what_the_file_has_is_data(memfs: Mount, behind: Behind) -> None:
    with memfs.snapshot(behind.pid) as snapshot:
        for vmas in (memfs.process(behind.pid) / "vmas", snapshot / "vmas"):
            for name in ("hidden", "beyond", "shared"):
                with opened(behind.vma(vmas, name)) as file:
                    if name == "beyond":
                        with pytest.raises(OSError, match="No such device"):
                            os.lseek(file, 0, os.SEEK_DATA)
                    else:
                        assert os.lseek(file, 0, os.SEEK_HOLE) == 3 * PAGE
