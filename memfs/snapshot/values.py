"""What a snapshot is, as values: what is asked for, and what came of it. They go from process to process."""

import enum
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.smaps import MemoryUse
from memfs.linux.span import Span
from memfs.linux.stat import Stat
from memfs.linux.status import Status
from memfs.target.identity import Identity
from memfs.target.layout import Region
from memfs.target.origins import Device, ObjectKey
from memfs.target.record import ProcessRecord, ThreadRecord

DEFAULT_COPY_BYTES = 64 << 20
"""Copied while the process is stopped, at most: some 10 ms of pause."""

FILE_CLOCK_NS = 10_000_000
"""A file's time is that of the last tick of the kernel's clock: two changes within it look like one."""


@attrs.frozen
class Request:
    """One attempt at a snapshot.

    Attributes:
        own_device: of the mount that asks: what the process maps of it cannot be read.
        copy_bytes: the most that may be copied while the process is stopped, of what fork does not keep.
        memory_bytes: the most memory that copies may take that are made while the process runs; None for a
            share of what there is.
        copy_all: copy all of it instead of forking.
        stop_s: how long to wait for its threads to stop.
    """

    identity: Identity
    own_device: Device | None
    copy_bytes: int
    memory_bytes: int | None
    copy_all: bool
    stop_s: float


@attrs.frozen
class Reaping:
    """What is to be done where the worker was killed that held a copy: have its process reap the copy.

    Attributes:
        identity: of the process.
        number: of the copy, as the process sees it.
    """

    identity: Identity
    number: int


class Fate(enum.Enum):
    """What became of a VMA in the snapshot."""

    FROZEN = "frozen"
    """Its pages are those of the moment of the snapshot."""
    COPIED = "copied"
    """The same, by a copy made while the process was stopped."""
    LIVE = "live"
    """It shows what the object mapped there holds now."""
    ABSENT = "absent"
    """Its content is not in the snapshot: reading it gives EIO."""


@attrs.frozen
class Part:
    """One VMA of the process, and its fate.

    Attributes:
        region: its kind says where its bytes are to be had.
        reason: why it is not simply frozen; empty where it is.
        copied_bytes: how much of it was copied, from its start.
        copied_at: where in the copy that begins. VMAs with the same bytes of one object share that.
    """

    region: Region
    fate: Fate
    reason: str = ""
    copied_bytes: int = 0
    copied_at: int = 0

    @property
    def span(self) -> Span:
        """Its addresses."""
        return self.region.span

    @property
    def shift(self) -> int:
        """What must be added to an address for its place in the copy, of a VMA that was copied."""
        return self.copied_at - self.region.span.start


@attrs.frozen
class Phases:
    """How long each step took while the process was stopped, in microseconds.

    *prepare* is a stop of its own, some time before the others: see :mod:`memfs.snapshot.precopy`.
    """

    prepare: int
    stop: int
    record: int
    copy: int
    fork: int
    release: int

    @property
    def pause(self) -> int:
        """From the first thread that stopped to the last that went on."""
        return sum(attrs.astuple(self))


@attrs.frozen
class FileState:
    """By what a change of a mapped file is seen."""

    mtime_ns: int
    size_bytes: int


@attrs.frozen
class Frozen:
    """What a worker knows of the snapshot that it has made.

    Attributes:
        copy: the frozen process, whose address space holds the frozen pages; None where all was copied.
        copy_number: its number as the process sees it.
        taken_ns: when, since the epoch.
        longest_look_us: how long the longest look at its VMAs before that may have kept others waiting.
        stat: of the process; where its heap, its stack and its code begin.
        owner: its user and group, and how much memory it held.
        uses: what smaps says of each VMA of the copy, by its start address.
        fetched: where a userfaultfd supplied missing pages, which no one does now.
        files: the mapped files, as they were just after.
        segments: where System V segments begin that the copy has let go of: descriptors show them.
        why_bound: why the copy stays in a cgroup whose processes are killed with it; empty where it does not.
    """

    identity: Identity
    copy: Identity | None
    copy_number: int
    taken_ns: int
    phases: Phases
    longest_look_us: int
    stat: Stat
    owner: Status
    process: ProcessRecord
    threads: tuple[ThreadRecord, ...]
    maps_text: bytes
    parts: tuple[Part, ...]
    uses: ReadOnlyDict[int, MemoryUse]
    fetched: tuple[Span, ...]
    files: ReadOnlyDict[ObjectKey, FileState]
    segments: tuple[int, ...]
    why_bound: str = ""
