"""Headers and notes of ELF core files (elf(5)), and the note that only memfs writes.

Pure: this module reads nothing.
"""

import struct
from collections.abc import Iterator

import attrs

OUR_OWNER = b"MEMFS"
MISSING = 0x4D45_4D53
"""Type of the note that tells what a core lacks: a line ``START-END REASON`` for each stretch of memory.

It is none of Linux's own types, which debuggers know by the number alone, whoever the owner is."""

MAGIC = b"\x7fELF"
"""The first four bytes of e_ident."""

CLASS_32, CLASS_64 = 1, 2
"""ELFCLASS32 and ELFCLASS64, the fifth byte of e_ident."""

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
"""Elf64_Ehdr: e_ident e_type e_machine e_version e_entry e_phoff e_shoff e_flags
e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx."""

PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
"""Elf64_Phdr: p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align."""

SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
"""Elf64_Shdr: sh_name sh_type sh_flags sh_addr sh_offset sh_size sh_link sh_info sh_addralign sh_entsize."""

FILE_HEADER_32 = struct.Struct("<16sHHIIIIIHHHHHH")
PROGRAM_HEADER_32 = struct.Struct("<8I")
SECTION_HEADER_32 = struct.Struct("<10I")
"""The same of ELFCLASS32; in Elf32_Phdr p_flags is the last but one."""

PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
"""In e_phnum: the number of program headers stands in sh_info of the first section header."""

_CLASS_AT = 4  # in e_ident
_HEADERS_AT, _HEADERS = 5, 10  # e_phoff, e_phnum


@attrs.frozen
class ProgramHeader:
    """The fields of Elf64_Phdr and Elf32_Phdr that memfs reads: a segment, and where it is in the file.

    Attributes:
        type: PT_NOTE, PT_LOAD, …
        offset: p_offset.
        address: p_vaddr.
        file_bytes: p_filesz.
    """

    type: int
    offset: int
    address: int
    file_bytes: int


@attrs.frozen
class ProgramHeaders:
    """Where the program headers are in a file.

    Attributes:
        offset: of the first one.
        count: e_phnum; PN_XNUM where the number does not fit.
        wide: whether they are of ELFCLASS64.
    """

    offset: int
    count: int
    wide: bool

    @property
    def header_bytes(self) -> int:
        """The size of one."""
        return (PROGRAM_HEADER if self.wide else PROGRAM_HEADER_32).size

    def parse(self, table: bytes) -> Iterator[ProgramHeader]:
        """Parse the whole headers in *table*."""
        layout = PROGRAM_HEADER if self.wide else PROGRAM_HEADER_32
        for fields in layout.iter_unpack(table[: len(table) // layout.size * layout.size]):
            type_, offset, address, file_bytes = (
                (fields[0], *fields[2:4], fields[5]) if self.wide else (*fields[:3], fields[4])
            )
            yield ProgramHeader(type_, offset, address, file_bytes)


def parse_file_header(head: bytes) -> ProgramHeaders | None:
    """Parse the file header at the beginning of *head*; returns None where it has none."""
    if not head.startswith(MAGIC) or len(head) <= _CLASS_AT:
        return None
    wide = head[_CLASS_AT] == CLASS_64
    layout = FILE_HEADER if wide else FILE_HEADER_32
    if len(head) < layout.size:
        return None
    fields = layout.unpack_from(head)
    return ProgramHeaders(fields[_HEADERS_AT], fields[_HEADERS], wide)


_NOTE_HEADER = struct.Struct("<III")  # Elf64_Nhdr: n_namesz n_descsz n_type
_ALIGN = 4


@attrs.frozen
class Note:
    """One note."""

    owner: bytes
    type: int
    contents: bytes


def pack_note(note: Note) -> bytes:
    """*note* as it stands in a file."""
    name = note.owner + b"\0"
    parts = (
        _NOTE_HEADER.pack(len(name), len(note.contents), note.type),
        name,
        bytes(-len(name) % _ALIGN),
        note.contents,
        bytes(-len(note.contents) % _ALIGN),
    )
    return b"".join(parts)


def parse_notes(text: bytes) -> Iterator[Note]:
    """The notes in *text*, up to where they make no sense."""
    at = 0
    while at + _NOTE_HEADER.size <= len(text):
        name_size, size, type_ = _NOTE_HEADER.unpack_from(text, at)
        name_at = at + _NOTE_HEADER.size
        contents_at = name_at + name_size + -name_size % _ALIGN
        at = contents_at + size + -size % _ALIGN
        if at > len(text):
            return
        owner = text[name_at : name_at + name_size].rstrip(b"\0")
        yield Note(owner, type_, text[contents_at : contents_at + size])
