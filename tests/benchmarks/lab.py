"""What the rows work on: the mounts, the targets and a directory on a tmpfs, each made when first asked for.

One owner of them all, so that one unwinding ends them all, in whatever way the run ends.
"""

import contextlib
import functools
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from commands import CommandFailed
from mounts import bare_mount, memfs_mount, plain_mount, tmpfs_mount
from target import MIB, SPARSE_RUN_BYTES, SPARSE_RUNS
from vm_readv import RemoteReader

_TARGET = Path(__file__).with_name("target.py")
Peer = Callable[[Path, int, int, int], contextlib.AbstractContextManager[Path]]
"""What mounts a range of a process: directory, pid, start and size; gives the file."""
_twice_bare_mount = functools.partial(bare_mount, loops=2)
_SPARE_BYTES = 256 * MIB
_END_S = 30
MOST_READERS = 16


@attrs.frozen
class Scale:
    """How much there is of everything."""

    private_bytes: int = 2048 * MIB
    shared_bytes: int = 1024 * MIB
    reserved_bytes: int = 65536 * MIB
    untouched_bytes: int = 1 << 40
    pack_bytes: int = 128 * MIB
    random_reads: int = 20_000

    @property
    def touched_bytes(self) -> int:
        """Of what is reserved."""
        return SPARSE_RUNS * SPARSE_RUN_BYTES


@attrs.frozen
class Memory:
    """A range of a process that is a VMA of its own.

    Attributes:
        file: it in the mount of memfs.
    """

    pid: int
    start: int
    size_bytes: int
    file: Path

    @functools.cache  # noqa: B019 there are few of them
    def sha256(self) -> str:
        """The digest of its content, computed without memfs."""
        reader = RemoteReader(self.pid, MIB)
        digest = hashlib.sha256()
        for done in range(0, self.size_bytes, MIB):
            digest.update(reader.read(self.start + done, min(MIB, self.size_bytes - done)))
        return digest.hexdigest()


