"""Two threads for one reader: beside it and elsewhere, for as long as it is so wished, on real CPUs."""

import errno
import os
import queue
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NoReturn

import pytest

from memfs.files import placement as module
from memfs.files.habits import ReadCounter
from memfs.files.handles import Handles, OpenFile
from memfs.files.placement import Placement
from memfs.fuse.options import SpliceMode
from memfs.fuse.service import Service
from memfs.image.source import Workspace
from memfs.image.text import Text
from memfs.linux.span import Span
from memfs.linux.stat import read_last_cpu

_ALL = os.sched_getaffinity(0)
pytestmark = pytest.mark.skipif(len(_ALL) < 2, reason="there is one CPU: nothing to choose")


@contextmanager
def _thread(cpu: int | None = None) -> Iterator[int]:
    """A thread that does nothing, and has run on *cpu* last; its number."""
    ready, end = threading.Event(), threading.Event()
    number = 0

    def run() -> None:
        nonlocal number
        number = threading.get_native_id()
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        ready.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        yield number
    finally:
        end.set()
        thread.join()
        while os.path.exists(f"/proc/self/task/{number}"):  # Python's join comes before the kernel's end
            os.sched_yield()


@pytest.fixture
def server() -> Iterator[int]:
    with _thread() as number:
        yield number


@pytest.fixture
def helper() -> Iterator[int]:
    with _thread() as number:
        yield number


@pytest.mark.parametrize("cpu", sorted(_ALL)[:2])
def test_one_is_beside_the_reader_and_the_other_is_not(server: int, helper: int, cpu: int) -> None:
    placement = Placement()
    with _thread(cpu) as reader:
        assert read_last_cpu(reader) == cpu
        placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) == {cpu}
    assert os.sched_getaffinity(helper) == _ALL - {cpu}
    placement.undo()
    assert os.sched_getaffinity(server) == os.sched_getaffinity(helper) == _ALL


def test_they_follow_the_reader_and_only_those_in_use_are_held(server: int, helper: int) -> None:
    placement = Placement()
    first, second = sorted(_ALL)[:2]
    with _thread(first) as reader, _thread(second) as moved, _thread() as other:
        placement.arrange(reader, server, helper)
        placement.arrange(moved, other, helper)
        assert os.sched_getaffinity(server) == _ALL
        assert os.sched_getaffinity(other) == {second}
        assert os.sched_getaffinity(helper) == _ALL - {second}
        placement.undo()


@pytest.mark.parametrize("error", [ProcessLookupError, FileNotFoundError, PermissionError])
def test_without_a_reader_to_be_seen_the_kernel_chooses(
    server: int, helper: int, error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    placement = Placement()
    with _thread(min(_ALL)) as reader:
        placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) != _ALL

    def fail(_: int) -> NoReturn:
        raise error

    monkeypatch.setattr(module, "read_last_cpu", fail)
    placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) == os.sched_getaffinity(helper) == _ALL


def test_a_reader_that_has_ended_has_no_cpu(server: int, helper: int) -> None:
    placement = Placement()
    with _thread(min(_ALL)) as reader:
        placement.arrange(reader, server, helper)
    placement.arrange(reader, server, helper)
    assert os.sched_getaffinity(server) == os.sched_getaffinity(helper) == _ALL


def test_no_cpu_is_used_that_is_not_ours(server: int, helper: int) -> None:
    """Whoever confines the process, with taskset(1) say, is obeyed: also at the end."""
    placement = Placement()
    first, second = sorted(_ALL)[:2]
    threads = 0, server, helper
    with _thread(second) as reader:
        placement.arrange(reader, server, helper)
        try:
            for thread in threads:
                os.sched_setaffinity(thread, {first})
            placement.undo()
            assert [os.sched_getaffinity(thread) for thread in threads] == [{first}] * 3
            placement.arrange(reader, server, helper)
            assert [os.sched_getaffinity(thread) for thread in threads] == [{first}] * 3
        finally:
            os.sched_setaffinity(0, _ALL)


def test_a_thread_that_has_ended_is_no_error(helper: int) -> None:
    placement = Placement()
    with _thread(min(_ALL)) as reader:
        with _thread() as ended:
            pass
        placement.arrange(reader, ended, helper)
        assert os.sched_getaffinity(helper) == _ALL


_READ = 15  # enum fuse_opcode
_BLOCK = 1 << 20


class _Endless(Text):
    """Bytes without number that cost nothing to read, and that never change."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.size_bytes = 1 << 60
        self.keeps = True

    def read_into(self, offset: int, view: memoryview, workspace: Workspace) -> int:  # noqa: ARG002 a Source's
        return len(view)


class _Desk:
    """Nobody asks for names."""

    handlers: ClassVar[dict[int, object]] = {}

    def tidy(self) -> bool:
        """Nothing is kept."""
        return False


class _Device:
    """Stands for the switch and for the device: what comes from the kernel, and what goes back to it."""

    device = -1

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._position = 0

    def readv(self, _: int, room: Sequence[memoryview]) -> int:
        request = self._requests.get()
        if not request:
            raise OSError(errno.ENODEV, "unmounted")
        room[0][: len(request)] = request
        return len(request)

    def reply(self, frame: memoryview) -> None:
        self._replies.put(len(frame))

    def read(self, handle: int) -> None:
        """READ what comes next in an open file, for the thread that calls."""
        caller = threading.get_native_id()
        request = struct.pack("=IIQ16xI4x", 80, _READ, 2, caller)
        request += struct.pack("=QQI20x", handle, self._position, _BLOCK)
        self._position += _BLOCK
        self._requests.put(request)
        assert self._replies.get(timeout=30) == 16 + _BLOCK

    def drop_pages(self, inode: int, span: Span) -> None:
        """Nothing is cached here."""

    def end(self) -> None:
        """The file system is unmounted."""
        self._requests.put(b"")


def test_a_busy_reader_is_served_beside_it_and_read_ahead_for_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, handles, ended = _Device(), Handles(), threading.Event()
    monkeypatch.setattr(os, "readv", device.readv)
    service = Service(
        device,  # type: ignore[arg-type] all that it uses
        handles,
        splice=SpliceMode.OFF,
        latency=None,
        on_end=ended.set,
    )
    number = handles.add(OpenFile(_Endless(), ReadCounter(b"dd", uses_cache=False)))
    service.start(_Desk())  # type: ignore[arg-type] all that is asked of it
    cpu = min(_ALL)
    os.sched_setaffinity(0, {cpu})
    try:
        arranged = {cpu}, _ALL - {cpu}
        deadline = time.monotonic() + 30
        while (_cpus(service._leader.thread), _cpus(service._ahead.thread)) != arranged:
            assert time.monotonic() < deadline
            device.read(number)
        while _cpus(service._leader.thread) != _ALL or _cpus(service._ahead.thread) != _ALL:
            assert time.monotonic() < deadline
    finally:
        os.sched_setaffinity(0, _ALL)
        device.end()
    assert ended.wait(30)


def _cpus(thread: int) -> set[int]:
    """Those that a thread may use; a number of 0 would mean this one."""
    return set(os.sched_getaffinity(thread)) if thread else set()
