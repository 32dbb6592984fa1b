"""Large shared memory is read by the kernel itself, while the daemon stands still: right bytes in every case.

What is passed through shows the object for as long as it is open, whatever becomes of the process.
"""

import errno
import hashlib
import mmap
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from mount.mounted import MIB, TIMEOUT_SECONDS, WITHOUT, Mount, check, mounted, opened, read_all
from support.child import Child
from support.pattern import PAGE
from support.without import FEATURES, lacking

pytestmark = pytest.mark.skipif(
    "passthrough" in lacking(WITHOUT), reason=f"without passthrough ({FEATURES['passthrough'].since})"
)

_SIZE = 16 * MIB
_START = 0x5000_0000_0000

_MAPPER = f"""
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
START, SIZE = {_START}, {_SIZE}
SHARED, PRIVATE, ANONYMOUS = 1, 2, 0x20
def show(path, flags=SHARED, size=SIZE, offset=0, start=START):
    "Map a file, or anonymous memory, where it is expected."
    file = os.open(path, os.O_RDWR) if path else -1
    where, size, offset = ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_long(offset)
    assert libc.mmap(where, size, 3, flags | 0x10 | (0 if path else ANONYMOUS), file, offset) == start
    if path: os.close(file)
print("{{}}", flush=True)
for line in sys.stdin:
    exec(line)
    print("{{}}", flush=True)
"""

_OBJECT = re.compile(r"[:/](object|other)( \(deleted\))?$")

_CONTENT = random.Random(9).randbytes(_SIZE)


class _Mapper(Child):
    """A process that runs the lines of Python that it is sent."""

    def do(self, line: str) -> None:
        """Run *line* in it."""
        self.send(line)
        self.answer()


@pytest.fixture
def mapper(tmp_path: Path) -> Iterator[_Mapper]:
    """The process whose memory is read."""
    program = tmp_path / "mapper.py"
    program.write_text(_MAPPER)
    with _Mapper(str(program)) as child:
        yield child


@pytest.fixture
def memfd() -> Iterator[int]:
    """A memfd of this process's, full of content."""
    descriptor = os.memfd_create("object")
    os.write(descriptor, _CONTENT)
    yield descriptor
    os.close(descriptor)


def _path(descriptor: int) -> str:
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _file(memfs: Mount, mapper: _Mapper) -> Path:
    vmas = memfs.process(mapper.pid) / "vmas"
    (name,) = (name for name in os.listdir(vmas) if name.startswith(f"{_START:012x}-"))
    return vmas / name


def _read_by_kernel(memfs: Mount, descriptor: int, size: int, offset: int) -> bytes | None:
    """What can be read while the daemon stands still: what the kernel reads by itself; else None.

    Nothing else is done meanwhile: whatever waits for the daemon waits in the kernel, and no signal ends it.
    """
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(os.pread(descriptor, size, offset)))
    memfs.signal(signal.SIGSTOP)
    try:
        while any(_state(task) != "T" for task in Path(f"/proc/{memfs.daemon}/task").iterdir()):
            pass  # no thread of it does anything any more only when each has stopped
        reader.start()
        reader.join(0.3)
        return got[0] if got else None
    finally:
        memfs.signal(signal.SIGCONT)
        reader.join()


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def _await_releases(memfs: Mount) -> None:
    """Until the daemon has nothing of the object open: the kernel tells it of a close some time after."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(_OBJECT.search(name) for name in _open_files(memfs.daemon)):
        assert time.monotonic() < deadline, "the daemon keeps a file that is closed"
        os.stat(memfs.path)


def _open_files(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(descriptor)


def _answer(descriptor: int, offset: int = 0) -> bytes | int | None:
    try:
        return os.pread(descriptor, PAGE, offset)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("kind", ["anonymous", "memfd", "tmpfs", "file"])
def test_large_shared_memory_is_read_without_the_daemon(
    memfs: Mount, mapper: _Mapper, memfd: int, shm: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "anonymous":
        mapper.do("show('')")
        mapper.do(f"f = open({_path(memfd)!r}, 'rb'); f.readinto((ctypes.c_char * SIZE).from_address(START))")
    else:
        file = {"memfd": Path(_path(memfd)), "tmpfs": shm / "object", "file": tmp_path / "object"}[kind]
        if kind != "memfd":
            file.write_bytes(_CONTENT)
        mapper.do(f"show({str(file)!r})")
    with opened(_file(memfs, mapper)) as descriptor:
        assert _read_by_kernel(memfs, descriptor, MIB, 5 * MIB) == _CONTENT[5 * MIB : 6 * MIB]
        assert read_all(descriptor, _SIZE + PAGE) == _CONTENT
        # What is written now is seen now.
        mapper.do("ctypes.memset(START + 4096, 7, 4096)")
        assert _read_by_kernel(memfs, descriptor, 3 * PAGE, 0) == (
            _CONTENT[:PAGE] + b"\7" * PAGE + _CONTENT[2 * PAGE : 3 * PAGE]
        )
        with mmap.mmap(descriptor, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            assert view[PAGE : 2 * PAGE] == b"\7" * PAGE
            assert view[2 * PAGE :] == _CONTENT[2 * PAGE :]


def test_pages_are_spliced_from_the_object_itself(memfs: Mount, mapper: _Mapper, memfd: int) -> None:
    """A page that lies in a pipe is the target's own: what it writes there shows in the pipe."""
    mapper.do(f"show({_path(memfd)!r})")
    reader, writer = os.pipe()
    with opened(_file(memfs, mapper)) as descriptor:
        assert os.splice(descriptor, writer, PAGE, offset_src=PAGE) == PAGE
        mapper.do("ctypes.memset(START + 4096, 9, 4096)")
        assert os.read(reader, PAGE) == b"\x09" * PAGE
    os.close(reader)
    os.close(writer)


