"""Mapped files that someone else serves, read so that no one waits for them without end.

What the page tables know is there, and is read as memory. For the rest the file must be opened and read,
which may last for ever: a process of its own does both (`memfs.image.servant`), and is given up when it is
late. What could not be had by then is an error, never zeros.
"""

import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from memfs.errors import NoAnswer, RangeUnmapped
from memfs.image.servant import Copy, CopyPart, FileQuery, Forget, ServedState
from memfs.image.source import Piece, Workspace
from memfs.linux import wire
from memfs.linux.pagemap import PageKind, Scanner
from memfs.linux.span import Span, tiles
from memfs.target.layout import Region
from memfs.target.origins import Device
from memfs.target.space import Space

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""How long to wait for an answer. A file system that takes longer is taken for one that never answers."""
_START_S = 30.0
"""The same for a program of ours to start, on a machine that has other things to do."""
_SILENT_S = 10.0
"""For how long no one else is let wait for a file system that did not answer."""
_MOST_IDLE = 2


class ServedFiles:
    """The served files of one address space. Many threads ask; each waits for those before it."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._closing = threading.Event()

    def close(self) -> None:
        """Let the process go; a second call does nothing. A request under way fails."""
        self._closing.set()
        channel = self._channel
        if self._lock.acquire(blocking=False):
            try:
                self._let_go(ready=True)
            finally:
                self._lock.release()
        elif channel is not None:
            with contextlib.suppress(OSError):
                channel.shutdown(
                    socket.SHUT_RDWR
                )  # wakes the thread that waits for an answer, and that closes the channel

    def look(self, region: Region) -> ServedState:
        """What is known of the file that *region* shows.

        Raises:
            RangeUnmapped: it cannot be had, or not in time.
        """
        answer = self._ask(region, FileQuery(self._space.objects_pid, region.mapping), [])
        assert isinstance(answer, ServedState)
        return answer

    def pieces(self, region: Region, part: Span, workspace: Workspace) -> list[Piece]:
        """The pieces that tile *part* of *region*: copied for us into the scratch file of *workspace*.

        Raises:
            RangeUnmapped: some of it cannot be had, or not in time.
        """
        swapped: list[Span] = []
        parts = list(self._parts(region, part, workspace.scanner, swapped))
        asks_server = any(kind is PageKind.UNTOUCHED for _, kind in parts)
        if asks_server and not region.mapping.shared and not self._space.waits:
            state = self.look(region)
            self._space.ensure_unchanged(region.mapping, state.mtime_ns, state.size_bytes)
        to_scratch = workspace.take_scratch(part.size) - part.start
        wanted = tuple(
            CopyPart(span.start, span.size, span.start + to_scratch, in_memory=kind is PageKind.OWN)
            for span, kind in parts
            if kind is not PageKind.EMPTY
        )
        if swapped:
            self._space.expect_swapped(swapped, ahead=False)
        try:
            self._copy(region, wanted, workspace.scratch, asks_server=asks_server)
        except BaseException:
            workspace.drop_scratch()
            raise
        finally:
            if swapped:
                self._space.put_back(swapped)
        return [
            Piece(span.size, None, 0, cached=False)
            if kind is PageKind.EMPTY
            else Piece(span.size, workspace.scratch, span.start + to_scratch, cached=False)
            for span, kind in parts
        ]

    def _parts(
        self, region: Region, part: Span, scanner: Scanner, swapped: list[Span]
    ) -> Iterator[tuple[Span, PageKind]]:
        """Cut *part*: OWN is what the page tables hold, EMPTY zeros, UNTOUCHED what only the server has.

        What is held but swapped out is added to *swapped*.
        """
        private = not region.mapping.shared
        runs = self._space.pages(part.page_aligned(), scanner, files=True)
        known = (run for run in runs if run.held or (run.kind is PageKind.EMPTY and private))
        for span, run in tiles(part, known):
            if run is None:
                yield span, PageKind.UNTOUCHED
                continue
            if run.swapped:
                swapped.append(span.page_aligned())
            yield span, PageKind.OWN if run.held else PageKind.EMPTY

    def _copy(self, region: Region, parts: tuple[CopyPart, ...], into: int, *, asks_server: bool) -> None:
        look = FileQuery(self._space.objects_pid, region.mapping)
        self._ask(region, Copy(look, parts), [into, self._space.mem], asks_server=asks_server)

    def _ask(
        self, region: Region, request: FileQuery | Copy, descriptors: list[int], *, asks_server: bool = True
    ) -> object:
        device = region.mapping.device
        with self._lock:
            if self._closing.is_set() or (asks_server and _servants.is_silent(device)):
                raise _silent(region)
            try:
                channel = self._channel = self._channel or _servants.take()
            except OSError as error:
                raise RangeUnmapped(f"{_path(region)} cannot be read: {error.strerror}") from error
            try:
                channel.settimeout(PATIENCE_S)
                wire.send(channel, request, descriptors)
                answer, _ = wire.receive(channel)
            except (OSError, EOFError):
                self._let_go(ready=False)
                if not self._closing.is_set():
                    _servants.note_silent(device)
                    log.warning("%s", _silent(region))
                raise _silent(region) from None
            if self._closing.is_set():
                self._let_go(ready=True)
        if isinstance(answer, int):
            raise RangeUnmapped(f"{_path(region)} cannot be read: {os.strerror(answer)}")
        self._space.ensure_shows(region.mapping)
        return answer

    def _let_go(self, *, ready: bool) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and ready:
            _servants.give_back(channel)
        elif channel is not None:
            channel.close()


