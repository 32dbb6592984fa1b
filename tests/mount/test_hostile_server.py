"""A FUSE server that stops answering, and a process that maps its file: who waits for it, waits alone.

The mapping is read as far as the process has touched it; the rest is an error, and it comes in time. All
else goes on meanwhile: the other mappings of that process, other processes, the end of the mount.
"""

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from elftools.elf.elffile import ELFFile
from mount.mounted import Mount, error_of, memfs, mounted, mounts_on, opened, read_all, run
from support.compiled import build
from support.pattern import PAGE

USER = 65534
PAGES = 64
TOUCHED = 3
WRITTEN = 5
UNTOUCHED = 40
IN_TIME_SECONDS = 20.0
"""For what has to wait for the server once: ten times as long as memfs waits."""


@attrs.frozen
class Served:
    """The process, where it maps the file, and what the file holds."""

    pid: int
    shared: int
    private: int
    anonymous: int
    own: bool
    _program: "subprocess.Popen[str]"

    def let_die(self) -> None:
        """Have the server answer nothing from now on."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write("die\n")
        self._program.stdin.flush()
        assert self._program.stdout.readline() == "done\n"


def content(first: int, end: int) -> bytes:
    """Pages of the file."""
    return b"".join(bytes((ord("A") + page % 26,)) * PAGE for page in range(first, end))


@pytest.fixture(params=["own", "root"])
def served(request: pytest.FixtureRequest, user: int) -> Iterator[Served]:
    """A file served by a user in his own namespace, where root may not even look; and by root for all."""
    own = request.param == "own"
    with TemporaryDirectory(dir="/tmp") as directory:
        os.chown(directory, USER, USER)
        who = user if own else None
        with subprocess.Popen(
            [build("deadserver"), directory, request.param],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=who, group=who,
            extra_groups=[] if own else None,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            try:
                line = program.stdout.readline().split()
                yield Served(int(line[0]), *(int(word, 16) for word in line[1:]), own, program)
            finally:
                program.communicate()  # it ends the server: then the kernel ends every wait
                while mounts_on(Path(directory)):
                    run("umount", "-l", directory)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Mount]:
    """A mount whose core files hold all that can be read."""
    with mounted(tmp_path, "core=full") as mount:
        yield mount


def in_time(action: Callable[[], object]) -> object:
    """What *action* gives, or the errno with which it fails; it must end in time either way."""
    begun = time.monotonic()
    try:
        return action()
    except OSError as error:
        return error.errno
    finally:
        assert time.monotonic() - begun < IN_TIME_SECONDS


def vma_of(mount: Mount, pid: int, start: int) -> Path:
    vmas = mount.process(pid) / "vmas"
    (name,) = (name for name in os.listdir(vmas) if name.startswith(f"{start:012x}-"))
    return vmas / name


def page(path: Path, number: int) -> bytes:
    with opened(path) as file:
        return read_all(file, PAGE, number * PAGE)


def page_of_mem(directory: Path, address: int) -> bytes:
    with opened(directory / "mem") as file:
        return read_all(file, PAGE, address)


def expect_waiting(mount: Mount, served: Served) -> None:
    """Into a namespace of a user's own root is not let: there no one waits, and nothing is to be told."""
    if not served.own:
        mount.declare("did not answer within")


def test_a_server_that_answers_is_asked_for_what_the_process_has_not_touched(
    full: Mount, served: Served
) -> None:
    for start in (served.shared, served.private):
        vma = vma_of(full, served.pid, start)
        address = start + UNTOUCHED * PAGE
        if served.own:  # the kernel itself gets root nothing there
            assert error_of(lambda vma=vma: page(vma, UNTOUCHED)) == errno.EIO
            with opened(Path(f"/proc/{served.pid}/mem")) as mem:
                assert error_of(lambda mem=mem, at=address: os.pread(mem, PAGE, at)) == errno.EIO
        else:
            written = content(0, WRITTEN) + b"!" * PAGE + content(WRITTEN + 1, PAGES)
            assert vma.read_bytes() == (content(0, PAGES) if start == served.shared else written)
            assert page_of_mem(full.process(served.pid), address) == content(UNTOUCHED, UNTOUCHED + 1)


def test_what_was_touched_is_read_and_the_rest_is_an_error_in_time(full: Mount, served: Served) -> None:
    served.let_die()
    expect_waiting(full, served)
    for start in (served.shared, served.private):
        vma = vma_of(full, served.pid, start)
        assert vma.stat().st_size == PAGES * PAGE
        assert in_time(lambda vma=vma: page(vma, TOUCHED)) == content(TOUCHED, TOUCHED + 1)
        assert in_time(lambda vma=vma: page(vma, UNTOUCHED)) == errno.EIO
    assert page(vma_of(full, served.pid, served.private), WRITTEN) == b"!" * PAGE
    mem = full.process(served.pid)
    assert in_time(lambda: page_of_mem(mem, served.shared + UNTOUCHED * PAGE)) == errno.EIO


def test_all_else_goes_on_while_someone_waits(full: Mount, served: Served) -> None:
    served.let_die()
    expect_waiting(full, served)
    vma = vma_of(full, served.pid, served.shared)
    with subprocess.Popen(["cat", vma], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        anonymous = vma_of(full, served.pid, served.anonymous)
        assert anonymous.read_bytes() == b"#" * 4 * PAGE
        assert page_of_mem(full.process(served.pid), served.anonymous) == b"#" * PAGE
        assert run("ls", "-l", full.process(served.pid) / "vmas").returncode == 0
        assert run("ls", "-l", full.path).returncode == 0
        assert (full.process(os.getpid()) / "stack").read_bytes()
        assert reader.wait(IN_TIME_SECONDS) == 1


def test_a_snapshot_is_taken_and_says_what_it_has_not(full: Mount, served: Served) -> None:
    served.let_die()
    expect_waiting(full, served)
    frozen = full.process(served.pid) / "snapshots" / "one"
    assert in_time(frozen.mkdir) is None
    assert page_of_mem(frozen, served.anonymous) == b"#" * PAGE
    assert page_of_mem(frozen, served.private + WRITTEN * PAGE) == b"!" * PAGE
    assert in_time(lambda: page_of_mem(frozen, served.private + UNTOUCHED * PAGE)) == errno.EIO
    info = json.loads((frozen / "info.json").read_bytes())
    states = {int(mapping["start"], 16): mapping for mapping in info["mappings"]}
    assert states[served.shared]["state"] == "live"
    assert "serves" in states[served.shared]["reason"]
    frozen.rmdir()


def test_a_core_file_is_read_to_its_end(full: Mount, served: Served) -> None:
    served.let_die()
    expect_waiting(full, served)

    def segments() -> dict[int, bytes]:
        with open(full.process(served.pid) / "core", "rb") as file:
            elf = ELFFile(file)
            return {s["p_vaddr"]: s.data() for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"}

    found = in_time(segments)
    assert isinstance(found, dict)
    assert found[served.anonymous] == b"#" * 4 * PAGE
    assert {served.shared, served.private} <= found.keys()


def test_the_mount_ends_while_someone_waits(tmp_path: Path, served: Served) -> None:
    with mounted(tmp_path) as mount:
        served.let_die()
        vma = vma_of(mount, served.pid, served.shared)
        with subprocess.Popen(["cat", vma], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
            done = memfs("umount", mount.path)
            assert (done.returncode, done.stderr) == (0, b"")
            assert mount.reap() == 0
            assert reader.wait(IN_TIME_SECONDS) == 1
