"""Kinds of mappings, and which of them a span meets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.values import mappings, page_spans

from memfs.linux.maps import Access, Mapping
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, kind_of, make_layout, needs_flags
from memfs.target.origins import Device, Found, Origin, origin_by_type

NO_FLAGS: frozenset[bytes] = frozenset()
IO: frozenset[bytes] = frozenset((b"io",))
PF: frozenset[bytes] = frozenset((b"rd", b"pf"))
DISK = (8, 1)
NO_OBJECTS = Found({})


def mapped(path: bytes = b"/x", *, shared: bool = False, device: Device = DISK) -> Mapping:
    access = Access.READ | (Access.SHARED if shared else Access(0))
    return Mapping(Span(0x1000, 0x3000), access, 0, device, 1, path)


def nameless(path: bytes) -> Mapping:
    return Mapping(Span(0x1000, 0x3000), Access.READ, 0, (0, 0), 0, path)


KERNELS_WORDS = (
    b"/dev/zero", b"/anon_hugepage", b"/anon_hugepage (deleted)", b"/secretmem (deleted)", b"[vvar]",
    b"[vdso]",
    b"[heap]", b"[stack]", b"[anon:x]", b"[vsyscall]", b"/memfd:x (deleted)", b"/SYSV00000000 (deleted)",
    b"anon_inode:[perf_event]", b"/dev/mem", b"/sys/x", b"/proc/x",
)  # fmt: skip


@pytest.mark.parametrize("path", KERNELS_WORDS)
@pytest.mark.parametrize("origin", [Origin.FILE, Origin.SERVED, Origin.UNSEEN, Origin.UNKNOWN, Origin.MEMORY])
def test_what_a_file_is_called_does_not_matter(path: bytes, origin: Origin) -> None:
    assert kind_of(mapped(path), origin, NO_FLAGS) is Kind.PRIVATE_FILE
    assert kind_of(mapped(path, shared=True), origin, NO_FLAGS) is Kind.SHARED


@pytest.mark.parametrize(
    ("mapping", "origin", "flags", "kind"),
    [
        (nameless(b""), Origin.NOTHING, NO_FLAGS, Kind.ANONYMOUS),
        (nameless(b"[heap]"), Origin.NOTHING, NO_FLAGS, Kind.ANONYMOUS),
        (nameless(b"[stack]"), Origin.NOTHING, NO_FLAGS, Kind.ANONYMOUS),
        (nameless(b"[anon:a name]"), Origin.NOTHING, NO_FLAGS, Kind.ANONYMOUS),
        (nameless(b"[vdso]"), Origin.NOTHING, NO_FLAGS, Kind.OPAQUE),
        (nameless(b"[uprobes]"), Origin.NOTHING, NO_FLAGS, Kind.OPAQUE),
        (nameless(b"[uprobes]"), Origin.NOTHING, IO, Kind.UNREADABLE),
        (nameless(b"[vvar]"), Origin.NOTHING, NO_FLAGS, Kind.UNREADABLE),
        (nameless(b"[vvar_vclock]"), Origin.NOTHING, NO_FLAGS, Kind.UNREADABLE),
        (nameless(b"[vsyscall]"), Origin.NOTHING, NO_FLAGS, Kind.UNREADABLE),
        (mapped(), Origin.ZERO, NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"/anon_hugepage (deleted)"), Origin.HUGE, NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"/memfd:anon_hugepage (deleted)"), Origin.HUGE, NO_FLAGS, Kind.PRIVATE_FILE),
        (mapped(b"/anon_hugepage (deleted)", shared=True), Origin.HUGE, NO_FLAGS, Kind.SHARED),
        (mapped(), Origin.SECRET, NO_FLAGS, Kind.UNREADABLE),
        (mapped(shared=True), Origin.SECRET, NO_FLAGS, Kind.UNREADABLE),
        (mapped(), Origin.DEVICE, NO_FLAGS, Kind.OPAQUE),
        (mapped(shared=True), Origin.DEVICE, PF, Kind.UNREADABLE),
        (mapped(shared=True), Origin.UNKNOWN, IO, Kind.UNREADABLE),
        (mapped(shared=True), Origin.UNSEEN, PF, Kind.UNREADABLE),
    ],
)
def test_the_kind_tells_where_the_bytes_are(
    mapping: Mapping, origin: Origin, flags: frozenset[bytes], kind: Kind
) -> None:
    assert kind_of(mapping, origin, flags) is kind


@pytest.mark.parametrize("inode", [0, 1])
def test_what_is_on_our_own_mount_is_left_alone(inode: int) -> None:
    own = Mapping(Span(0x1000, 0x3000), Access.READ, 0, (0, 77), inode, b"/mnt/1/mem")
    assert kind_of(own, Origin.SERVED, NO_FLAGS, (0, 77)) is Kind.UNREADABLE
    assert kind_of(own, Origin.SERVED, NO_FLAGS, (0, 78)) is Kind.PRIVATE_FILE


@given(mappings, st.sampled_from(Origin))
def test_every_mapping_has_a_kind_and_flags_are_asked_for_where_they_count(
    mapping: Mapping, origin: Origin
) -> None:
    without, with_flags = (kind_of(mapping, origin, flags) for flags in (NO_FLAGS, IO))
    assert isinstance(without, Kind)
    if without is not Kind.UNREADABLE and needs_flags(mapping, origin):
        assert with_flags is Kind.UNREADABLE


@pytest.mark.parametrize(
    ("fs_type", "device", "ours", "origin"),
    [
        (b"ext4", (8, 1), True, Origin.FILE),
        (b"a type of the future", (259, 3), False, Origin.FILE),
        (b"btrfs", (0, 31), True, Origin.FILE),
        (b"tmpfs", (0, 31), False, Origin.FILE),
        (b"overlay", (0, 31), True, Origin.FILE),
        (b"overlay", (0, 31), False, Origin.SERVED),
        (b"fuse.sshfs", (0, 31), True, Origin.SERVED),
        (b"fuse.ext4", (0, 31), False, Origin.SERVED),
        (b"fuseblk", (8, 1), True, Origin.SERVED),
        (b"fuseblk.ntfs", (8, 1), True, Origin.SERVED),
        (b"virtiofs", (0, 31), True, Origin.SERVED),
        (b"nfs4", (0, 31), True, Origin.SERVED),
        (b"9p", (0, 31), True, Origin.SERVED),
        (b"a type of the future", (0, 31), True, Origin.SERVED),
        (b"sysfs", (0, 31), False, Origin.DEVICE),
        (b"proc", (0, 31), True, Origin.DEVICE),
    ],
)
def test_a_file_system_is_trusted_to_answer_by_its_type(
    fs_type: bytes, device: Device, ours: bool, origin: Origin
) -> None:
    assert origin_by_type(fs_type, device, ours=ours) is origin


def test_flags_and_origins_go_to_the_mappings_that_they_were_found_for() -> None:
    one = mapped(b"/dev/mem", shared=True)
    other = Mapping(Span(0x3000, 0x4000), one.access, 0, one.device, 1, one.path)
    served = Mapping(Span(0x5000, 0x6000), one.access, 0, (0, 99), 1, one.path)
    found = Found({(one.device, 1): Origin.DEVICE, (served.device, 1): Origin.SERVED})
    layout = make_layout((one, other, served), found, {0x3000: MemoryUse(0x3000, 0, 0, frozenset((b"pf",)))})
    assert [region.kind for region in layout.regions] == [Kind.OPAQUE, Kind.UNREADABLE, Kind.SHARED]
    assert [region.has_file for region in layout.regions] == [True, False, True]
    assert [region.served for region in layout.regions] == [False, False, True]


@st.composite
def address_spaces(draw: st.DrawFn) -> tuple[Mapping, ...]:
    """Mappings in order of address that do not overlap, with and without gaps between."""
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=16)))
    pairs = [pair for pair in pairwise(edges) if draw(st.booleans())]
    return tuple(
        Mapping(Span(start * PAGE_BYTES, end * PAGE_BYTES), Access.READ, 0, (0, 0), 0, b"")
        for start, end in pairs
    )


@given(address_spaces(), st.integers(0, 42 * PAGE_BYTES), st.integers(1, 42 * PAGE_BYTES))
def test_over_gives_the_regions_that_meet_the_span_in_order(
    space: tuple[Mapping, ...], start: int, size: int
) -> None:
    span = Span(start, start + size)
    layout = make_layout(space, NO_OBJECTS, {})
    met = [mapping for mapping in space if mapping.span.start < span.end and span.start < mapping.span.end]
    assert [region.mapping for region in layout.over(span)] == met


@given(address_spaces())
def test_the_end_is_that_of_the_highest_mapping_below_the_kernel(space: tuple[Mapping, ...]) -> None:
    vsyscall = Mapping(Span(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000), Access.EXEC, 0, (0, 0), 0, b"[vsyscall]")
    assert make_layout((*space, vsyscall), NO_OBJECTS, {}).end == (space[-1].span.end if space else 0)


@given(page_spans(), st.integers(1, 3))
def test_bounds_and_protection_may_change_and_the_memory_be_the_same(span: Span, pages: int) -> None:
    whole = Mapping(span, Access.READ, 0x5000, (8, 1), 7, b"/f")
    by = pages * PAGE_BYTES
    later = Mapping(Span(span.start + by, span.end + by), Access.WRITE, 0x5000 + by, (8, 1), 7, b"/f")
    assert whole.same_memory(later)
    assert not whole.same_memory(Mapping(later.span, later.access, 0x5000, (8, 1), 7, b"/f"))
    assert not whole.same_memory(Mapping(span, Access.READ | Access.SHARED, 0x5000, (8, 1), 7, b"/f"))
    assert not whole.same_memory(Mapping(span, Access.READ, 0x5000, (8, 2), 7, b"/f"))
    assert not whole.same_memory(Mapping(span, Access.READ, 0, (0, 0), 0, b""))
