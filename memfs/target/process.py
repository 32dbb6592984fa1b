"""The address space of a process, held open.

Each descriptor here belongs to the mm that the process had when it was opened, not to the pid: after
an exec they show nothing, never the new program. That is why bytes are read from /proc/PID/mem, and by
process_vm_readv(2), which follows the pid, only where the kernel then says that no exec lies between
(:mod:`memfs.linux.execwatch`; docs/architecture.md has the figures, and what was tried instead).

The kernel's checks are those of ptrace(2): PTRACE_MODE_READ for maps, pagemap and smaps,
PTRACE_MODE_ATTACH for mem; all at open.
"""

import contextlib
import copy
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as ReadOnlyDict
from typing import Self

import attrs

from memfs.errors import AccessDenied, MemfsError, TargetExited, TargetReplaced
from memfs.linux import procfs
from memfs.linux.execwatch import ExecWatch
from memfs.linux.maps import Mapping, MappingQuery, parse_maps
from memfs.linux.pagemap import MOST_RUNS, PageRun, Scanner
from memfs.linux.smaps import MemoryUse, parse_smaps
from memfs.linux.span import Span
from memfs.linux.stat import TaskFlag
from memfs.linux.syscalls import read_process
from memfs.target.access import why_denied
from memfs.target.identity import Identity, ProcessHandle, path_of, read_timed
from memfs.target.kept import Kept
from memfs.target.layout import Layout, make_layout, needs_flags
from memfs.target.origins import Device, has_unique_numbers, origins
from memfs.target.sameness import marks_of
from memfs.target.space import Space, unmapped
from memfs.target.swapped import SwapKeeper

_LONG_BYTES = 1 << 17
"""From here on process_vm_readv and the question after it take less time than a read of /proc/PID/mem."""
_TRIES = 16
_WAITED_BYTES = 1


@attrs.frozen
class VmaFlags:
    """What only smaps tells: each VMA's use and flags, by its start address.

    Attributes:
        fetched: VMAs whose missing pages a userfaultfd supplies. A page that is not there may have
            any content, so it is no hole.
        longest_read_us: how long the longest read of smaps took: so long may a thread of the process that
            wanted to map or unmap memory have waited for us.
    """

    uses: ReadOnlyDict[int, MemoryUse]
    fetched: tuple[Span, ...]
    longest_read_us: int


class VmaFlagsCache:
    """The flags of the VMAs of processes, kept for a while.

    The kernel walks every page table of the process to print smaps: 13 ms for each GiB of small pages.
    """

    def __init__(self) -> None:
        self._kept: Kept[Identity, VmaFlags] = Kept()

    def get(self, identity: Identity, *, must_know: tuple[int, ...] = ()) -> VmaFlags:
        """The flags of the process's VMAs, read anew if they are old or lack one of *must_know*."""
        return self._kept.get(
            identity,
            lambda: _read_flags(identity),
            lambda flags: all(map(flags.uses.__contains__, must_know)),
        )

    def pin(self, identity: Identity) -> VmaFlags:
        """Read them, and keep them from now on: the process is about to be stopped and cannot wait."""
        flags = _read_flags(identity)
        self._kept.pin(identity, flags)
        return flags


