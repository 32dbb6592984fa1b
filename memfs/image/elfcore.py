"""An ELF core file, laid out and not built: its head as bytes, and for the rest where it comes from.

What Linux would dump (core(5), ``fs/binfmt_elf.c``, ``fs/coredump.c``). This module reads
nothing: it knows where memory goes in the file, never what is in it.
"""

import enum
import struct
from collections.abc import Callable, Sequence

import attrs

from memfs.linux import elf
from memfs.linux.arch import CoreFormat
from memfs.linux.maps import Access, Mapping
from memfs.linux.span import PAGE_BYTES, Span


@attrs.frozen
class Segment:
    """Memory that the file tells of.

    Attributes:
        dumped_bytes: how many of its bytes, from its start, are in the file: whole pages.
    """

    span: Span
    access: Access
    dumped_bytes: int


@attrs.frozen
class Extent:
    """A stretch of the file that holds memory.

    Attributes:
        span: where in the file.
        address: of its first byte in the target.
    """

    span: Span
    address: int


@attrs.frozen
class CoreLayout:
    """A core file.

    Attributes:
        head: its first bytes, whole pages: headers and notes.
        extents: what follows without a gap, in order.
        size_bytes: of head and extents together.
    """

    head: bytes
    extents: tuple[Extent, ...]
    size_bytes: int


Sized = tuple[int, int]
"""How many bytes a segment has in the file, and in memory."""


@attrs.frozen
class _Class:
    """What differs between ELFCLASS64 and ELFCLASS32."""

    number: int
    file_header: struct.Struct
    program_header: struct.Struct
    section_header: struct.Struct
    most: int
    """The largest offset and size that a header can tell."""

    def pack_segment(
        self, type_: int, flags: int, offset: int, address: int, sizes: Sized, align: int
    ) -> bytes:
        """A program header: Elf64_Phdr has its flags second, Elf32_Phdr last but one."""
        file_bytes, memory_bytes = sizes
        places = (offset, address, 0, file_bytes, memory_bytes)
        fields = (flags, *places, align) if self.number == elf.CLASS_64 else (*places, flags, align)
        return self.program_header.pack(type_, *fields)


_CLASSES = {
    8: _Class(
        elf.CLASS_64,
        elf.FILE_HEADER,
        elf.PROGRAM_HEADER,
        elf.SECTION_HEADER,
        (1 << 64) - 1,
    ),
    4: _Class(
        elf.CLASS_32,
        elf.FILE_HEADER_32,
        elf.PROGRAM_HEADER_32,
        elf.SECTION_HEADER_32,
        (1 << 32) - 1,
    ),
}

_IDENT = elf.MAGIC + b"%c\x01\x01"  # ELFDATA2LSB EV_CURRENT; the rest is 0: ELFOSABI_NONE
_ET_CORE = 4
_EV_CURRENT = 1
_NOTE_ALIGN = 4
_FLAGS = (Access.READ | Access.WRITE | Access.EXEC).value  # the same bits as PF_R, PF_W and PF_X


