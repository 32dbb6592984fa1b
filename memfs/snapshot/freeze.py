"""One attempt at a snapshot: what is prepared, what runs while the process is stopped, and what follows.

It runs in a process of its own (see :mod:`memfs.snapshot.worker`), so nothing else is done meanwhile by
this interpreter. What can be done before the stop or after it is done there.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.errors import CannotFreeze, TargetStuck
from memfs.linux.arch import CoreFormat, Machine
from memfs.linux.cgroups import move_apart
from memfs.linux.execwatch import ExecWatch
from memfs.linux.inside import ThreadNumbers
from memfs.linux.machine import this_machine
from memfs.linux.smaps import MemoryUse
from memfs.snapshot import precopy
from memfs.snapshot.aside import Aside
from memfs.snapshot.described import read_process
from memfs.snapshot.fates import Facts, decide_all, find_private, find_wanted, is_steady, uses_of_process
from memfs.snapshot.follow import Follower
from memfs.snapshot.places import group
from memfs.snapshot.priority import first_place, spared_when_memory_is_short, take_first_place
from memfs.snapshot.reap import end_quietly, reap
from memfs.snapshot.segments import Segments, hold_segments
from memfs.snapshot.steady import find_steady, read_states
from memfs.snapshot.values import FileState, Frozen, Part, Phases, Reaping, Request
from memfs.target import fork, restartable
from memfs.target.access import may_trace_all
from memfs.target.bounded import BoundedLooks
from memfs.target.callsite import find_call_address
from memfs.target.fork import Forked
from memfs.target.identity import ProcessHandle, identify, read_status
from memfs.target.layout import Kind, Region
from memfs.target.origins import ObjectKey
from memfs.target.process import AddressSpace
from memfs.target.record import ThreadRecord
from memfs.target.settle import detach_segments, settle
from memfs.target.stopped import StoppedProcess
from memfs.target.tracee import Tracee
from memfs.target.vmaflags import VmaFlagsCache
from memfs.target.withheld import find_withheld, is_better_asked_by_fork, may_be_pinned

_CALL_S = 1.0
_CALL_S_PER_BYTE = 0.1 / (1 << 30)
"""Time limit of one step of a fork: ten times what was measured (docs/performance.md)."""
_LOOK_S = 10.0
_LOOK_S_PER_BYTE = 1.0 / (1 << 30)
"""Time limit of all looks before the stop, and of those after it."""
_STOPPED_LOOK_S = 1.0
"""Time limit of all looks while the process is stopped, copying aside."""
_COPY_S_PER_BYTE = 4.0 / (1 << 30)
"""Time limit of copying while the process is stopped: twenty times what was measured."""


class Freezing:
    """One attempt at a snapshot of one process. All that looks into it runs in a thread with a time limit."""

    def __init__(self, request: Request) -> None:
        """Open a handle of the process.

        Raises:
            MemfsError: it has ended, may not be looked into, or cannot be frozen by this kernel.
        """
        machine = this_machine()
        if machine is None:
            name = os.uname().machine
            raise CannotFreeze(f"memfs cannot freeze a process on {name} yet", cause=errno.EOPNOTSUPP)
        self._request = request
        self._machine: Machine = machine
        self._pid = request.identity.pid
        self._handle = ProcessHandle(request.identity)
        self._looks = BoundedLooks(self._pid)
        self._stopped: StoppedProcess | None = None
        self._forked: Forked | None = None
        self._extra_page = 0
        self._segments = Segments((), {})
        self._watch: ExecWatch | None = None
        self._threads: tuple[ThreadRecord, ...] = ()
        self._core: CoreFormat | None = None
        self._marks: list[int] = []
        self._plan = precopy.NOTHING
        self._follower: Follower | None = None
        self._prepare_us = 0
        self._taken_ns = 0

    def run(self) -> tuple[Frozen, list[int]]:
        """Take the snapshot; returns a description of it, and descriptors.

        The first is of what was copied aside, the others are of :attr:`Frozen.segments`.

        Raises:
            TargetBusy: it cannot be stopped now.
            MemfsError: it cannot be frozen.
        """
        resident_bytes = read_status(self._pid).resident_bytes
        patience_s = _LOOK_S + resident_bytes * _LOOK_S_PER_BYTE
        self._looks.run(self._prepare, patience_s)
        if not self._request.copy_all:
            fork.ensure_possible(self._pid, self._space.objects_pid)
        try:
            self._copy_ahead()
            with spared_when_memory_is_short():
                self._stop_and_copy(_CALL_S + resident_bytes * _CALL_S_PER_BYTE)
            if self._follower is not None:
                self._check(self._follower)
        finally:
            if self._follower is not None:
                self._looks.run(self._follower.close, patience_s)
        if self._forked is not None:
            self._extra_page = settle(self._forked, self._pid, self._layout)
        frozen = self._looks.run(self._describe, patience_s)
        if self._forked is not None and self._segments.attached_at:
            detach_segments(self._forked, self._pid, self._segments.attached_at)
        self._aside.close()
        return frozen, [self._aside.fd, *self._segments.held.values()]

    def take_ends(self) -> bool:
        """Reap threads that were killed while they were stopped; returns whether none is left."""
        return self._stopped is None or self._stopped.take_ends()

    def let_go(self) -> bool:
        """End the copy and resume every thread; returns whether nothing is left to do."""
        stopped = self._stopped
        if stopped is None:
            return True
        if stopped.keeps:
            stopped.release()
        forked, self._forked = self._forked, None
        if forked is not None and not (self._has_run_exec() and self._end_quietly(forked.copy)):
            forked.copy.end()
            stopped.unreaped.append(forked.copy.inner_number)
        while not stopped.keeps and stopped.unreaped:
            reaping = Reaping(self._request.identity, stopped.unreaped[-1])
            if not reap(reaping, self._handle, self._machine, self._looks):
                return False
            stopped.unreaped.pop()
        return not stopped.keeps

    def _has_run_exec(self) -> bool:
        """Whether the process may have run exec since it was frozen."""
        return self._watch is None or self._watch.tripped

    def _end_quietly(self, copy: Tracee) -> bool:
        reaping = Reaping(self._request.identity, copy.inner_number)
        return end_quietly(copy, reaping, self._handle, self._machine, self._looks)

    def _prepare(self) -> None:
        request = self._request
        flags = VmaFlagsCache()
        self._space = AddressSpace(
            request.identity, flags, memory=True, watched=True, own_device=request.own_device
        )
        self._flags = flags
        self._process = read_process(self._space, request.identity)
        self._numbers = ThreadNumbers(self._pid)
        self._owner = read_status(self._pid)
        self._known = flags.pin(request.identity)
        self._maps_text = self._space.maps_text()
        self._layout = self._known_layout = layout = self._space.layout_of(self._maps_text)
        self._may_be_pinned = may_be_pinned(layout, self._known.uses)
        self._withheld = find_withheld(layout, layout, self._known.uses)
        self._steady = frozenset() if request.copy_all else find_steady(layout, self._known, self._space)
        groups = group(find_wanted(layout, self._known, frozenset(self._withheld), self._steady))
        # What would be lost comes before what would only stay live, and the small before the large.
        groups.sort(key=lambda one: (not one.private, sum(each.region.span.size for each in one.wanted)))
        self._aside = Aside(self._space, request.copy_bytes)
        self._aside.prepare(groups, layout, limited=True)
        if request.copy_all:
            self._aside.prepare(group(find_private(layout, self._known)), layout, limited=False)

    def _copy_ahead(self) -> None:
        """Copy large shared memory while the process runs; the kernel records what is written meanwhile."""
        request = self._request
        self._plan = found = precopy.plan(
            self._aside.left_out, self._aside.taken, self._known.uses, self._space, request.memory_bytes
        )
        if found.groups and not request.copy_all:
            process = precopy.Process(self._handle, self._machine, self._looks, request.stop_s)
            with spared_when_memory_is_short():
                began = precopy.begin(process)
            if began is not None:
                self._prepare_us = began.pause_us
                self._follower = precopy.follow(found, process, self._space, self._aside.fd, began.fd)

    def _check(self, follower: Follower) -> None:
        """Make sure that no other process has written to what was copied while the process ran."""
        patience_s = self._plan.patience_s
        self._looks.run(lambda: follower.check(time.monotonic() + patience_s), patience_s + _LOOK_S)

    def _stop_and_copy(self, patience_s: float) -> None:
        self._looks.run(take_first_place, _LOOK_S)
        with first_place(self._pid) as lenders:
            deadline = time.monotonic() + self._request.stop_s
            self._stopped = StoppedProcess(self._pid, self._machine, deadline, lenders)
            self._copy_stopped(self._stopped, patience_s)

    def _copy_stopped(self, stopped: StoppedProcess, patience_s: float) -> None:
        self._mark()
        try:
            stopped.stop()
            self._taken_ns = time.time_ns()
            self._mark()
            self._record(stopped)
            thread = None if self._request.copy_all else fork.choose_thread(stopped)
            area = 0 if thread is None else restartable.read_area(thread)
            copied_bytes = self._aside.prepared_bytes + self._plan.size_bytes
            look_s = _STOPPED_LOOK_S + copied_bytes * _COPY_S_PER_BYTE
            call_address = self._looks.run(lambda: self._look_again(stopped, thread, area), look_s)
            if thread is not None:
                means = fork.Means(thread, call_address, patience_s)
                wanted = self._withheld
                if self._layout is not self._known_layout:
                    wanted = find_withheld(self._layout, self._known_layout, self._known.uses)
                by_fork = is_better_asked_by_fork(wanted, self._known.uses)
                if by_fork:  # which tells of all at once
                    wanted = find_withheld(self._layout, self._known_layout, self._known.uses, doubt_all=True)
                wishes = fork.Wishes(tuple(wanted), self._beginning, by_fork)
                self._forked = fork.fork_copy(stopped, means, wishes, hide=_is_open_to_its_user(thread))
            self._mark()
        finally:
            stopped.release()
        self._mark()

    def _beginning(self, addresses: list[int]) -> frozenset[int]:
        """Return those of *addresses* at which a VMA begins."""
        return self._looks.run(lambda: self._space.beginning(addresses), _STOPPED_LOOK_S)

    def _record(self, stopped: StoppedProcess) -> None:
        """Record the state that is not in memory: registers and signals."""
        first = stopped.registers[min(stopped.registers)]
        self._core = core = self._machine.format_of(self._process.auxv, first, self._layout.end)
        self._threads = stopped.record(core.sets if core is not None else (), self._numbers.get)

    def _look_again(self, stopped: StoppedProcess, thread: int | None, area: int) -> int:
        """Read what is mapped now, and copy what must be copied.

        Returns the address at which *thread*, if there is one, can be made to run a call. *area* is that of
        its restartable sequences.

        Mostly what is mapped is what was mapped before: 60,000 lines take 150 ms to parse.
        """
        self._handle.ensure_same()
        with contextlib.suppress(OSError):  # the space is closed when the snapshot has been taken
            self._watch = ExecWatch(self._space.objects_pid)
        if self._space.is_watched or not may_trace_all():
            self._space.ensure_same_program()
        else:
            # Whether it ran exec meanwhile cannot be told for certain. What it has now, it keeps.
            if self._follower is not None:
                self._follower.give_up()
            self._space.close()
            self._aside.close()
            os.close(self._aside.fd)
            self._prepare()
        text = self._space.maps_text()
        if text != self._maps_text:
            self._maps_text = text
            self._layout = self._space.layout_of(text)
        call_address = 0
        if thread is not None:
            architecture = fork.architecture_of(stopped, thread)
            restartable.leave(thread, area, stopped.registers[thread], architecture)
            mappings = (region.mapping for region in self._layout.regions)
            call_address = find_call_address(thread, architecture, stopped.registers.values(), mappings)
        self._mark()
        self._aside.take(self._layout)
        if self._follower is not None:
            self._follower.take(self._layout, self._aside.left_bytes)
        self._mark()
        return call_address

    def _mark(self) -> None:
        self._marks.append(time.monotonic_ns())

    # Once it runs again

    def _describe(self) -> Frozen:
        copy = None
        copy_number = 0
        why_bound = ""
        uses = self._known.uses
        files: dict[ObjectKey, FileState] = {}
        parts: tuple[Part, ...] = ()
        if self._forked is not None:
            frozen = self._forked.copy
            try:
                move_apart(frozen.pid)
            except OSError as error:
                why_bound = os.strerror(error.errno or errno.EIO)
            copy, copy_number = identify(frozen.pid), frozen.inner_number
            uses = self._flags.pin(copy).uses
            with AddressSpace(copy, self._flags, memory=False, frozen=True) as space:
                own = b"%x-" % self._extra_page
                found = {line for line in space.maps_text().splitlines() if not line.startswith(own)}
                if not found <= set(self._maps_text.splitlines()):
                    raise TargetStuck(
                        f"memory of process {self._pid} was mapped while all its threads stood still",
                        "another process shares its memory and goes on: take a snapshot of that one",
                    )
                files = read_states(space, self._from_files(), self._taken_ns)
                parts = decide_all(self._layout, self._facts(uses))
                self._segments = hold_segments(parts, space)
        extra = self._core.extra(self._threads[0].sets) if self._core is not None else None
        return Frozen(
            identity=self._request.identity,
            copy=copy,
            copy_number=copy_number,
            taken_ns=self._taken_ns,
            phases=Phases(
                self._prepare_us,
                *(
                    (after - before) // 1000
                    for before, after in zip(self._marks, self._marks[1:], strict=False)
                ),
            ),
            longest_look_us=self._known.longest_read_us,
            stat=self._space.stat,
            owner=self._owner,
            process=attrs.evolve(self._process, core_format=self._core, extra_note=extra),
            threads=self._threads,
            maps_text=self._maps_text,
            parts=parts or decide_all(self._layout, self._facts(uses)),
            uses=uses_of_process(self._layout, self._known_layout, self._known.uses, uses),
            fetched=self._known.fetched,
            files=files,
            segments=tuple(self._segments.held),
            why_bound=why_bound,
        )

    def _from_files(self) -> Iterator[Region]:
        """Yield the VMAs whose bytes the snapshot takes from a file, except pages that the process wrote."""
        for region in self._layout.regions:
            if region.kind is Kind.PRIVATE_FILE or is_steady(region, self._steady):
                yield region

    def _facts(self, uses: ReadOnlyDict[int, MemoryUse]) -> Facts:
        copied, why_live = self._aside.copied, self._plan.why
        if self._follower is not None:
            copied = {**self._follower.copied, **copied}
            why_live = {**why_live, **self._follower.why}
        return Facts(
            known=self._known_layout,
            before=self._known.uses,
            uses=uses,
            copied=copied,
            fetched=self._known.fetched,
            steady=self._steady,
            shared=self._plan.shared,
            why_live=why_live,
            let_in=tuple(self._forked.let_in) if self._forked is not None else None,
            may_be_pinned=self._may_be_pinned,
            copy_all=self._request.copy_all,
        )


def _is_open_to_its_user(tid: int) -> bool:
    """Whether *tid* is dumpable and belongs to a user other than us, and we may trace it anyway.

    The kernel gives the files of a process that is not dumpable to root (``task_dump_owner``, fs/proc).
    """
    owner = os.stat(f"/proc/{tid}/mem").st_uid
    return may_trace_all() and owner not in (0, os.geteuid())
