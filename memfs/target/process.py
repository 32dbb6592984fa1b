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
import os
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as ReadOnlyDict
from typing import Self

from memfs.errors import AccessDenied, MemfsError, TargetExited, TargetReplaced
from memfs.linux.maps import Mapping, parse_maps
from memfs.linux.pagemap import MOST_RUNS, PageRun, Scanner, ensure_alive
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import Span
from memfs.linux.stat import TaskFlag
from memfs.linux.syscalls import read_process
from memfs.target.identity import Identity, ProcessHandle
from memfs.target.layout import Layout, make_layout, needs_flags
from memfs.target.mapsfile import MapsFile
from memfs.target.openfiles import OpenFiles, open_files
from memfs.target.origins import Device, has_unique_numbers, origins
from memfs.target.sameness import marks_of
from memfs.target.space import Space, unmapped
from memfs.target.swapped import SwapKeeper
from memfs.target.vmaflags import VmaFlags, VmaFlagsCache, read_flags

_LONG_BYTES = 1 << 17
"""From here on process_vm_readv and the question after it take less time than a read of /proc/PID/mem."""
_TRIES = 16
_WAITED_BYTES = 1


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
        self._frozen = frozen
        opened = open_files(ProcessHandle(identity), memory=memory, watched=watched, frozen=frozen)
        self._files: OpenFiles | None = opened.files
        self._process = opened.files.process
        self._thread = opened.thread
        self._watch = opened.watch
        self.stat = opened.stat
        self.mem = opened.files.mem
        self._pagemap = opened.files.pagemap
        self._maps = MapsFile(opened.files.maps, opened.thread)
        self._swap = SwapKeeper(self._process)

    def again(self) -> Self | None:
        """Share this space with another owner; None where it is closed or the program has changed.

        Both owners close theirs. A space that is watched cannot be shared.

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
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.close()
            self.mem = self._pagemap = -1
            self._maps = MapsFile(-1, 0)
            files.let_go()

    def gone(self) -> MemfsError:
        """Return the error for an mm that has no user any more: the process has ended, or has run exec."""
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
        """Whether :attr:`has_changed` is certain."""
        return self._frozen or self._watch is not None

    @property
    def has_changed(self) -> bool:
        """Whether the process has ended or may have another mm now; certain if :attr:`is_watched`.

        Where this is False, all that was read by the pid before belongs to the mm that was opened.
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
        try:
            return self._maps.text()
        except ProcessLookupError:
            raise self.gone() from None

    def layout(self) -> Layout:
        """Return all that is mapped now."""
        return self.layout_of(self.maps_text())

    def layout_of(self, maps_text: bytes) -> Layout:
        """Return all that was mapped when :meth:`maps_text` returned *maps_text*."""
        return self._classify(tuple(map(self._with_exact_path, parse_maps(maps_text))))

    def layout_over(self, span: Span) -> Layout:
        """Return the VMAs that meet *span* now; cheap where the process has many VMAs."""
        return self._classify(tuple(self.mappings_over(span, paths=True)))

    def _with_exact_path(self, mapping: Mapping) -> Mapping:
        """Query the path if it may be ambiguous: the text prints a newline and the bytes ``\\012`` alike."""
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

    def uses_now(self) -> ReadOnlyDict[int, MemoryUse]:
        try:
            uses = read_flags(self.identity).uses
        except (FileNotFoundError, ProcessLookupError):
            raise self.gone() from None
        self.ensure_same_program()
        return uses

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
        try:
            yield from self._maps.over(span, paths=paths)
        except ProcessLookupError:
            raise self.gone() from None

    @property
    def looks_quickly(self) -> bool:
        return self._maps.has_query

    def ensure_alive(self) -> None:
        try:
            ensure_alive(self._pagemap)
        except ProcessLookupError:
            raise self.gone() from None

    def beginning(self, addresses: list[int]) -> frozenset[int]:
        """Those of *addresses* at which a VMA begins.

        Raises:
            TargetExited, TargetReplaced: the mm is gone.
        """
        try:
            return self._maps.beginning(addresses)
        except ProcessLookupError:
            raise self.gone() from None

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
        """Return the tid of the main thread, or of another thread where that has ended: they share the mm.

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
        """Whether *thread* has been a tid of the process all the time, as that of the main thread has."""
        pid = self.identity.pid
        return thread == pid or os.path.exists(f"/proc/{pid}/task/{thread}")

    def ensure_unchanged(self, mapping: Mapping, mtime_ns: int, size_bytes: int) -> None:
        """Do nothing: a running process shows an object as it is."""

    def ensure_same_program(self) -> None:
        """Make sure, as far as possible, that what was just done by the pid was done to this mm.

        Without a watch, or where the watched thread has ended, the proof rests on addresses.

        Raises:
            TargetExited, TargetReplaced: it may have been done to another program.
        """
        self.ensure_alive()
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