def test_holes_are_found_and_copied_as_holes(memfs: Mount, mapper: _Mapper, shm: Path) -> None:
    mapper.do("show('')")
    mapper.do("ctypes.memset(START + 4 * 1024 * 1024, 5, 1024 * 1024)")
    file = _file(memfs, mapper)
    with opened(file) as descriptor:
        assert _read_by_kernel(memfs, descriptor, PAGE, 5 * MIB - PAGE) == b"\5" * PAGE
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 4 * MIB
        assert os.lseek(descriptor, 4 * MIB, os.SEEK_HOLE) == 5 * MIB
    check("cp", "--sparse=auto", file, shm / "copy")
    copy = shm / "copy"
    assert (copy.stat().st_size, 512 * copy.stat().st_blocks) == (_SIZE, MIB)
    assert copy.read_bytes() == bytes(4 * MIB) + b"\5" * MIB + bytes(11 * MIB)


def test_only_the_part_that_is_mapped_is_shown(memfs: Mount, mapper: _Mapper, memfd: int) -> None:
    """Other offsets and other lengths than the object's are read by the daemon."""
    whole = _path(memfd)
    for size, offset in ((_SIZE - PAGE, 0), (_SIZE - PAGE, PAGE)):
        mapper.do("libc.munmap(ctypes.c_void_p(START), ctypes.c_size_t(SIZE))")
        mapper.do(f"show({whole!r}, SHARED, {size}, {offset})")
        with opened(_file(memfs, mapper)) as descriptor:
            assert _read_by_kernel(memfs, descriptor, PAGE, 0) is None
            assert read_all(descriptor, 2 * _SIZE) == _CONTENT[offset : offset + size]


def test_what_lies_behind_the_end_of_the_object_reads_as_zeros(
    memfs: Mount, mapper: _Mapper, memfd: int
) -> None:
    os.ftruncate(memfd, 12 * MIB - 100)
    mapper.do(f"show({_path(memfd)!r})")
    with opened(_file(memfs, mapper)) as descriptor:
        last = _CONTENT[12 * MIB - PAGE : 12 * MIB - 100] + bytes(100)
        assert os.pread(descriptor, PAGE, 12 * MIB - PAGE) == last
        assert os.pread(descriptor, PAGE, 12 * MIB) == bytes(PAGE)


def test_a_private_page_that_appears_after_the_open_is_seen(
    memfs: Mount, mapper: _Mapper, memfd: int
) -> None:
    mapper.do(f"show({_path(memfd)!r}, PRIVATE)")
    with opened(_file(memfs, mapper)) as descriptor:
        assert read_all(descriptor, _SIZE) == _CONTENT
        mapper.do("ctypes.memset(START + 3 * 4096, 8, 4096)")
        after = _CONTENT[: 3 * PAGE] + b"\x08" * PAGE + _CONTENT[4 * PAGE :]
        assert read_all(descriptor, _SIZE) == after