def lay_out(form: CoreFormat, notes: bytes, segments: Sequence[Segment]) -> CoreLayout:
    """The file with *notes* and the memory of *segments*, in that order.

    e_phnum has 16 bits. Where they do not suffice it is PN_XNUM, and the number stands in sh_info of
    the only section header. Linux puts that one last; here it belongs to the head.

    Where headers have 32 bits they tell of no memory above that, and what would lie in the file where they
    cannot point is left out, which p_filesz says.
    """
    layout = _CLASSES[form.word_bytes]
    segments = [segment for segment in segments if segment.span.end <= layout.most]
    count = 1 + len(segments)
    sections_at = layout.file_header.size + count * layout.program_header.size
    sections = 1 if count >= elf.PN_XNUM else 0
    notes_at = sections_at + sections * layout.section_header.size
    at = Span(0, notes_at + len(notes)).page_aligned().end

    headers = [
        layout.file_header.pack(
            _IDENT % layout.number, _ET_CORE, form.machine, _EV_CURRENT, 0, layout.file_header.size,
            sections and sections_at, 0, layout.file_header.size, layout.program_header.size,
            min(count, elf.PN_XNUM), sections and layout.section_header.size, sections, 0,
        ),
        layout.pack_segment(elf.PT_NOTE, 0, notes_at, 0, (len(notes), 0), _NOTE_ALIGN),
    ]  # fmt: skip
    head_bytes = at
    extents = []
    for segment in segments:
        span = segment.span
        dumped = segment.dumped_bytes if at + segment.dumped_bytes <= layout.most else 0
        flags = segment.access.value & _FLAGS
        place = at if at <= layout.most else 0
        headers.append(
            layout.pack_segment(elf.PT_LOAD, flags, place, span.start, (dumped, span.size), PAGE_BYTES)
        )
        if dumped:
            extents.append(Extent(Span(at, at + dumped), span.start))
            at += dumped
    if sections:
        headers.append(layout.section_header.pack(0, 0, 0, 0, 0, sections, 0, count, 0, 0))
    head = b"".join((*headers, notes)).ljust(head_bytes, b"\0")
    return CoreLayout(head, tuple(extents), at)


class CoreFilter(enum.IntFlag):
    """Which memory is dumped: the bits of ``/proc/PID/coredump_filter``, core(5)."""

    ANON_PRIVATE = 1 << 0
    ANON_SHARED = 1 << 1
    FILE_PRIVATE = 1 << 2
    FILE_SHARED = 1 << 3
    ELF_HEADERS = 1 << 4
    HUGETLB_PRIVATE = 1 << 5
    HUGETLB_SHARED = 1 << 6
    DAX_PRIVATE = 1 << 7
    DAX_SHARED = 1 << 8


_ALWAYS_DUMPED = frozenset((b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"))


def dumped_bytes(
    mapping: Mapping,
    flags: frozenset[bytes],
    filter_: CoreFilter,
    *,
    has_own_pages: bool,
    has_name: Callable[[], bool],
    begins_program: Callable[[], bool],
    dax: bool = False,
) -> int:
    """How much of *mapping* a core has: nothing, its first page, or all of it.

    The tests and their order are those of ``vma_dump_size`` (``fs/coredump.c``, Linux 6.18), which
    does not ask whether the memory can be read: it dumps zeros for vvar.

    Args:
        flags: all those of smaps.
        has_own_pages: whether the process has, or had, pages there that are not the file's: for the
            kernel, an anon_vma.
        has_name: whether a path leads to the file, asked only of shared mappings.
        begins_program: whether the file may be executed, or else its first page begins with
            ``\\x7fELF``. Asked last, and only where the answer decides.
        dax: whether the file's pages are those of its device; no file of /proc tells.
    """
    # The s of maps is VM_MAYSHARE. VM_SHARED is missing where a file was opened to be read only and
    # mapped with MAP_SHARED: the kernel keeps such a mapping, and dumps it, like a private one.
    shared = b"sh" in flags
    if mapping.path in _ALWAYS_DUMPED and not mapping.backed:
        return mapping.span.size
    if b"dd" in flags:
        return 0
    if dax:
        deciding = CoreFilter.DAX_SHARED if shared else CoreFilter.DAX_PRIVATE
    elif b"ht" in flags:
        deciding = CoreFilter.HUGETLB_SHARED if shared else CoreFilter.HUGETLB_PRIVATE
    elif b"io" in flags:
        return 0
    elif shared:
        deciding = CoreFilter.FILE_SHARED if has_name() else CoreFilter.ANON_SHARED
    else:
        deciding = CoreFilter.ANON_PRIVATE if has_own_pages else CoreFilter(0)
        deciding |= CoreFilter.FILE_PRIVATE if mapping.backed else CoreFilter(0)
    if filter_ & deciding:
        return mapping.span.size
    may_begin_program = (
        CoreFilter.FILE_PRIVATE in deciding
        and CoreFilter.ELF_HEADERS in filter_
        and mapping.offset == 0
        and Access.READ in mapping.access
    )
    return PAGE_BYTES if may_begin_program and begins_program() else 0
