"""One snapshot that the daemon holds: its descriptors, who uses it, and its end."""

import functools
import os
import threading
import uuid
from collections.abc import Callable

import attrs

from memfs.errors import TargetExited
from memfs.image.elfcore import CoreLayout
from memfs.snapshot.changes import find_quiet_files
from memfs.snapshot.frozen import FrozenSpace
from memfs.snapshot.history import History
from memfs.snapshot.info import format_info
from memfs.snapshot.values import Frozen
from memfs.target.identity import Identity
from memfs.target.layout import Layout
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache


@attrs.frozen
class SnapshotId:
    """A snapshot for all time: of which process, and which of all that the mount has seen."""

    identity: Identity
    serial: int


class Snapshot:
    """A frozen copy and what is known of it.

    It lives for as long as someone holds it: its name, and each use.

    Attributes:
        frozen: what is known of it.
        layout: its VMAs, each with the kind that it has in the snapshot.
        parts: its VMAs and their fates, by their start address.
        copy: the address space of the frozen process; None where all was copied.
        aside: descriptor of what was copied.
        segments: descriptors of System V segments, by the start of the VMA that shows each.
        core: how its core file is laid out, once someone has asked.
        mark: names it for all time and everywhere, so that an image can say of which snapshot it is.
        quiet_files: mapped files that no one can have written to unnoticed since it was made.
        history: what is known of it and the snapshots before.
    """

    def __init__(
        self,
        id_: SnapshotId,
        frozen: Frozen,
        descriptors: list[int],
        let_go: Callable[..., None],
        on_end: Callable[["Snapshot"], None],
    ) -> None:
        """Take over *descriptors*, see :meth:`Workers.take`; *let_go* ends the copy.

        Raises:
            TargetExited: the copy was killed meanwhile.
        """
        self.id = id_
        self.frozen = frozen
        self.layout = Layout(tuple(part.region for part in frozen.parts))
        self.parts = {part.region.span.start: part for part in frozen.parts}
        self.aside, *held = descriptors
        self.segments = dict(zip(frozen.segments, held, strict=True))
        self.copy: AddressSpace | None = None
        self.core: CoreLayout | None = None
        self.mark = uuid.uuid4().hex.encode()
        self.history = History()
        self._let_go = let_go
        self._on_end = on_end
        self._holders = 1
        self._lock = threading.Lock()
        try:
            if frozen.copy is not None:
                self.copy = AddressSpace(frozen.copy, VmaFlagsCache(), memory=True, frozen=True)
            # Before anyone has read of it: what is written to a file until now is in what will be read.
            self.quiet_files = find_quiet_files(frozen, self.copy)
        except BaseException:
            self.drop()
            raise

    @functools.cached_property
    def info(self) -> bytes:
        """The content of info.json."""
        return format_info(self.frozen)

    def open(self) -> FrozenSpace:
        """Its address space, which the caller closes.

        Raises:
            TargetExited: it has been let go.
        """
        self.hold()
        return FrozenSpace(self)

    def hold(self) -> None:
        """Keep it until :meth:`drop`.

        Raises:
            TargetExited: it has been let go.
        """
        with self._lock:
            if not self._holders:
                raise TargetExited("the snapshot was let go")
            self._holders += 1

    def drop(self, *, wait: bool = False) -> None:
        """Undo one :meth:`hold`. With the last the copy ends, soon; or before this returns, with *wait*."""
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            if self.copy is not None:
                self.copy.close()
            for fd in (self.aside, *self.segments.values()):
                os.close(fd)
            self._on_end(self)
            self._let_go(wait=wait)

    def abandon(self) -> None:
        """End the copy, whoever still holds it: reading it is an error from now on."""
        self._let_go()
