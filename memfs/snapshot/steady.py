"""Mapped files that a snapshot does not hold, but takes from the file: what tells that they are as they were.

So it is with private mappings, and with shared ones of files that no one writes. A mapping without
VM_MAYWRITE cannot be made writable. That no one else writes through one of his own is proven by a lease: the
file is open for writing nowhere. From then on a change is seen by its time: file systems on a disk change
that with the first store through a mapping, others (tmpfs, overlayfs) need not.
"""

import contextlib
import os
import time
from collections.abc import Iterable

from memfs.errors import MemfsError, RangeUnmapped
from memfs.image.served import ServedFiles
from memfs.linux.lease import has_no_writer
from memfs.snapshot.values import FILE_CLOCK_NS, FileState
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import ObjectKey, object_key
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlags


def find_steady(layout: Layout, known: VmaFlags, space: AddressSpace) -> frozenset[ObjectKey]:
    """The files of *space* that are mapped shared and that no one can write without its being seen."""
    candidates: dict[ObjectKey, Region] = {}
    writable = set()
    for region in layout.regions:
        if region.kind is Kind.SHARED and not region.served and region.mapping.device[0]:
            key = object_key(region.mapping)
            use = known.uses.get(region.span.start)
            if use is None or b"mw" in use.flags:
                writable.add(key)
            else:
                candidates.setdefault(key, region)
    return frozenset(
        key for key, region in candidates.items() if key not in writable and _is_quiet(region, space)
    )


def _is_quiet(region: Region, space: AddressSpace) -> bool:
    """Whether the file of *region* has no writer, and had none a moment ago."""
    with contextlib.suppress(OSError, MemfsError):
        fd = space.open_backing(region.mapping)
        try:
            return has_no_writer(fd) and os.fstat(fd).st_mtime_ns < time.time_ns() - FILE_CLOCK_NS
        finally:
            os.close(fd)
    return False


def read_states(space: AddressSpace, regions: Iterable[Region], taken_ns: int) -> dict[ObjectKey, FileState]:
    """How the files are that *regions* show: what the process did not write comes from them.

    One that was written about when the snapshot was taken is left out: no one knows which came first.
    """
    states: dict[ObjectKey, FileState] = {}
    with contextlib.closing(ServedFiles(space)) as served:
        for region in regions:
            key = object_key(region.mapping)
            if key not in states:
                with contextlib.suppress(OSError, RangeUnmapped):
                    state = _state_of(region, space, served)
                    if state.mtime_ns < taken_ns - FILE_CLOCK_NS:
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
