"""Notes of ELF core files (elf(5)), for writers and for readers; and the one that memfs itself writes.

Pure: this module reads nothing.
"""

import struct
from collections.abc import Iterator

import attrs

OUR_OWNER = b"MEMFS"
MISSING = 0x4D45_4D53
"""Type of the note that tells what a core lacks: a line ``START-END REASON`` for each stretch of memory.

It is none of Linux's own types, which debuggers know by the number alone, whoever the owner is."""

CLASS_64 = 2
"""ELFCLASS64, the fifth byte of e_ident."""

FILE_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
"""Elf64_Ehdr: e_ident e_type e_machine e_version e_entry e_phoff e_shoff e_flags
e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx."""

PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
"""Elf64_Phdr: p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align."""

FILE_HEADER_32 = struct.Struct("<16sHHIIIIIHHHHHH")
PROGRAM_HEADER_32 = struct.Struct("<8I")
"""The same of ELFCLASS32; in Elf32_Phdr p_flags is the last but one."""

PT_NOTE = 4

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
