"""Which large shared memory is copied while its process runs, and the short stop that this begins with."""

import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.errors import MemfsError, TargetBusy
from memfs.linux.arch import Machine
from memfs.linux.available import available_bytes
from memfs.linux.smaps import MemoryUse
from memfs.snapshot.follow import Follower
from memfs.snapshot.places import Group
from memfs.snapshot.priority import first_place
from memfs.snapshot.reap import find_call, reap
from memfs.snapshot.values import Reaping
from memfs.target import fork, restartable
from memfs.target.bounded import BoundedLooks
from memfs.target.identity import ProcessHandle
from memfs.target.injection import Diverted
from memfs.target.layout import Region
from memfs.target.mappers import find_shared
from memfs.target.origins import ObjectKey
from memfs.target.process import AddressSpace
from memfs.target.space import Space
from memfs.target.stopped import StoppedProcess
from memfs.target.tracee import Killed

_SHARE = 4
"""Without a limit of its user's a snapshot's copies take this part of the memory that is available."""
_MOST_VMAS = 256
"""An object in more pieces is not followed: each of them is asked for in the stop."""
_SPARSE = 32
"""Nor one of which so many times more is mapped than is there: all of it gets page tables, a 512th of it."""
_MAPPERS_S = 5.0
_STEP_S = 1.0
_SPARE_S = 10.0
_FOLLOW_S = 20.0
_FOLLOW_S_PER_BYTE = 4.0 / (1 << 30)
"""How long copying may take while the process runs, and comparing after it: twenty times what it took."""

OTHERS = "which other processes map as well, and more than snapshot_copy allows"
SWAPPED = "of which some is swapped out, and more than snapshot_copy allows"
MEMORY = "and more than snapshot_memory allows"


@attrs.frozen
class Plan:
    """What is to be copied while the process runs.

    Attributes:
        groups: each with those of its VMAs through which it can be written.
        size_bytes: how much that is.
        why: why others are not, by their key.
        shared: objects, copied one way or the other, that other processes map as well.
    """

    groups: tuple[tuple[Group, tuple[Region, ...]], ...]
    size_bytes: int
    why: ReadOnlyDict[ObjectKey, str]
    shared: frozenset[ObjectKey]

    @property
    def patience_s(self) -> float:
        """How long it may take."""
        return _FOLLOW_S + self.size_bytes * _FOLLOW_S_PER_BYTE


NOTHING = Plan((), 0, {}, frozenset())


def plan(
    left_out: list[tuple[Group, int]],
    taken: list[Group],
    uses: ReadOnlyDict[int, MemoryUse],
    space: Space,
    memory_bytes: int | None,
) -> Plan:
    """Choose from the groups *left_out*, each with its size; the small come first.

    Args:
        taken: groups that are copied in the stop.
        uses: what smaps says of the VMAs of the process.
        space: its address space.
        memory_bytes: how much memory the copies may take; None for a share of what there is.
    """
    why: dict[ObjectKey, str] = {}
    candidates = []
    for group, size in left_out:
        if group.key is not None and _can_be_followed(group, size, uses) and _opens(group, space):
            # To read it would swap it in, which may be more than the process's cgroup has room for.
            if any(uses[start].swapped_bytes for start in group.starts if start in uses):
                why[group.key] = SWAPPED
            else:
                candidates.append((group, size))
    objects = [group for group, _ in candidates] + [group for group in taken if not group.private]
    if not objects:
        return Plan((), 0, why, frozenset())
    shared = _find_shared({_numbers(group) for group in objects}, space.identity.pid)
    # An object that cannot be told by its numbers alone may be among the others under another key.
    twice = Counter(_numbers(group) for group, _ in left_out)
    left_bytes = available_bytes() // _SHARE if memory_bytes is None else memory_bytes
    chosen = []
    total = 0
    for group, size in candidates:
        assert group.key is not None
        if _numbers(group) in shared or twice[_numbers(group)] > 1:
            why[group.key] = OTHERS
        elif size > left_bytes:
            why[group.key] = MEMORY
        else:
            left_bytes -= size
            total += size
            chosen.append((group, tuple(_writable(group, uses))))
    keys = (group.key for group in objects if _numbers(group) in shared)
    return Plan(tuple(chosen), total, why, frozenset(key for key in keys if key is not None))


