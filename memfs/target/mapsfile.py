"""The VMAs of one mm, asked by an open descriptor of its ``/proc/PID/maps``."""

import errno
from collections.abc import Iterator

from memfs.linux import procfs
from memfs.linux.maps import Mapping, MappingQuery, parse_maps
from memfs.linux.mapstext import lines_over, with_exact_path
from memfs.linux.span import Span


class MapsFile:
    """Answers which VMAs there are now. It does not own its descriptor.

    Attributes:
        has_query: whether the kernel is asked by PROCMAP_QUERY (Linux 6.11), which looks at one VMA.

    Every method raises ProcessLookupError where the mm has no user any more: the process has ended or has
    run exec, which this class cannot tell apart.
    """

    def __init__(self, fd: int, pid: int) -> None:
        """Ask by *fd*, which was opened by the number *pid* of the process or of a thread of it."""
        self.has_query = True
        self._fd = fd
        self._pid = pid

    def text(self) -> bytes:
        """Read the whole text."""
        if text := procfs.read_whole(self._fd):
            return text
        raise ProcessLookupError(errno.ESRCH, "the address space is gone")

    def over(self, span: Span, *, paths: bool = False) -> Iterator[Mapping]:
        """Yield the VMAs that meet *span* at this moment, in order; with their *paths* only if asked for."""
        if self.has_query:
            try:
                yield from self._query_over(span, paths)
            except OSError as error:
                if error.errno == errno.ENOTTY:  # before Linux 6.11
                    self.has_query = False
                elif error.errno != errno.ENAMETOOLONG:  # the query knows no path above PATH_MAX
                    raise
            else:
                return
        for mapping in parse_maps(lines_over(self.text(), span)):
            exact = paths and b"\n" in mapping.path
            yield with_exact_path(self._pid, mapping) if exact else mapping

    def beginning(self, addresses: list[int]) -> frozenset[int]:
        """Return those of *addresses* at which a VMA begins."""
        wanted = frozenset(addresses)
        if not self.has_query:
            return wanted.intersection(found.span.start for found in parse_maps(self.text()))
        return wanted.intersection(
            found.span.start for at in addresses for found in self.over(Span(at, at + 1))
        )

    def _query_over(self, span: Span, paths: bool) -> Iterator[Mapping]:
        query = MappingQuery(self._fd, paths=paths)
        at = span.start
        while at < span.end:
            mapping = query.at(at)
            if mapping is None or mapping.span.start >= span.end:
                return
            yield mapping
            at = mapping.span.end