def _read_flags(identity: Identity) -> VmaFlags:
    text, longest_ns = read_timed(identity.pid, "smaps")
    uses = {use.start: use for use in parse_smaps(text)}
    fetching = [use.start for use in uses.values() if b"um" in use.flags]
    spans = {}
    if fetching:
        spans = {m.span.start: m.span for m in parse_maps(text)}
    return VmaFlags(uses, tuple(spans[start] for start in fetching), longest_ns // 1000)


class _Files:
    """What is open of one mm: closed by the last who holds it."""

    def __init__(self, process: ProcessHandle) -> None:
        self.process = process
        self._descriptors: list[int] = []
        self._holders = 1
        self._lock = threading.Lock()

    def add(self, fd: int) -> int:
        """Take *fd* over; returns it."""
        self._descriptors.append(fd)
        return fd

    def clear(self) -> None:
        """Close the descriptors, but not the handle of the process."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def hold(self) -> bool:
        """Hold it once more; False where it is closed already."""
        with self._lock:
            if not self._holders:
                return False
            self._holders += 1
            return True

    def let_go(self) -> None:
        """Undo one hold."""
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self.clear()
            self.process.close()


class AddressSpace(Space):
    """One mm of a running process, held open.

    Attributes:
        mem: descriptor of ``/proc/PID/mem``; -1 where it was opened without memory.
    """

    waits = True

    def __init__(
        self,
        identity: Identity,
        flags: VmaFlagsCache,
        *,
        memory: bool,
        watched: bool = False,
        frozen: bool = False,
        own_device: Device | None = None,
    ) -> None:
        """Open the address space that *identity* has now.

        Args:
            memory: open it to read its bytes too.
            watched: watch the process for an exec, which makes long reads faster. Where nothing was
                watched before, the kernel takes 10 ms to begin with it.
            frozen: it is a frozen copy of ours, which never runs, and so never runs exec.
            own_device: of the mount: what the process maps of that file system is left alone.

        Raises:
            TargetExited: the process has ended.
            TargetReplaced: it runs one program after another.
            AccessDenied: the ptrace access check refuses us.
        """
        self.identity = identity
        self._flags = flags
        self._own_device = own_device
        self._queries = True
        self._frozen = frozen
        self._thread = identity.pid
        self._watch: ExecWatch | None = None
        self.mem = self._pagemap = self._maps = -1
        self._process = ProcessHandle(identity)
        self._files: _Files | None = _Files(self._process)
        self._swap = SwapKeeper(self._process)
        try:
            self._open_all(memory, watched)
        except BaseException:
            self.close()
            raise

    def _open_all(self, memory: bool, watched: bool) -> None:
        # The descriptors are opened one by one, and an exec may come between two of them. Then they
        # would belong to two programs. Or the thread by which they are opened ends, and they show nothing.
        # So look whether both are still the same, or try again.
        files = self._files
        assert files is not None
        before = self._process.ensure_same()
        for _ in range(_TRIES):
            self._thread = before.thread
            self._watch = _try_to_watch(before.thread) if watched else None
            opened = self._try_to_open(files, memory)
            self.stat = self._process.ensure_same()
            if not opened and not self.stat.has_memory:
                raise TargetExited(f"process {self.identity.pid} is ending")
            same = before.same_program(self.stat) and before.thread == self.stat.thread
            if opened and same and not (self.is_watched and self.has_changed):
                return
            before = self.stat
            self._close_watch()
            files.clear()
        raise TargetReplaced(f"process {self.identity.pid} runs one program after another", "try again")

    def _try_to_open(self, files: _Files, memory: bool) -> bool:
        """Open the files of the thread; False where it has ended."""
        try:
            self._maps = files.add(self._open("maps"))
            self._pagemap = files.add(self._open("pagemap"))
            if memory:
                self.mem = files.add(self._open("mem"))
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def _open(self, name: str) -> int:
        pid = self.identity.pid
        try:
            return os.open(path_of(pid, self._thread, name), os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            reason = why_denied(self._thread)
            raise AccessDenied(f"process {pid} may not be read: {reason.cause}", reason.mend) from None

    def again(self) -> Self | None:
        """The same, for someone else who closes it; None where it was closed, or the program has changed.

        Not for a space that is watched.

        Raises:
            TargetExited: the process has ended.
        """
        # Someone else may close this one meanwhile: the copy is of one moment, in which it was open or not.
        again = copy.copy(self)
        files = again._files
        if files is None or not files.hold():
            return None
        try:
            now = self._process.ensure_same()
        except BaseException:
            again.close()
            raise
        if now.same_program(self.stat) and now.thread == self._thread:
            return again
        again.close()
        return None

    def close(self) -> None:
        """Give all descriptors back; a second call does nothing."""
        files, self._files = self._files, None
        if files is not None:
            self._close_watch()
            self.mem = self._pagemap = self._maps = -1
            files.let_go()

    def _close_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def gone(self) -> MemfsError:
        """The error for an mm that has no user any more: has the process ended, or exec'ed?"""
        pid = self.identity.pid
        try:
            stat = self._process.ensure_same()
        except TargetExited as error:
            return error
        if stat.flags & TaskFlag.EXITING or not stat.has_memory:
            return TargetExited(f"process {pid} is ending")
        return TargetReplaced(f"process {pid} has exec'ed another program")

    @property
    def is_watched(self) -> bool:
        """Whether it is known at any moment if the process still has the mm that was opened."""
        return self._frozen or self._watch is not None

    @property
    def has_changed(self) -> bool:
        """Whether the process may have another mm now, or has ended: the kernel's word, if is_watched.

        What was read by the pid before this is answered with False belongs to the mm that was opened.
        """
        if self._frozen:
            return self._process.exited
        return self._watch is None or self._watch.tripped

    @property
    def pagemap(self) -> int:
        """Descriptor of its ``/proc/PID/pagemap``."""
        return self._pagemap

    def maps_text(self) -> bytes:
        """The text of ``/proc/PID/maps``.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        with contextlib.suppress(ProcessLookupError):
            if text := procfs.read_whole(self._maps):
                return text
        raise self.gone()

    def layout(self) -> Layout:
        """All that is mapped now."""
        return self.layout_of(self.maps_text())

    def layout_of(self, maps_text: bytes) -> Layout:
        """All that was mapped when :meth:`maps_text` was asked."""
        return self._classify(tuple(map(self._with_exact_path, parse_maps(maps_text))))

    def layout_over(self, span: Span) -> Layout:
        """What is mapped now in *span* and meets it; cheap where the process has many VMAs."""
        return self._classify(tuple(self.mappings_over(span, paths=True)))

    def _with_exact_path(self, mapping: Mapping) -> Mapping:
        """The text prints a newline as ``\\012``, and so does it print those four bytes: ask which it is."""
        if b"\n" not in mapping.path:
            return mapping
        return next(self.mappings_over(mapping.span, paths=True), mapping)

    def _classify(self, mappings: tuple[Mapping, ...]) -> Layout:
        found = origins().find(self._living_thread, mappings)
        in_doubt = tuple(m.span.start for m in mappings if needs_flags(m, found.of(m)))
        uses: ReadOnlyDict[int, MemoryUse] = {}
        if in_doubt:
            uses = self._read_flags(in_doubt).uses
        return make_layout(mappings, found, uses, self._own_device)

    def uses(self) -> ReadOnlyDict[int, MemoryUse]:
        return self._read_flags(()).uses

    def is_fetched(self, span: Span) -> bool:
        """Whether a userfaultfd supplies missing pages in some part of *span*."""
        return any(span.clip(fetched) for fetched in self._read_flags(()).fetched)

    def _read_flags(self, must_know: tuple[int, ...]) -> VmaFlags:
        try:
            return self._flags.get(self.identity, must_know=must_know)
        except (FileNotFoundError, ProcessLookupError):
            raise self.gone() from None

    def mappings_over(self, span: Span, *, paths: bool = False) -> Iterator[Mapping]:
        """The VMAs that meet *span* at this moment, in order; with their *paths* only if asked for.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        if self._queries:
            try:
                yield from self._query_over(span, paths)
            except OSError as error:
                if error.errno == errno.ENOTTY:  # before Linux 6.11
                    self._queries = False
                elif error.errno != errno.ENAMETOOLONG:  # the query knows no path above PATH_MAX
                    raise
            else:
                return
        for mapping in parse_maps(self.maps_text()):
            if mapping.span.clip(span):
                yield mapping

    def beginning(self, addresses: list[int]) -> frozenset[int]:
        """Those of *addresses* at which a VMA begins.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        wanted = frozenset(addresses)
        if not self._queries:
            return wanted.intersection(found.span.start for found in parse_maps(self.maps_text()))
        return wanted.intersection(
            found.span.start for at in addresses for found in self.mappings_over(Span(at, at + 1))
        )

    def _query_over(self, span: Span, paths: bool) -> Iterator[Mapping]:
        query = MappingQuery(self._maps, paths=paths)
        at = span.start
        while at < span.end:
            try:
                mapping = query.at(at)
            except ProcessLookupError:
                raise self.gone() from None
            if mapping is None or mapping.span.start >= span.end:
                return
            yield mapping
            at = mapping.span.end

    def pages(
        self, span: Span, scanner: Scanner, limit: int = MOST_RUNS, *, files: bool = False
    ) -> Iterator[PageRun]:
        """What the page tables know of *span* now, see :meth:`Scanner.runs`.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        try:
            yield from scanner.runs(self._pagemap, span, limit, files=files)
        except ProcessLookupError:
            raise self.gone() from None

    def held_end(self, start: int, end: int, scanner: Scanner) -> int:
        try:
            return scanner.held_end(self._pagemap, start, end)
        except ProcessLookupError:
            raise self.gone() from None

    def read_waiting(self, address: int, view: memoryview) -> int:
        """Read pages that a userfaultfd supplies, waiting for it; returns how many bytes came.

        A read of ``/proc/PID/mem`` does not wait, and process_vm_readv does, but follows the pid. So the
        one is used to wait, and what it read is thrown away; the bytes come from the other.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
            RangeUnmapped: nothing can be read there.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(OSError):
                read_process(self.objects_pid, (address, memoryview(bytearray(_WAITED_BYTES))))
            with contextlib.suppress(OSError):
                if copied := os.preadv(self.mem, (view,), address):
                    return copied
            next(self.mappings_over(Span(address, address + 1)), None)
        raise unmapped(address)

    def expect_swapped(self, spans: Sequence[Span], *, ahead: bool) -> None:
        self._swap.expect(spans, ahead=ahead)

    def put_back(self, spans: Sequence[Span]) -> None:
        self._swap.put_back(spans)

    def read_present(self, address: int, view: memoryview) -> bool:
        """Copy pages that are known to be there; False where *view* must be filled in some other way.

        process_vm_readv copies once where a read of ``/proc/PID/mem`` copies twice, by way of a page of
        the kernel's. But it follows the pid: so it is used only where the kernel says afterwards that no
        exec lies between, and only a long copy is worth that question. Where there is doubt, all of it is
        read again, from the mm.
        """
        if len(view) >= _LONG_BYTES and self.is_watched:
            with contextlib.suppress(OSError):
                if read_process(self._thread, (address, view)) == len(view) and not self.has_changed:
                    return True
        return super().read_present(address, view)

    def open_backing(self, mapping: Mapping) -> int:
        """Open the object that *mapping* shows: a file, a memfd, shared memory. The caller closes it.

        Not for what is served by someone else: that open may never end.

        Raises:
            OSError: it cannot be had; then its pages are read through the address space.
            MemfsError: as :meth:`ensure_shows`.
        """
        fd = origins().open(self.objects_pid, mapping)
        try:
            self.ensure_shows(mapping)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @property
    def objects_pid(self) -> int:
        return self._living_thread()

    def _living_thread(self) -> int:
        """The main thread, or another one where that has ended: it has the same memory.

        Raises:
            TargetExited: the process has ended.
        """
        if not self._frozen and (self._watch is None or self._watch.tripped):
            self._thread = self._process.ensure_same().thread
        return self._thread

    def ensure_shows(self, mapping: Mapping) -> None:
        """Make sure that what was just opened or read by the pid is what this mm shows at *mapping*.

        Where numbers are unique, an object that has the same is the same, while both are there. Else the
        program must be the same, too.

        Raises:
            RangeUnmapped: it is mapped there no more.
            TargetExited, TargetReplaced: it may be another program's.
        """
        now = next(self.mappings_over(mapping.span), None)
        if now is None or not now.same_memory(mapping) or not self._has(self._thread):
            raise unmapped(mapping.span.start)
        if not has_unique_numbers(mapping):
            self.ensure_same_program()

    def _has(self, thread: int) -> bool:
        """Whether that number has been a thread of the process all the time; the main thread's always is."""
        pid = self.identity.pid
        return thread == pid or os.path.exists(f"/proc/{pid}/task/{thread}")

    def ensure_unchanged(self, mapping: Mapping, mtime_ns: int, size_bytes: int) -> None:
        """A running process shows an object as it is."""

    def ensure_same_program(self) -> None:
        """Make sure that what was just done by the pid was done to this mm, as far as can be told.

        Without a watch, or where the thread has ended that was watched, the answer rests on addresses.

        Raises:
            TargetExited, TargetReplaced: it may have been done to another program.
        """
        next(self.mappings_over(Span(0, 1)), None)
        now = self._process.ensure_same()
        same = now.same_program(self.stat)
        if self.is_watched and self.has_changed:
            same = same and now.thread != self.stat.thread
        if not same or not ((self.is_watched and not self.has_changed) or self._has_same_marks()):
            raise TargetReplaced(f"process {self.identity.pid} has exec'ed another program")

    def _has_same_marks(self) -> bool:
        """Whether what the pid maps now is marked as this mm is, see :mod:`memfs.target.sameness`."""
        try:
            now = AddressSpace(self.identity, self._flags, memory=False)
        except AccessDenied:
            return False
        with now:
            return marks_of(now) == marks_of(self)


def _try_to_watch(tid: int) -> ExecWatch | None:
    try:
        return ExecWatch(tid)
    except OSError:
        return None