@pytest.mark.parametrize("end", ["unmap", "exec", "exit"])
def test_it_shows_the_object_as_long_as_it_is_open_and_odirect_gives_the_error(
    memfs: Mount, mapper: _Mapper, memfd: int, end: str
) -> None:
    mapper.do(f"show({_path(memfd)!r})")
    file = _file(memfs, mapper)
    with opened(file) as descriptor, opened(file, os.O_DIRECT) as direct:
        assert os.pread(direct, PAGE, 0) == _CONTENT[:PAGE]
        if end == "unmap":
            mapper.do("libc.munmap(ctypes.c_void_p(START), ctypes.c_size_t(SIZE))")
        elif end == "exec":
            mapper.send('os.execv("/bin/echo", ["echo", "{}"])')
            mapper.answer()
            mapper.reap()
        else:
            mapper.kill()
        os.pwrite(memfd, b"\6" * PAGE, 0)
        assert _answer(descriptor) == b"\6" * PAGE
        assert read_all(descriptor, _SIZE) == b"\6" * PAGE + _CONTENT[PAGE:]
        assert _answer(direct) == (errno.EIO if end == "unmap" else errno.ESRCH)
        with pytest.raises(OSError, match=r"."):
            os.lseek(descriptor, 0, os.SEEK_DATA)
    with pytest.raises(FileNotFoundError):
        os.open(file, os.O_RDONLY)


def test_an_inode_is_read_in_one_way_at_a_time(memfs: Mount, mapper: _Mapper, memfd: int) -> None:
    """Whoever is first decides: the kernel would refuse to mix the two."""
    mapper.do(f"show({_path(memfd)!r})")
    file = _file(memfs, mapper)
    with opened(file, os.O_DIRECT) as direct:
        mapped = mmap.mmap(direct, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
        with opened(file) as late:
            assert _read_by_kernel(memfs, late, PAGE, 0) is None
            assert os.pread(late, PAGE, PAGE) == _CONTENT[PAGE : 2 * PAGE] == os.pread(direct, PAGE, PAGE)
        mapped.close()
    # A reader in small pieces, for whom the kernel would read ahead into the page cache.
    digest = check("openssl", "dgst", "-sha256", "-r", file).split()[0]
    assert digest.decode() == hashlib.sha256(_CONTENT).hexdigest()
    _await_releases(memfs)
    with opened(file) as first, opened(file) as second, opened(file, os.O_DIRECT) as direct:
        for descriptor in (first, second):
            assert _read_by_kernel(memfs, descriptor, PAGE, PAGE) == _CONTENT[PAGE : 2 * PAGE]
        assert _read_by_kernel(memfs, direct, PAGE, 0) is None
        assert os.pread(direct, PAGE, PAGE) == _CONTENT[PAGE : 2 * PAGE]


def test_another_object_at_the_same_place_is_not_taken_for_the_first(
    memfs: Mount, mapper: _Mapper, memfd: int, shm: Path
) -> None:
    (shm / "other").write_bytes(_CONTENT[::-1])
    mapper.do(f"show({_path(memfd)!r})")
    with opened(_file(memfs, mapper)) as descriptor:
        mapper.do(f"show({str(shm / 'other')!r})")
        other = _file(memfs, mapper)
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            os.open(other, os.O_RDONLY)
        assert os.pread(descriptor, PAGE, 0) == _CONTENT[:PAGE]
    _await_releases(memfs)
    assert other.read_bytes() == _CONTENT[::-1]


def test_nothing_is_kept_of_an_object_when_its_last_reader_has_gone(
    memfs: Mount, mapper: _Mapper, tmp_path: Path
) -> None:
    place = tmp_path / "tmpfs"
    place.mkdir()
    check("mount", "-t", "tmpfs", "tmpfs", place)
    try:
        (place / "object").write_bytes(_CONTENT)
        mapper.do(f"show({str(place / 'object')!r})")
        for _ in range(3):
            with opened(_file(memfs, mapper)) as descriptor:
                assert read_all(descriptor, _SIZE) == _CONTENT
        mapper.kill()
        _await_releases(memfs)
    finally:
        check("umount", place)


def test_passthrough_off_leaves_every_read_to_the_daemon(tmp_path: Path, mapper: _Mapper, memfd: int) -> None:
    mapper.do(f"show({_path(memfd)!r})")
    with mounted(tmp_path, "passthrough=off") as memfs, opened(_file(memfs, mapper)) as descriptor:
        assert _read_by_kernel(memfs, descriptor, PAGE, 0) is None
        assert read_all(descriptor, _SIZE) == _CONTENT
        mapper.kill()
        assert _answer(descriptor) == errno.ESRCH