def _can_be_followed(group: Group, size: int, uses: ReadOnlyDict[int, MemoryUse]) -> bool:
    mapped = sum(one.region.span.size for one in group.wanted)
    if len(group.wanted) > _MOST_VMAS or mapped > _SPARSE * size:
        return False
    # Huge pages of hugetlbfs are protected as a whole: that is not done here. Nor is it where the process, or
    # its debugger, has a userfaultfd of its own.
    flags = (uses[start].flags for start in group.starts if start in uses)
    return all(found.isdisjoint((b"ht", b"um", b"uw", b"ui", b"dc")) for found in flags)


def _opens(group: Group, space: Space) -> bool:
    try:
        os.close(space.open_backing(group.wanted[0].region.mapping))
    except (OSError, MemfsError):
        return False
    return True


def _writable(group: Group, uses: ReadOnlyDict[int, MemoryUse]) -> Iterator[Region]:
    for one in group.wanted:
        use = uses.get(one.region.span.start)
        if use is None or b"mw" in use.flags:
            yield one.region


def _numbers(group: Group) -> tuple[tuple[int, int], int]:
    mapping = group.wanted[0].region.mapping
    return mapping.device, mapping.inode


def _find_shared(objects: set[tuple[tuple[int, int], int]], pid: int) -> set[tuple[tuple[int, int], int]]:
    """Those that other processes map; all, where one of these does not tell."""
    try:
        return BoundedLooks(pid).run(lambda: find_shared(objects, pid), _MAPPERS_S)
    except TargetBusy:
        return objects


@attrs.frozen
class Process:
    """The process that is frozen, and who looks into it."""

    handle: ProcessHandle
    machine: Machine
    looks: BoundedLooks
    stop_s: float


@attrs.frozen
class Began:
    """A userfaultfd of the process, and for how long it stood still for that, in microseconds."""

    fd: int
    pause_us: int


def begin(process: Process) -> Began | None:
    """Have the process make a userfaultfd; None where the kernel or the process will not have it."""
    return _in_a_thread(functools.partial(_make_userfaultfd, process))


def follow(found: Plan, process: Process, space: AddressSpace, aside: int, fd: int) -> Follower | None:
    """Copy what is in *found* into the memfd *aside*; *fd* is a new userfaultfd of *space*.

    None where the kernel cannot note writes.
    """
    try:
        follower = Follower(space, aside, fd, time.monotonic() + found.patience_s)
    except OSError:
        return None
    try:
        process.looks.run(lambda: _copy_ahead(follower, found), found.patience_s + _SPARE_S)
    except BaseException:
        follower.close()
        raise
    return follower


def _copy_ahead(follower: Follower, found: Plan) -> None:
    for group, writable in found.groups:
        follower.follow(group, writable)
    follower.catch_up()


def _in_a_thread(attempt: Callable[[], Began | None]) -> Began | None:
    """Run *attempt*: a thread that it cannot stop in time is let go by the end of the one that seized it."""
    done: list[Began | None] = []
    tracer = threading.Thread(target=lambda: done.append(attempt()))
    tracer.start()
    tracer.join()
    return done[0] if done else None


def _make_userfaultfd(process: Process) -> Began | None:
    pid = process.handle.identity.pid
    began = time.monotonic_ns()
    with first_place(pid) as lenders:
        stopped = StoppedProcess(pid, process.machine, time.monotonic() + process.stop_s, lenders)
        fd = _make_stopped(stopped, process)
    for number in stopped.unreaped:
        reap(Reaping(process.handle.identity, number), process.handle, process.machine, process.looks)
    return Began(fd, (time.monotonic_ns() - began) // 1000) if fd >= 0 else None


def _make_stopped(stopped: StoppedProcess, process: Process) -> int:
    try:
        stopped.stop()
        process.handle.ensure_same()
        thread = fork.choose_thread(stopped)
        area = restartable.read_area(thread)
        call_address = process.looks.run(lambda: find_call(stopped, thread, area), _STEP_S)
        return fork.make_userfaultfd(stopped, fork.Means(thread, call_address, _STEP_S))
    except (MemfsError, OSError, Killed, Diverted):
        return -1  # what is wrong is told by the stop that follows
    finally:
        stopped.release()
        while stopped.keeps:  # it must not go on with registers that are not its own
            stopped.release()
