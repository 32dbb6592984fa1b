"""The stop: everything between the moment in which a process stands still and that in which it goes on.

It runs in a process of its own (see :mod:`memfs.snapshot.worker`), so nothing else is done meanwhile by
this interpreter. What can be done before the stop or after it is done there.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from collections.abc import Mapping as ReadOnlyDict

from memfs.errors import CannotFreeze, MemfsError, RangeUnmapped, TargetExited
from memfs.image.served import ServedFiles
from memfs.linux import procfs
from memfs.linux.arch import Architecture, this_architecture
from memfs.snapshot.aside import Aside, Wanted, what_fork_does_not_keep
from memfs.snapshot.values import Fate, FileState, Frozen, Part, Phases, Request
from memfs.target import fork
from memfs.target.identity import Identity, ProcessHandle, identify
from memfs.target.injection import Killed
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import ObjectKey, object_key
from memfs.target.process import AddressSpace, VmaFlags, VmaFlagsCache
from memfs.target.record import ProcessRecord, ThreadRecord
from memfs.target.stopped import StoppedProcess

_PATIENCE_S = 1.0
_REAP_STOP_S = 0.05
_FILE_CLOCK_NS = 10_000_000  # a file's time is that of the last tick of the kernel's clock
_SERVED = "another process or machine serves its file"
_TOO_MUCH = "and more than snapshot_copy allows"
_PATIENCE_S_PER_BYTE = 0.1 / (1 << 30)
"""Of a fork: ten times what it took where it was measured (docs/performance.md)."""


class Freezing:
    """One attempt at a snapshot of one process."""

    def __init__(self, request: Request) -> None:
        """Take hold of the process.

        Raises:
            MemfsError: it has ended, may not be looked into, or cannot be frozen by this kernel.
        """
        architecture = this_architecture()
        if architecture is None:
            machine = os.uname().machine
            raise CannotFreeze(f"memfs cannot freeze a process on {machine} yet", cause=errno.EOPNOTSUPP)
        self._request = request
        self._architecture: Architecture = architecture
        self._pid = request.identity.pid
        self._flags = VmaFlagsCache()
        self._handle = ProcessHandle(request.identity)
        self._space = AddressSpace(request.identity, self._flags, memory=True, own_device=request.own_device)
        self._aside = Aside(self._space, request.copy_bytes)
        self._threads: tuple[ThreadRecord, ...] = ()
        self._maps_text = b""
        self._layout = Layout(())
        self._copy: int | None = None
        self._unreaped = 0
        self._marks: list[int] = []
        self._taken_ns = 0

    def run(self) -> tuple[Frozen, int]:
        """Take the snapshot; returns what is known of it, and a descriptor of what was copied aside.

        Raises:
            TargetBusy: it cannot be stopped now.
            MemfsError: it cannot be frozen.
        """
        pid = self._pid
        process = _read_process(self._space, self._request.identity)
        owner = procfs.read_status(pid)
        known = self._flags.pin(self._request.identity)
        if not self._request.copy_all:
            fork.ensure_possible(pid)
        self._prepare(known)
        self._stop_and_copy(_PATIENCE_S + owner.resident_bytes * _PATIENCE_S_PER_BYTE)
        frozen = self._describe(process, owner, known)
        self._aside.close()
        return frozen, self._aside.fd

    def let_go(self) -> bool:
        """Take the copy back; returns whether nothing of it is left."""
        copy, self._copy = self._copy, None
        if copy is not None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self._unreaped = procfs.read_thread_status(copy, copy).inner_number
            fork.end(copy)
        if self._unreaped and self._reap(self._unreaped):
            self._unreaped = 0
        return not self._unreaped

    def _reap(self, number: int) -> bool:
        """Have some thread of the process reap its child *number*."""
        for tid in _thread_ids(self._pid):
            stopped = StoppedProcess(self._pid, self._architecture, time.monotonic() + _REAP_STOP_S)
            try:
                self._handle.ensure_same()
                stopped.stop(tid)
                self._handle.ensure_same()
                fork.reap_copy(stopped, _PATIENCE_S, number)
            except ChildProcessError:
                return True
            except (MemfsError, OSError, Killed):
                continue
            finally:
                stopped.release()
            return True
        return self._handle.exited  # then it goes to init, as every orphan does

    def _prepare(self, known: VmaFlags) -> None:
        self._maps_text = self._space.maps_text()
        self._layout = layout = self._space.layout_of(self._maps_text)
        wanted = list(_wanted(layout, known))
        # What would be lost comes before what would only stay live, and the small before the large.
        wanted.sort(key=lambda one: (one.region.kind is Kind.SHARED, one.region.span.size))
        self._aside.prepare(wanted, layout, limited=True)
        if self._request.copy_all:
            self._aside.prepare(list(_all_private(layout, known)), layout, limited=False)

    def _stop_and_copy(self, patience_s: float) -> None:
        stopped = StoppedProcess(self._pid, self._architecture, time.monotonic() + self._request.stop_s)
        _come_first(True)
        self._mark()
        try:
            stopped.stop()
            self._space.ensure_same_program()
            self._taken_ns = time.time_ns()
            self._mark()
            self._threads = stopped.record()
            self._look_again()
            self._mark()
            self._aside.take(self._layout)
            self._mark()
            if not self._request.copy_all:
                self._copy = fork.fork_copy(stopped, patience_s)
            self._mark()
        finally:
            stopped.release()
            _come_first(False)
        self._mark()

    def _look_again(self) -> None:
        """See what is mapped. Mostly that is what was mapped before: 60,000 lines take 150 ms to parse."""
        text = self._space.maps_text()
        if text != self._maps_text:
            self._maps_text = text
            self._layout = self._space.layout_of(text)

    def _mark(self) -> None:
        self._marks.append(time.monotonic_ns())

    def _describe(self, process: ProcessRecord, owner: procfs.Status, known: VmaFlags) -> Frozen:
        copy = None
        uses = known.uses
        files: dict[ObjectKey, FileState] = {}
        if self._copy is not None:
            fork.settle(self._copy)
            copy = identify(self._copy)
            uses = self._flags.pin(copy).uses
            with AddressSpace(copy, self._flags, memory=False) as space:
                files = _file_states(space, self._layout, self._taken_ns)
        return Frozen(
            identity=self._request.identity,
            copy=copy,
            taken_ns=self._taken_ns,
            phases=Phases(
                *(
                    (after - before) // 1000
                    for before, after in zip(self._marks, self._marks[1:], strict=False)
                )
            ),
            stat=self._space.stat,
            owner=owner,
            process=process,
            threads=self._threads,
            maps_text=self._maps_text,
            parts=tuple(self._decide(region, uses, known) for region in self._layout.regions),
            uses=uses,
            fetched=known.fetched,
            files=files,
        )

    def _decide(self, region: Region, uses: ReadOnlyDict[int, procfs.MemoryUse], known: VmaFlags) -> Part:
        """What became of *region*: it is taken for frozen only where the copy has it as it was."""
        start = region.span.start
        if not region.has_file:
            return Part(region, Fate.ABSENT, "no one can read it")
        copied = self._aside.copied.get(start)
        if copied is not None:
            return Part(Region(region.mapping, Kind.COPIED), Fate.COPIED, copied.reason, copied.size_bytes)
        use = uses.get(start)
        absent = Region(region.mapping, Kind.ABSENT)
        fetched = any(region.span.clip(fetched) for fetched in known.fetched)
        if fetched and (region.mapping.shared or self._request.copy_all):
            return Part(absent, Fate.ABSENT, "its pages come from a userfaultfd")
        if region.served and (region.mapping.shared or self._request.copy_all):
            # To copy it while the process stands still would let its server decide for how long.
            if self._request.copy_all:
                return Part(absent, Fate.ABSENT, _SERVED)
            return Part(region, Fate.LIVE, _SERVED)
        if self._request.copy_all:
            return Part(absent, Fate.ABSENT, _TOO_MUCH if region.mapping.shared else "it could not be read")
        if use is None:
            return Part(absent, Fate.ABSENT, f"MADV_DONTFORK, {_TOO_MUCH}")
        if reason := what_fork_does_not_keep(region, use.flags):
            if region.kind is Kind.SHARED:
                return Part(region, Fate.LIVE, f"{reason}, {_TOO_MUCH}")
            return Part(absent, Fate.ABSENT, f"{reason}, {_TOO_MUCH}")
        if region.kind is Kind.OPAQUE and region.mapping.shared:
            return Part(region, Fate.LIVE, "a device")
        return Part(region, Fate.FROZEN)


def _come_first(first: bool) -> None:
    """While a process stands still, whoever is to let it go on has the CPU before all others."""
    policy, priority = (os.SCHED_RR, 1) if first else (os.SCHED_OTHER, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, policy, os.sched_param(priority))


def _thread_ids(pid: int) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return []


def _all_private(layout: Layout, known: VmaFlags) -> Iterator[Wanted]:
    """What a copy without a fork must hold besides."""
    for region in layout.regions:
        fetched = any(region.span.clip(fetched) for fetched in known.fetched)
        if region.has_file and not region.served and not fetched and not region.mapping.shared:
            yield Wanted(region, "fork is not possible")


def _wanted(layout: Layout, known: VmaFlags) -> Iterator[Wanted]:
    for region in layout.regions:
        use = known.uses.get(region.span.start)
        reason = what_fork_does_not_keep(region, use.flags if use else frozenset())
        if reason:
            yield Wanted(region, reason)


def _read_process(space: AddressSpace, identity: Identity) -> ProcessRecord:
    """What a core file tells of the process as a whole; read before the stop, it does not change."""
    pid = identity.pid
    try:
        stat = procfs.read_stat(pid)
        status = procfs.read_status(pid)
        arguments, auxv, core_filter = (
            procfs.read_file(f"/proc/{pid}/{name}") for name in ("cmdline", "auxv", "coredump_filter")
        )
    except (FileNotFoundError, ProcessLookupError):
        raise TargetExited(f"process {pid} has ended") from None
    space.ensure_same_program()
    return ProcessRecord(
        pid=pid,
        parent=stat.parent,
        group=stat.group,
        session=stat.session,
        uid=status.uid,
        gid=status.gid,
        state=stat.state,
        nice=stat.nice,
        flags=stat.flags,
        comm=stat.comm,
        arguments=arguments,
        auxv=auxv,
        core_filter=int(core_filter or b"0", 16),
    )


def _file_states(space: AddressSpace, layout: Layout, taken_ns: int) -> dict[ObjectKey, FileState]:
    """How the files are that private mappings show: what the process did not write comes from them.

    One that was written about when the snapshot was taken is left out: no one knows which came first.
    """
    states: dict[ObjectKey, FileState] = {}
    with contextlib.closing(ServedFiles(space)) as served:
        for region in layout.regions:
            key = object_key(region.mapping)
            if region.kind is Kind.PRIVATE_FILE and key not in states:
                with contextlib.suppress(OSError, RangeUnmapped):
                    state = _state_of(region, space, served)
                    if state.mtime_ns < taken_ns - _FILE_CLOCK_NS:
                        states[key] = state
    return states


def _state_of(region: Region, space: AddressSpace, served: ServedFiles) -> FileState:
    if region.served:
        known = served.look(region)
        return FileState(known.mtime_ns, known.size_bytes)
    fd = space.open_backing(region.mapping)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    return FileState(found.st_mtime_ns, found.st_size)
