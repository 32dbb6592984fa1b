"""Kinds of mappings, and which of them a span meets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.values import mappings, page_spans

from memfs.linux.procfs import Access, Mapping, MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, kind_of, make_layout, may_be_device

NO_FLAGS: frozenset[bytes] = frozenset()


def mapped(path: bytes, *, shared: bool = False, inode: int = 1) -> Mapping:
    access = Access.READ | (Access.SHARED if shared else Access(0))
    return Mapping(Span(0x1000, 0x3000), access, 0, (8, 1), inode, path)


@pytest.mark.parametrize(
    ("mapping", "flags", "kind"),
    [
        (mapped(b"", inode=0), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"[heap]", inode=0), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"[stack]", inode=0), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"[anon:a name]", inode=0), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"/dev/zero"), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"/anon_hugepage (deleted)"), NO_FLAGS, Kind.ANONYMOUS),
        (mapped(b"/usr/bin/cat"), NO_FLAGS, Kind.PRIVATE_FILE),
        (mapped(b"/memfd:x (deleted)"), NO_FLAGS, Kind.PRIVATE_FILE),
        (mapped(b"/usr/bin/cat", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"/dev/zero (deleted)", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"/dev/shm/x", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"/SYSV00000000 (deleted)", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"/memfd:x (deleted)", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"[anon_shmem:x]", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"/anon_hugepage (deleted)", shared=True), NO_FLAGS, Kind.SHARED),
        (mapped(b"[vdso]", inode=0), NO_FLAGS, Kind.OPAQUE),
        (mapped(b"/dev/mem", shared=True), NO_FLAGS, Kind.OPAQUE),
        (mapped(b"anon_inode:[perf_event]", shared=True), NO_FLAGS, Kind.OPAQUE),
        (mapped(b"/dev/mem", shared=True), frozenset((b"rd", b"pf")), Kind.UNREADABLE),
        (mapped(b"/dev/nvidia0", shared=True), frozenset((b"io",)), Kind.UNREADABLE),
        (mapped(b"[vvar]", inode=0), NO_FLAGS, Kind.UNREADABLE),
        (mapped(b"[vvar_vclock]", inode=0), NO_FLAGS, Kind.UNREADABLE),
        (mapped(b"[vsyscall]", inode=0), NO_FLAGS, Kind.UNREADABLE),
        (mapped(b"/secretmem (deleted)", shared=True), NO_FLAGS, Kind.UNREADABLE),
    ],
)
def test_the_kind_tells_where_the_bytes_are(mapping: Mapping, flags: frozenset[bytes], kind: Kind) -> None:
    assert kind_of(mapping, flags) is kind


@given(mappings)
def test_every_mapping_has_a_kind_and_flags_of_devices_count_only_for_these(mapping: Mapping) -> None:
    assert isinstance(kind_of(mapping, NO_FLAGS), Kind)
    if kind_of(mapping, NO_FLAGS) in (Kind.SHARED, Kind.PRIVATE_FILE):
        assert not may_be_device(mapping)


def test_flags_go_to_the_mapping_that_begins_where_they_were_read() -> None:
    one = mapped(b"/dev/mem", shared=True)
    other = Mapping(Span(0x3000, 0x4000), one.access, 0, one.device, 1, one.path)
    layout = make_layout((one, other), {0x3000: MemoryUse(0x3000, 0, 0, frozenset((b"pf",)))})
    assert [region.kind for region in layout.regions] == [Kind.OPAQUE, Kind.UNREADABLE]
    assert [region.has_file for region in layout.regions] == [True, False]


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
    layout = make_layout(space, {})
    met = [mapping for mapping in space if mapping.span.start < span.end and span.start < mapping.span.end]
    assert [region.mapping for region in layout.over(span)] == met


@given(address_spaces())
def test_the_end_is_that_of_the_highest_mapping_below_the_kernel(space: tuple[Mapping, ...]) -> None:
    vsyscall = Mapping(Span(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000), Access.EXEC, 0, (0, 0), 0, b"[vsyscall]")
    assert make_layout((*space, vsyscall), {}).end == (space[-1].span.end if space else 0)


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
