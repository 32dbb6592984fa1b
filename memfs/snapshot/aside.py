"""What fork does not keep of a process, copied aside while it is stopped.

It goes into a memfd, in which :mod:`memfs.snapshot.places` gives each byte its place. All of it is copied
once before, which opens what must be opened, makes the pages that the copy is written to and maps them:
what is left for the pause is the copying itself.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator

from memfs.errors import MemfsError
from memfs.image.memory import Memory
from memfs.image.source import MAX_READ_BYTES, Workspace
from memfs.linux.span import Span
from memfs.linux.syscalls import punch_hole
from memfs.snapshot.places import COPY_BYTES, Copied, Group, Tile, find_objects
from memfs.snapshot.readers import Readers
from memfs.target.layout import Kind, Layout, Region
from memfs.target.process import AddressSpace

SHARED = "shared memory"
_READ_GAP_BYTES = 64 << 10
_MAPPED_BYTES = 1 << 20
"""So much at once is copied straight into the pages of the memfd: 199 ms for a GiB, where a buffer and
write(2) took 314."""


class Aside:
    """The memfd and what is in it.

    Attributes:
        fd: of the memfd. Whoever takes it over keeps it; :meth:`close` leaves it open.
        copied: the VMAs that are in it, by their start address.
        prepared_bytes: how much :meth:`take` has to copy, if nothing changes until then.
        left_bytes: how much more may be copied of what is limited.
        left_out: groups that are beyond that, each with its size.
    """

    def __init__(self, space: AddressSpace, limit_bytes: int) -> None:
        """Copy out of *space*, *limit_bytes* at most of what :meth:`prepare` is told to limit."""
        self.fd = os.memfd_create("memfs-snapshot", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, COPY_BYTES)
        self.copied: dict[int, Copied] = {}
        self.prepared_bytes = 0
        self.left_out: list[tuple[Group, int]] = []
        self._space = space
        self.left_bytes = limit_bytes
        self._layout: Layout | None = None
        self._prepared: list[tuple[Group, dict[Tile, list[Span]]]] = []
        self._sources: dict[Region, Memory] = {}
        self._windows: dict[Span, memoryview] = {}
        self._workspace = Workspace()
        self._readers = Readers()

    def close(self) -> None:
        """Let go of all but the memfd."""
        for source in self._sources.values():
            source.close()
        self._windows.clear()
        self._workspace.close()
        self._readers.close()

    def prepare(self, groups: list[Group], layout: Layout, *, limited: bool) -> None:
        """Copy *groups* in advance, in that order; what goes beyond the limit is left out."""
        self._layout = layout
        for group in groups:
            with contextlib.suppress(MemfsError, OSError):
                tiles = group.tiles(one.region for one in group.wanted)
                found = {tile: self._find_extents(tile, layout) for tile in tiles}
                size = sum(extent.size for extents in found.values() for extent in extents)
                if limited and size > self.left_bytes:
                    self.left_out.append((group, size))
                    continue
                for tile, extents in found.items():
                    self._copy(tile, extents, layout)
                for one in group.wanted:
                    self._readable_bytes(one.region, layout)
                self._prepared.append((group, found))
                self.prepared_bytes += size
                if limited:
                    self.left_bytes -= size

    def take(self, layout: Layout) -> None:
        """Copy it for good; *layout* is that of the stopped process."""
        changed = layout is not self._layout
        objects = find_objects(layout) if changed else {}
        for group, before in self._prepared:
            with contextlib.suppress(MemfsError, OSError):
                found = group.now(layout, objects) if changed else list(group.wanted)
                if not group.private:
                    found = [one for one in found if not self._space.is_fetched(one.region.span)]
                for tile in group.tiles(one.region for one in found):
                    extents = self._find_extents(tile, layout)
                    if extents != before.get(tile):
                        punch_hole(self.fd, tile.span.start + tile.shift, tile.span.size)
                    self._copy(tile, extents, layout)
                for one in found:
                    start, shift = one.region.span.start, group.shift_of(one.region)
                    assert shift is not None
                    size = self._readable_bytes(one.region, layout)
                    self.copied[start] = Copied(one.reason, size, start + shift)

    @property
    def taken(self) -> list[Group]:
        """The groups that :meth:`take` copies."""
        return [group for group, _ in self._prepared]

    def _find_extents(self, tile: Tile, layout: Layout) -> list[Span]:
        source = self._source(tile.region, layout)
        base = tile.region.span.start
        wanted = tile.span.moved(-base)
        found: list[Span] = []
        at = wanted.start
        while at < wanted.end:
            begin = source.next_data(at, self._workspace)
            if begin >= wanted.end:
                break
            at = min(source.next_hole(begin, self._workspace), wanted.end)
            found.append(Span(begin, at).moved(base))
        return found

    def _copy(self, tile: Tile, extents: list[Span], layout: Layout) -> None:
        """Holes stay holes: what lies in a small gap is read, but not written."""
        source = self._source(tile.region, layout)
        base = tile.region.span.start
        data = self._workspace.data
        large = []
        for stretch, pieces in _stretches(extents):
            window = self._window(stretch.moved(tile.shift)) if len(pieces) == 1 else None
            if window is not None:
                large.append((stretch.start - base, window))
                continue
            source.read_into(stretch.start - base, data[: stretch.size], self._workspace)
            for piece in pieces:
                at = piece.start - stretch.start
                os.pwrite(self.fd, data[at : at + piece.size], piece.start + tile.shift)
        self._readers.read(source, large)

    def _window(self, place: Span) -> memoryview | None:
        """The memfd's own pages at *place*, if that is worth it; they stay mapped."""
        if place.size < _MAPPED_BYTES:
            return None
        window = self._windows.get(place)
        if window is None:
            try:
                pages = mmap.mmap(self.fd, place.size, offset=place.start)
            except OSError:  # there are vm.max_map_count mappings
                return None
            window = self._windows[place] = memoryview(pages)
        return window

    def _readable_bytes(self, region: Region, layout: Layout) -> int:
        return self._source(region, layout).readable_bytes(region, self._workspace.scanner)

    def _source(self, region: Region, layout: Layout) -> Memory:
        source = self._sources.get(region)
        if source is None:
            source = self._sources[region] = Memory(self._space, layout, region.span, flat=False)
        return source


