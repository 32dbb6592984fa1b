"""Core files: where everything lies in one, and how much of a mapping it has."""

import subprocess
from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from unit.values import accesses, page_spans

from memfs.image.elfcore import CoreFilter, Extent, Segment, dumped_bytes, lay_out
from memfs.linux.maps import Access, Mapping
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.x86 import FORMAT_32, FORMAT_64

MANY = 70_000


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Nothing of it in the file, its first page, or all."""
    span = draw(page_spans())
    return Segment(span, draw(accesses), draw(st.sampled_from([0, PAGE_BYTES, span.size])))


several_segments = st.lists(segments(), max_size=20)
notes = st.integers(0, 3000).map(lambda words: b"note" * words)


def many_segments(count: int) -> list[Segment]:
    return [
        Segment(Span(at * PAGE_BYTES, (at + 1) * PAGE_BYTES), Access.READ, PAGE_BYTES * (at % 2))
        for at in range(1, count + 1)
    ]


@given(notes, several_segments)
def test_head_and_extents_tile_the_file(notes: bytes, segments: list[Segment]) -> None:
    layout = lay_out(FORMAT_64, notes, segments)
    ends = [Span(0, len(layout.head)), *(extent.span for extent in layout.extents)]
    assert all(before.end == after.start for before, after in pairwise(ends))
    assert ends[-1].end == layout.size_bytes
    assert all(span.start % PAGE_BYTES == 0 and span for span in ends)


@given(notes, several_segments)
def test_each_extent_holds_the_beginning_of_a_segment(notes: bytes, segments: list[Segment]) -> None:
    extents = lay_out(FORMAT_64, notes, segments).extents
    assert [(extent.address, extent.span.size) for extent in extents] == [
        (segment.span.start, segment.dumped_bytes) for segment in segments if segment.dumped_bytes
    ]


@given(notes, several_segments)
def test_the_program_headers_say_what_was_laid_out(notes: bytes, segments: list[Segment]) -> None:
    layout = lay_out(FORMAT_64, notes, segments)
    noted, *loads = ELFFile(BytesIO(layout.head)).iter_segments()
    assert (noted["p_type"], noted["p_align"], noted.data()) == ("PT_NOTE", 4, notes)
    assert [
        (load["p_vaddr"], load["p_memsz"], load["p_filesz"], load["p_flags"] & 4, load["p_flags"] & 3)
        for load in loads
    ] == [
        (
            segment.span.start,
            segment.span.size,
            segment.dumped_bytes,
            4 if Access.READ in segment.access else 0,
            (2 if Access.WRITE in segment.access else 0) + (1 if Access.EXEC in segment.access else 0),
        )
        for segment in segments
    ]
    assert all((load["p_type"], load["p_paddr"], load["p_align"]) == ("PT_LOAD", 0, 4096) for load in loads)
    assert [
        Extent(Span(load["p_offset"], load["p_offset"] + load["p_filesz"]), load["p_vaddr"])
        for load in loads
        if load["p_filesz"]
    ] == list(layout.extents)


@given(notes, several_segments)
def test_offsets_never_go_back_and_match_their_addresses_page_by_page(
    notes: bytes, segments: list[Segment]
) -> None:
    layout = lay_out(FORMAT_64, notes, segments)
    _, *loads = ELFFile(BytesIO(layout.head)).iter_segments()
    offsets = [len(layout.head), *(load["p_offset"] for load in loads), layout.size_bytes]
    assert offsets == sorted(offsets)
    assert all(load["p_offset"] % PAGE_BYTES == load["p_vaddr"] % PAGE_BYTES for load in loads)


def test_it_is_a_core_for_linux_on_x86_64_without_sections() -> None:
    core = ELFFile(BytesIO(lay_out(FORMAT_64, b"", ()).head))
    assert (core.elfclass, core.little_endian, core["e_version"]) == (64, True, "EV_CURRENT")
    assert (core["e_type"], core["e_machine"], core["e_flags"]) == ("ET_CORE", "EM_X86_64", 0)
    # System V is what ELFOSABI_NONE was called first.
    assert (core["e_ident"]["EI_OSABI"], core["e_ident"]["EI_VERSION"]) == ("ELFOSABI_SYSV", "EV_CURRENT")
    assert (core["e_phoff"], core["e_phnum"], core["e_shoff"], core["e_shnum"]) == (64, 1, 0, 0)


@pytest.mark.parametrize(
    ("count", "in_header", "sections"), [(65_533, 65_534, 0), (65_534, 65_535, 1), (MANY, 65_535, 1)]
)
def test_what_e_phnum_cannot_count_a_section_header_does(count: int, in_header: int, sections: int) -> None:
    layout = lay_out(FORMAT_64, b"note", many_segments(count))
    core = ELFFile(BytesIO(layout.head))
    assert (core["e_phnum"], core["e_shnum"]) == (in_header, sections)
    assert core.num_segments() == 1 + count
    assert core.get_segment(0).data() == b"note"
    assert core.get_segment(count)["p_vaddr"] == count * PAGE_BYTES


def test_readelf_reads_70_000_segments_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "core"
    layout = lay_out(FORMAT_64, b"", many_segments(MANY))
    path.write_bytes(layout.head)
    with path.open("r+b") as file:
        file.truncate(layout.size_bytes)
    done = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert f"There are {MANY + 1} program headers" in done.stdout
    loads = [line.split() for line in done.stdout.splitlines() if line.startswith("  LOAD ")]
    assert [int(load[2], 16) for load in loads] == [at * PAGE_BYTES for at in range(1, MANY + 1)]


def test_a_core_of_32_bits_has_smaller_headers_and_tells_of_no_more_than_they_can() -> None:
    span = Span(0x1000, 0x3000)
    high = Span(1 << 32, (1 << 32) + PAGE_BYTES)
    layout = lay_out(
        FORMAT_32, b"note", [Segment(span, Access.READ, span.size), Segment(high, Access.READ, PAGE_BYTES)]
    )
    core = ELFFile(BytesIO(layout.head))
    assert (core.elfclass, core["e_machine"], core["e_phoff"], core["e_phnum"]) == (32, "EM_386", 52, 2)
    note, load = core.iter_segments()
    assert note.data() == b"note"
    assert (load["p_vaddr"], load["p_memsz"], load["p_filesz"], load["p_flags"]) == (
        0x1000,
        0x2000,
        0x2000,
        4,
    )
    assert layout.extents == (Extent(Span(load["p_offset"], layout.size_bytes), 0x1000),)


def test_what_a_header_of_32_bits_cannot_point_at_is_left_out() -> None:
    most = Span(PAGE_BYTES, (1 << 32) - PAGE_BYTES)
    last = Span(most.end - PAGE_BYTES, most.end)
    segments = [Segment(most, Access.READ, most.size), Segment(last, Access.READ, PAGE_BYTES)]
    layout = lay_out(FORMAT_32, b"note", segments)
    _, *loads = ELFFile(BytesIO(layout.head)).iter_segments()
    assert [load["p_filesz"] for load in loads] == [most.size, 0]


PLAIN = frozenset((b"rd", b"wr", b"mr", b"mw", b"me"))
SHARED = PLAIN | {b"sh", b"ms"}
ALL = CoreFilter(0x1FF)
DEFAULT = CoreFilter(0x33)
NONE = CoreFilter(0)
PAGES = 3
WHOLE = PAGES * PAGE_BYTES


def mapped(path: bytes, *, offset: int = 0, access: Access = Access.READ) -> Mapping:
    """A mapping as maps has it: only what is named like a file has a device and an inode."""
    backed = path not in (b"", b"[heap]", b"[vdso]", b"[vvar]", b"[vsyscall]")
    device, inode = ((0, 1), 7) if backed else ((0, 0), 0)
    return Mapping(Span(0x10000, 0x10000 + WHOLE), access, offset, device, inode, path)


def never_asked() -> bool:
    raise AssertionError("this must not be read")


def of(
    mapping: Mapping,
    flags: frozenset[bytes],
    filter_: CoreFilter,
    *,
    own: bool = False,
    named: bool = True,
    program: Callable[[], bool] = never_asked,
    dax: bool = False,
) -> int:
    return dumped_bytes(
        mapping,
        flags,
        filter_,
        has_own_pages=own,
        has_name=lambda: named,
        begins_program=program,
        dax=dax,
    )


ANONYMOUS, HEAP = mapped(b""), mapped(b"[heap]")
FILE = mapped(b"/usr/lib/libc.so.6", offset=PAGE_BYTES)
LARGE = mapped(b"/anon_hugepage (deleted)")
DAX = mapped(b"/pmem/x")


@pytest.mark.parametrize(
    ("mapping", "flags", "own", "bit"),
    [
        # "bit 0: Dump anonymous private mappings", and pages of files that were written to privately.
        (ANONYMOUS, PLAIN, True, CoreFilter.ANON_PRIVATE),
        (HEAP, PLAIN, True, CoreFilter.ANON_PRIVATE),
        # "bit 2: Dump file-backed private mappings".
        (FILE, PLAIN, False, CoreFilter.FILE_PRIVATE),
        (mapped(b"/tmp/x (deleted)", offset=PAGE_BYTES), PLAIN, False, CoreFilter.FILE_PRIVATE),
        # A shared mapping of a file that is open to be read only is a private one to the kernel.
        (mapped(b"/x", offset=PAGE_BYTES, access=Access.READ | Access.SHARED), PLAIN | {b"ms"}, False,
         CoreFilter.FILE_PRIVATE),
        # "bit 3: Dump file-backed shared mappings".
        (FILE, SHARED, False, CoreFilter.FILE_SHARED),
        (mapped(b"/dev/shm/x"), SHARED, False, CoreFilter.FILE_SHARED),
        # "bit 5: Dump private huge pages", and "bit 6: Dump shared huge pages", whoever wrote to them.
        (LARGE, PLAIN | {b"ht"}, True, CoreFilter.HUGETLB_PRIVATE),
        (LARGE, SHARED | {b"ht"}, False, CoreFilter.HUGETLB_SHARED),
    ],
)  # fmt: skip
def test_one_bit_decides(mapping: Mapping, flags: frozenset[bytes], own: bool, bit: CoreFilter) -> None:
    assert of(mapping, flags, bit, own=own) == WHOLE
    assert of(mapping, flags, ALL & ~bit, own=own, program=lambda: False) == 0


# "bit 1: Dump anonymous shared mappings": those whose file has no name, whatever maps prints for one.
@pytest.mark.parametrize("path", [b"/dev/zero (deleted)", b"[anon_shmem:buffer]", b"/tmp/x", b"/x (deleted)"])
def test_a_shared_file_without_a_name_is_anonymous_memory(path: bytes) -> None:
    assert of(mapped(path), SHARED, CoreFilter.ANON_SHARED, named=False) == WHOLE
    assert of(mapped(path), SHARED, ALL & ~CoreFilter.ANON_SHARED, named=False) == 0
    assert of(mapped(path), SHARED, CoreFilter.ANON_SHARED, named=True) == 0


@pytest.mark.parametrize("path", [b"[vdso]", b"[vvar]", b"[vsyscall]"])
def test_a_file_that_is_called_like_the_vdso_is_a_file(path: bytes) -> None:
    called_so = Mapping(Span(0x10000, 0x20000), Access.READ, 0, (8, 1), 7, path)
    assert of(called_so, PLAIN, NONE) == 0


@pytest.mark.parametrize(
    ("flags", "bit"), [(PLAIN, CoreFilter.DAX_PRIVATE), (SHARED, CoreFilter.DAX_SHARED)]
)  # "bit 7: Dump private DAX pages", "bit 8: Dump shared DAX pages"
def test_dax_has_bits_of_its_own(flags: frozenset[bytes], bit: CoreFilter) -> None:
    assert of(DAX, flags, bit, own=True, dax=True) == WHOLE
    assert of(DAX, flags, ALL & ~bit, own=True, dax=True) == 0


@pytest.mark.parametrize("bit", [CoreFilter.ANON_PRIVATE, CoreFilter.FILE_PRIVATE])
def test_for_a_file_that_was_written_to_privately_either_bit_does(bit: CoreFilter) -> None:
    assert of(FILE, PLAIN, bit, own=True) == WHOLE


@pytest.mark.parametrize(
    ("mapping", "flags", "filter_", "own"),
    [
        # "Memory-mapped I/O pages such as frame buffer are never dumped".
        (mapped(b"/dev/fb0"), SHARED | {b"io", b"pf", b"dd"}, ALL, False),
        (mapped(b"/dev/fb0"), SHARED | {b"io"}, ALL, False),
        # madvise(2), MADV_DONTDUMP: "This … takes precedence over the bit mask".
        (ANONYMOUS, PLAIN | {b"dd"}, ALL, True),
        (LARGE, PLAIN | {b"ht", b"dd"}, ALL, True),
        # What was never touched is neither anonymous memory nor a file's.
        (ANONYMOUS, PLAIN, ALL, False),
    ],
)
def test_some_memory_no_bit_makes_dumped(
    mapping: Mapping, flags: frozenset[bytes], filter_: CoreFilter, own: bool
) -> None:
    assert of(mapping, flags, filter_, own=own) == 0


@pytest.mark.parametrize("path", [b"[vdso]", b"[vvar]", b"[vsyscall]"])
def test_the_vdso_is_dumped_regardless_of_the_filter(path: bytes) -> None:
    assert of(mapped(path), PLAIN | {b"de", b"dd", b"io"}, NONE) == WHOLE


@pytest.mark.parametrize("is_program", [True, False])
def test_bit_4_dumps_the_first_page_of_a_program_or_library(is_program: bool) -> None:
    library = mapped(b"/usr/lib/libc.so.6")
    assert of(library, PLAIN, DEFAULT, program=lambda: is_program) == (PAGE_BYTES if is_program else 0)


@pytest.mark.parametrize(
    ("mapping", "flags", "filter_", "own"),
    [
        (FILE, PLAIN, DEFAULT, False),
        (mapped(b"/usr/lib/libc.so.6", access=Access.EXEC), PLAIN, DEFAULT, False),
        (mapped(b"/usr/lib/libc.so.6"), PLAIN, DEFAULT & ~CoreFilter.ELF_HEADERS, False),
        (mapped(b"/usr/lib/libc.so.6"), SHARED, DEFAULT, False),
        (ANONYMOUS, PLAIN, CoreFilter.ELF_HEADERS, True),
        (LARGE, PLAIN | {b"ht"}, CoreFilter.ELF_HEADERS, True),
    ],
)
def test_nothing_else_has_a_header_and_nothing_is_read_for_it(
    mapping: Mapping, flags: frozenset[bytes], filter_: CoreFilter, own: bool
) -> None:
    assert of(mapping, flags, filter_, own=own, program=never_asked) == 0


def test_a_kernels_default_is_the_bits_that_core_5_names() -> None:
    assert DEFAULT == (
        CoreFilter.ANON_PRIVATE | CoreFilter.ANON_SHARED | CoreFilter.ELF_HEADERS | CoreFilter.HUGETLB_PRIVATE
    )
