"""An ELF core file, laid out and not built: its head as bytes, and for the rest where it comes from.

What Linux on x86-64 would dump (core(5), ``fs/binfmt_elf.c``, ``fs/coredump.c``). This module reads
nothing: it knows where memory goes in the file, never what is in it.
"""

import enum
import struct
from collections.abc import Callable, Sequence

import attrs

from memfs.linux.procfs import Access, Mapping
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


# Elf64_Ehdr: e_ident e_type e_machine e_version e_entry e_phoff e_shoff e_flags
#     e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx
_FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
# Elf64_Phdr: p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
# Elf64_Shdr: sh_name sh_type sh_flags sh_addr sh_offset sh_size sh_link sh_info sh_addralign sh_entsize
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")

_IDENT = b"\x7fELF\x02\x01\x01"  # ELFCLASS64 ELFDATA2LSB EV_CURRENT; the rest is 0: ELFOSABI_NONE
_ET_CORE = 4
_EM_X86_64 = 62
_EV_CURRENT = 1
_PT_LOAD = 1
_PT_NOTE = 4
_PN_XNUM = 0xFFFF
_NOTE_ALIGN = 4
_FLAGS = (Access.READ | Access.WRITE | Access.EXEC).value  # the same bits as PF_R, PF_W and PF_X


def lay_out(notes: bytes, segments: Sequence[Segment]) -> CoreLayout:
    """The file with *notes* and the memory of *segments*, in that order.

    e_phnum has 16 bits. Where they do not suffice it is PN_XNUM, and the number stands in sh_info of
    the only section header. Linux puts that one last; here it belongs to the head.
    """
    count = 1 + len(segments)
    sections_at = _FILE_HEADER.size + count * _PROGRAM_HEADER.size
    sections = 1 if count >= _PN_XNUM else 0
    notes_at = sections_at + sections * _SECTION_HEADER.size
    at = Span(0, notes_at + len(notes)).page_aligned().end
    head = bytearray(at)
    head[notes_at : notes_at + len(notes)] = notes

    _FILE_HEADER.pack_into(
        head, 0,
        _IDENT, _ET_CORE, _EM_X86_64, _EV_CURRENT, 0, _FILE_HEADER.size, sections and sections_at, 0,
        _FILE_HEADER.size, _PROGRAM_HEADER.size, min(count, _PN_XNUM),
        sections and _SECTION_HEADER.size, sections, 0,
    )  # fmt: skip
    if sections:
        _SECTION_HEADER.pack_into(head, sections_at, 0, 0, 0, 0, 0, sections, 0, count, 0, 0)

    header_at = _FILE_HEADER.size
    _PROGRAM_HEADER.pack_into(head, header_at, _PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, _NOTE_ALIGN)
    extents = []
    for segment in segments:
        header_at += _PROGRAM_HEADER.size
        span, dumped = segment.span, segment.dumped_bytes
        _PROGRAM_HEADER.pack_into(
            head, header_at,
            _PT_LOAD, segment.access.value & _FLAGS, at, span.start, 0, dumped, span.size, PAGE_BYTES,
        )  # fmt: skip
        if dumped:
            extents.append(Extent(Span(at, at + dumped), span.start))
            at += dumped
    return CoreLayout(bytes(head), tuple(extents), at)


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