def _path(region: Region) -> str:
    return region.mapping.path.decode(errors="backslashreplace")


def _silent(region: Region) -> NoAnswer:
    return NoAnswer(
        f"the file system of {_path(region)} did not answer within {PATIENCE_S:g} s",
        "what its process has not touched cannot be read: see to the server, and open the file again",
    )


class _Servants:
    """Idle processes, since starting one takes a tenth of a second; and file systems that do not answer."""

    def __init__(self) -> None:
        self._idle: list[socket.socket] = []
        self._silent: dict[Device, float] = {}

    def is_silent(self, device: Device) -> bool:
        """Whether the file system on *device* let someone wait in vain just now: no one else need."""
        return self._silent.get(device, 0.0) > time.monotonic()

    def note_silent(self, device: Device) -> None:
        """It has just done so."""
        now = time.monotonic()
        self._silent = {known: until for known, until in self._silent.items() if until > now}
        self._silent[device] = now + _SILENT_S

    def take(self) -> socket.socket:
        """One that is ready, or a new one.

        Raises:
            OSError: none can be started.
        """
        while self._idle:
            channel = self._idle.pop()
            try:
                channel.setblocking(False)
                wire.receive(channel)
            except (OSError, EOFError):  # it is still closing files, which may last for ever as well
                channel.close()
            else:
                return channel
        return _start()

    def give_back(self, channel: socket.socket) -> None:
        """Keep one that has answered all that it was asked."""
        try:
            wire.send(channel, Forget())
        except OSError:
            channel.close()
            return
        self._idle.append(channel)
        if len(self._idle) > _MOST_IDLE:
            self._idle.pop(0).close()


_servants = _Servants()

# Not by -m: then the module's classes would be there twice, and pickle knows them apart.
_PROGRAM = "from memfs.image.servant import main; main()"


def _start() -> socket.socket:
    """Start a process; its end of the socket is all that it has of ours.

    Raises:
        OSError: it cannot be started, or does not come up in time.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            # It forks and ends at once, so that no one need wait for the one that stays.
            status = subprocess.call(
                (sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                timeout=_START_S,
            )
        if status:
            raise OSError(errno.EIO, f"the process that reads served files ended with status {status}")
        ours.settimeout(_START_S)
        wire.receive(ours)
    except (subprocess.TimeoutExpired, EOFError):
        ours.close()
        raise OSError(errno.EIO, "the process that reads served files does not start") from None
    except BaseException:
        ours.close()
        raise
    return ours
