"""Files that are mapped shared and that no one writes: a snapshot takes them from the file.

A mapping without VM_MAYWRITE cannot be made writable. That no one else writes through one of his own is
proven by a lease: the file is open for writing nowhere. From then on a change is seen by its time, as it is
for private mappings: file systems on a disk change that with the first store through a mapping, others
(tmpfs, overlayfs) need not.
"""

import contextlib
import os
import time

from memfs.errors import MemfsError
from memfs.linux.lease import has_no_writer
from memfs.snapshot.values import FILE_CLOCK_NS
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import ObjectKey, object_key
from memfs.target.process import AddressSpace, VmaFlags


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
