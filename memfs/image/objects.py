"""What a process has mapped that is not its own: files, memfds, shared memory, open to be read.

It knows mappings and descriptors, and nothing of page tables: those have a say in private mappings.
"""

import contextlib
import errno
import os
import threading

from memfs.errors import RangeUnmapped
from memfs.image.served import ServedFiles
from memfs.linux import hugeholes
from memfs.linux.maps import Mapping
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Region
from memfs.target.origins import ObjectKey, object_key
from memfs.target.space import Space


class Objects:
    """A descriptor for each object that an address space maps, opened when it is first asked for.

    Attributes:
        served: those of them that someone else serves.
    """

    def __init__(self, space: Space) -> None:
        self.served = ServedFiles(space)
        self._space = space
        self._opening = threading.Lock()
        self._opened: dict[ObjectKey, int] = {}

    def open(self, region: Region) -> int:
        """A descriptor of what *region* shows, open until :meth:`close`; -1 where it cannot be had.

        So it is for what someone else serves, which is :attr:`served`'s.
        """
        if region.served:
            return -1
        mapping = region.mapping
        key = object_key(mapping)
        fd = self._opened.get(key)
        if fd is None:
            with self._opening:
                fd = self._opened.get(key)
                if fd is None:
                    try:
                        fd = self._space.open_backing(mapping)
                    except RangeUnmapped:
                        return -1  # it changes at this moment: a later try may find it
                    except OSError:
                        fd = -1
                    self._opened[key] = fd
        return fd

    def end(self, region: Region) -> int | None:
        """The address at which the object of *region* ends; None where it cannot be opened.

        Raises:
            RangeUnmapped: it has not the bytes any more that it should show, or does not answer.
        """
        if region.served:
            state = self.served.look(region)
            mtime_ns, size_bytes = state.mtime_ns, state.size_bytes
        else:
            fd = self.open(region)
            if fd < 0:
                return None
            found = os.fstat(fd)
            mtime_ns, size_bytes = found.st_mtime_ns, found.st_size
        self._space.ensure_unchanged(region.mapping, mtime_ns, size_bytes)
        return size_bytes - to_file(region.mapping)

    def close(self) -> None:
        """Close them all; a second call does nothing."""
        self.served.close()
        opened, self._opened = self._opened, {}
        for fd in opened.values():
            if fd >= 0:
                os.close(fd)


def to_file(mapping: Mapping) -> int:
    """What must be added to an address in *mapping* to have an offset in the object."""
    return mapping.offset - mapping.span.start


def find_in_file(fd: int, part: Span, into_file: int, *, data: bool) -> int:
    """Data or a hole in the mapped object, as an address; the end of *part* where there is none.

    Behind the end of the file there is a hole.
    """
    begin = part.start + into_file
    if hugeholes.is_on_hugetlbfs(fd):
        with contextlib.suppress(OSError):  # else it is data all through
            return hugeholes.seek(fd, begin, part.end + into_file, data=data) - into_file
    try:
        at = os.lseek(fd, begin, os.SEEK_DATA if data else os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # behind the end, or nothing but a hole up to it
            return part.end if data else part.start
        if error.errno != errno.EINVAL:  # the file system does not know holes
            raise
        inside = begin < os.fstat(fd).st_size
        return part.start if data == inside else part.end
    if not data and at != begin:
        # The hole at the end of a file begins with the page behind its last byte.
        at = -(-at // PAGE_BYTES) * PAGE_BYTES
    return min(max(at - into_file, part.start), part.end)