def what_fork_does_not_keep(region: Region, flags: frozenset[bytes]) -> str:
    """Why fork leaves *region* out of the copy, or keeps it shared; empty where it does neither.

    *flags* are those of smaps. What a userfaultfd supplies cannot be read while its server, maybe a
    thread of the process, stands still: it is not copied either. Nor is a file that someone else serves,
    who may take as long as he likes.
    """
    if not region.has_file or region.served or region.kind is Kind.OPAQUE or b"um" in flags:
        return ""
    if b"dc" in flags:
        return "MADV_DONTFORK"
    if b"wf" in flags:
        return "MADV_WIPEONFORK"
    if b"ht" in flags and not region.mapping.shared:
        return "private huge pages, which the kernel takes from a copy when there are too few"
    return SHARED if region.kind is Kind.SHARED else ""


def _stretches(extents: list[Span]) -> Iterator[tuple[Span, list[Span]]]:
    """What to read at once, and the *extents*, or parts of them, that lie in it.

    Extents with small gaps are read together: a call costs more than some pages.
    """
    pieces: list[Span] = []
    for extent in extents:
        for start in range(extent.start, extent.end, MAX_READ_BYTES):
            piece = Span(start, min(start + MAX_READ_BYTES, extent.end))
            if pieces and (
                piece.start - pieces[-1].end > _READ_GAP_BYTES or piece.end - pieces[0].start > MAX_READ_BYTES
            ):
                yield Span(pieces[0].start, pieces[-1].end), pieces
                pieces = []
            pieces.append(piece)
    if pieces:
        yield Span(pieces[0].start, pieces[-1].end), pieces