class Target:
    """A process of `target.KINDS`: it ends with the context, and with us however we end."""

    def __init__(self, kind: str, size: int) -> None:
        # A session of its own: Ctrl-C is for us, and the target sees the end of its stdin.
        self._process = subprocess.Popen(
            [sys.executable, str(_TARGET), kind, str(size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._answer = self._process.stdout
        self._kind = kind

    @property
    def pid(self) -> int:
        """Its pid."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def is_ready(self) -> bool:
        """Whether `start` would not wait."""
        return bool(select.select([self._answer], [], [], 0)[0])

    def start(self) -> int:
        """Wait until it has made what it was to make; returns where its memory begins.

        Raises:
            CommandFailed: it could not.
        """
        line = self._answer.readline()
        if not line:
            raise CommandFailed(f"the target {self._kind} failed, status {self._process.wait()}")
        return int(json.loads(line)["start"])


class Lab:
    """Owns all that a run needs, for as long as its context lasts."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="memfs-bench-"))
            # Not a whole tree: were a mount left in it, its files would not be ours.
            stack.callback(_remove, directory)
            self._directory = directory
            self.memfs = stack.enter_context(memfs_mount(directory))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            self._stack.close()

    @functools.cached_property
    def scratch(self) -> Path:
        """A tmpfs with room for the largest copy, beside what :meth:`copy_of` makes."""
        largest_bytes = max(self.scale.private_bytes, self.scale.touched_bytes)
        kept_bytes = self.scale.private_bytes + self.scale.shared_bytes
        room_bytes = largest_bytes + kept_bytes + _SPARE_BYTES
        return self._stack.enter_context(tmpfs_mount(self._directory, room_bytes))

    @functools.cached_property
    def private(self) -> Memory:
        """4 KiB pages."""
        return self._memory("private", self.scale.private_bytes)

    @functools.cached_property
    def huge(self) -> Memory:
        """Transparent huge pages."""
        return self._memory("huge", self.scale.private_bytes)

    @functools.cached_property
    def shared(self) -> Memory:
        """Shared anonymous memory."""
        return self._memory("shared", self.scale.shared_bytes)

    @functools.cached_property
    def sparse(self) -> Memory:
        """Much reserved, little touched."""
        return self._memory("sparse", self.scale.reserved_bytes)

    @functools.cached_property
    def sparse_for_dd(self) -> Memory:
        """The same for a reader who touches every page of it: he leaves it with page tables all over."""
        return self._memory("sparse", self.scale.reserved_bytes)

    @functools.cached_property
    def untouched(self) -> Memory:
        """A mapping of which only the last page was ever touched."""
        return self._memory("untouched", self.scale.untouched_bytes)

    @functools.cached_property
    def pack(self) -> tuple[Memory, ...]:
        """Private memory of several processes."""
        return tuple(self._memory("private", self.scale.pack_bytes) for _ in range(MOST_READERS))

    @functools.cached_property
    def dense(self) -> Memory:
        """As much as `sparse` has touched, in one piece."""
        return self._memory("private", self.scale.touched_bytes)

    @functools.cached_property
    def _many(self) -> dict[int, int]:
        return {}

    def many(self, vmas: int) -> int:
        """The pid of a process with that many VMAs."""
        if vmas not in self._many:
            self._many[vmas] = self._started("many", vmas)[0]
        return self._many[vmas]

    @functools.cached_property
    def _crowd(self) -> contextlib.ExitStack:
        return self._stack.enter_context(contextlib.ExitStack())

    def crowd(self, processes: int) -> int:
        """The pid of the parent of that many processes; a crowd that was there before has gone."""
        self._crowd.close()
        target = self._crowd.enter_context(Target("crowd", processes))
        target.start()
        return target.pid

    @functools.cached_property
    def _peer_files(self) -> dict[tuple[Peer, Memory], Path]:
        return {}

    def _peer_file(self, peer: Peer, memory: Memory) -> Path:
        if (peer, memory) not in self._peer_files:
            self._peer_files[peer, memory] = self._stack.enter_context(
                peer(self._directory, memory.pid, memory.start, memory.size_bytes)
            )
        return self._peer_files[peer, memory]

    def plain_file(self, memory: Memory) -> Path:
        """*memory* served by pyfuse3 alone."""
        return self._peer_file(plain_mount, memory)

    def bare_file(self, memory: Memory) -> Path:
        """*memory* served by the shortest loop that speaks FUSE."""
        return self._peer_file(bare_mount, memory)

    def twice_bare_file(self, memory: Memory) -> Path:
        """*memory* served by two such loops, processes that share the device."""
        return self._peer_file(_twice_bare_mount, memory)

    def copy_of(self, memory: Memory) -> Path:
        """A file with the same bytes on a tmpfs: no mount is in its way."""
        path = self.scratch / f"copy-of-{memory.pid}"
        if not path.exists():
            shutil.copyfile(memory.file, path)
        return path

    def twin(self, directory: Path) -> Path:
        """A directory on the tmpfs with an empty file for each name in *directory*."""
        twin = self.scratch / f"twin-{directory.parent.name}"
        if not twin.exists():
            twin.mkdir()
            for name in os.listdir(directory):
                (twin / name).touch()
        return twin

    def _started(self, kind: str, size: int) -> tuple[int, int]:
        target = self._stack.enter_context(Target(kind, size))
        return target.pid, target.start()

    def _memory(self, kind: str, size_bytes: int) -> Memory:
        pid, start = self._started(kind, size_bytes)
        name = f"{start:012x}-{start + size_bytes:012x}_rw-[ps]_*"
        found = list((self.memfs.path / str(pid) / "vmas").glob(name))
        if len(found) != 1 or found[0].stat().st_size != size_bytes:
            raise CommandFailed(f"expected one file {name} of {size_bytes} bytes for the target {kind}")
        return Memory(pid, start, size_bytes, found[0])


def _remove(directory: Path) -> None:
    for left in directory.iterdir():
        if left.is_file():
            left.unlink()
    os.rmdir(directory)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits: what is being taken down is taken down whole."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
