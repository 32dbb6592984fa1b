"""What a process maps: its VMAs in order, and what kind of memory each of them shows.

Values only: this module reads nothing.
"""

import enum
from bisect import bisect_right
from collections.abc import Iterator
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.maps import Mapping
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import Span
from memfs.target.origins import Device, Found, Origin


class Kind(enum.Enum):
    """Where the bytes of a mapping are."""

    ANONYMOUS = enum.auto()
    """In the process's own pages; a page that its page tables do not know was never touched."""
    PRIVATE_FILE = enum.auto()
    """In its own copies of the pages that it wrote, and in the file for the rest."""
    SHARED = enum.auto()
    """In the file, the memfd or the shared memory object."""
    OPAQUE = enum.auto()
    """Wherever the kernel finds them: to be had through the address space only (vDSO, devices)."""
    COPIED = enum.auto()
    """In a copy that was made of it while its process was stopped."""
    ABSENT = enum.auto()
    """In the process, but not in this frozen copy of it."""
    UNREADABLE = enum.auto()
    """No one can read them: vvar, vsyscall, I/O and PFN mappings, secretmem; nor we our own mount."""


USER_END = 1 << 56
"""No user address on x86-64 or arm64 is above; vsyscall is."""

_PLAIN_NAMES = frozenset((b"", b"[heap]", b"[stack]"))
_NEVER_READABLE = (b"[vvar", b"[vsyscall]")
_DEVICE_FLAGS = frozenset((b"io", b"pf"))
_BY_FLAGS = (Origin.DEVICE, Origin.UNKNOWN, Origin.UNSEEN)


def needs_flags(mapping: Mapping, origin: Origin) -> bool:
    """Whether only the kernel's flags (smaps) can tell if *mapping* is memory that can be read."""
    if origin is Origin.NOTHING:
        path = mapping.path
        known = path in _PLAIN_NAMES or path == b"[vdso]" or path.startswith((b"[anon:", *_NEVER_READABLE))
        return not known
    return origin in _BY_FLAGS


def kind_of(
    mapping: Mapping, origin: Origin, flags: frozenset[bytes], own_device: Device | None = None
) -> Kind:
    """The kind of *mapping*. *flags* are those of smaps, needed where :func:`needs_flags`.

    A path counts only where the kernel alone can have written it: where nothing is mapped, and on the
    internal mounts of hugetlbfs, whose files it names itself.

    A file of the mount itself, on *own_device*, can be mapped like any other; but we could read it
    only by asking ourselves, and wait for our own answer.
    """
    path = mapping.path
    if origin is Origin.NOTHING:
        if path.startswith(_NEVER_READABLE) or mapping.span.end > USER_END or flags & _DEVICE_FLAGS:
            return Kind.UNREADABLE
        return Kind.OPAQUE if needs_flags(mapping, origin) or path == b"[vdso]" else Kind.ANONYMOUS
    if mapping.device == own_device or origin is Origin.SECRET or flags & _DEVICE_FLAGS:
        return Kind.UNREADABLE
    if origin is Origin.DEVICE:
        return Kind.OPAQUE
    if mapping.shared:
        return Kind.SHARED
    anonymous = origin is Origin.ZERO or (origin is Origin.HUGE and path.startswith(b"/anon_hugepage"))
    return Kind.ANONYMOUS if anonymous else Kind.PRIVATE_FILE


@attrs.frozen
class Region:
    """A mapping and its kind.

    Attributes:
        served: whether its file may be some other process's or machine's to give, which may never answer.
    """

    mapping: Mapping
    kind: Kind
    served: bool = False

    @property
    def span(self) -> Span:
        """Its addresses."""
        return self.mapping.span

    @property
    def has_file(self) -> bool:
        """Whether there is a file for it in ``vmas/``."""
        return self.kind is not Kind.UNREADABLE


@attrs.frozen
class Layout:
    """The address space of a process at one moment."""

    regions: tuple[Region, ...]
    _starts: tuple[int, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(region.mapping.span.start for region in self.regions))

    @property
    def end(self) -> int:
        """The end of the highest mapping in user space; 0 where there is none."""
        return max((r.span.end for r in self.regions if r.span.end <= USER_END), default=0)

    def at(self, address: int) -> Region | None:
        """The region that covers *address*."""
        index = bisect_right(self._starts, address) - 1
        return self.regions[index] if index >= 0 and address < self.regions[index].span.end else None

    def over(self, span: Span) -> Iterator[Region]:
        """The regions that meet *span*, in order."""
        at = max(0, bisect_right(self._starts, span.start) - 1)
        while at < len(self.regions) and self._starts[at] < span.end:
            if self.regions[at].span.end > span.start:
                yield self.regions[at]
            at += 1


def make_layout(
    mappings: tuple[Mapping, ...],
    origins: Found,
    flags: ReadOnlyDict[int, MemoryUse],
    own_device: Device | None = None,
) -> Layout:
    """The layout of *mappings*; *flags* has an entry by start address where :func:`needs_flags`."""
    nothing: frozenset[bytes] = frozenset()
    regions = []
    for mapping in mappings:
        origin = origins.of(mapping)
        use = flags.get(mapping.span.start)
        kind = kind_of(mapping, origin, use.flags if use else nothing, own_device)
        regions.append(Region(mapping, kind, origin in _SERVED and kind in _FROM_FILES))
    return Layout(tuple(regions))


_SERVED = (Origin.SERVED, Origin.UNKNOWN)
_FROM_FILES = (Kind.PRIVATE_FILE, Kind.SHARED)
