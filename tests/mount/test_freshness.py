"""What the kernel may believe of a file, and for how long: never past the next open."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounted import Mount, check, opened
from support.outside import read_maps
from support.pattern import PAGE
from support.target import Target

_NOBODY = 65534
_LAST_PAGE = (1 << 47) - 2 * PAGE
"""The highest page that x86-64 and arm64 let a process map with 47 bits of address."""

_CHANGES_ITS_USER = """
import os, sys
print(flush=True)
sys.stdin.readline()
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def _process_of_root() -> Iterator[subprocess.Popen[bytes]]:
    """A process that becomes one of nobody's when it is told a line, and tells one."""
    argv = ["/usr/bin/python3", "-c", _CHANGES_ITS_USER]
    with subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()


def _become_nobody(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    assert process.stdout.readline() == b"\n"


@pytest.mark.parametrize("looked", ["stat", "ls"])
def test_what_is_opened_belongs_to_whoever_owns_it_then(memfs: Mount, looked: str) -> None:
    with _process_of_root() as process:
        vmas = memfs.process(process.pid) / "vmas"
        name = f"{read_maps(process.pid)[0].span.start:012x}-"
        (file,) = (vmas / found for found in os.listdir(vmas) if found.startswith(name))
        if looked == "stat":
            assert os.stat(file).st_uid == 0
        else:
            check("ls", "-l", vmas)
        _become_nobody(process)
        with opened(file) as descriptor:
            found = os.fstat(descriptor)
        assert (found.st_uid, found.st_gid) == (_NOBODY, _NOBODY)


def test_the_flat_file_ends_where_the_process_does_at_that_moment(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        flat = memfs.process(target.pid) / "mem"
        check("ls", "-l", flat.parent)
        before = os.stat(flat).st_size
        assert before <= _LAST_PAGE
        mapping = target.map(_LAST_PAGE, PAGE)
        target.write(mapping.start, PAGE, seed=5)
        assert os.stat(flat).st_size == _LAST_PAGE + PAGE
        with opened(flat) as descriptor:
            assert os.fstat(descriptor).st_size == os.lseek(descriptor, 0, os.SEEK_END) == _LAST_PAGE + PAGE
            written = os.pread(descriptor, PAGE, _LAST_PAGE)
        assert target.mappings[-1].mismatch(0, written) is None
        target.unmap(mapping.start, PAGE)
        with opened(flat) as descriptor:
            assert os.fstat(descriptor).st_size == before


def test_a_reader_by_the_page_cache_gets_the_bytes_of_the_moment_of_the_open(
    memfs: Mount, tmp_path: Path
) -> None:
    with Target("private-full", directory=tmp_path) as target:
        mapping = target.mapping("private-full")
        file = memfs.vma(target.pid, mapping)
        for seed in (11, 12, 13):
            check("ls", "-l", file)
            target.write(mapping.start, mapping.length, seed)
            digest = check("openssl", "dgst", "-sha256", "-r", file).split()[0]
            assert digest == target.digest(mapping.start, mapping.length).encode()
