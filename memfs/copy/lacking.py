"""What a core file of the mount says that it lacks: the note in it, read as anyone could read it."""

import struct
from collections import Counter

from memfs.copy.reading import Reading
from memfs.errors import CannotCopy
from memfs.linux.elf import (
    CLASS_64,
    FILE_HEADER,
    FILE_HEADER_32,
    MISSING,
    OUR_OWNER,
    PROGRAM_HEADER,
    PROGRAM_HEADER_32,
    PT_NOTE,
    parse_notes,
)
from memfs.linux.span import Span

_MOST_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_OFFSET_OF_HEADERS = 5  # e_phoff
_TYPE = 0  # p_type
_CLASS_AT = 4  # in e_ident


def lacking(core: Reading) -> dict[str, int]:
    """How many bytes are not in *core*, by the reason."""
    try:
        head = _read(core, Span(0, FILE_HEADER.size))
        wide = head[_CLASS_AT] == CLASS_64
        at = (FILE_HEADER if wide else FILE_HEADER_32).unpack_from(head)[_OFFSET_OF_HEADERS]
        layout = PROGRAM_HEADER if wide else PROGRAM_HEADER_32
        found = layout.unpack(_read(core, Span(at, at + layout.size)))  # notes come first
        offset, size = (found[2], found[5]) if wide else (found[1], found[4])  # p_offset, p_filesz
        if found[_TYPE] != PT_NOTE or size > _MOST_BYTES:
            return {}
        notes = _read(core, Span(offset, offset + size))
    except (CannotCopy, struct.error, IndexError):
        return {}  # whoever copies it meets the same, and says so
    lost: Counter[str] = Counter()
    for note in parse_notes(notes):
        if (note.owner, note.type) == (OUR_OWNER, MISSING):
            for line in note.contents.decode(errors="replace").splitlines():
                span, _, reason = line.partition(" ")
                start, _, end = span.partition("-")
                lost[reason] += int(end, 16) - int(start, 16)
    return lost


def _read(core: Reading, span: Span) -> bytes:
    found = bytearray(span.clip(Span(0, core.size_bytes)).size)
    with memoryview(found) as view:
        for start in range(0, len(view), _PIECE_BYTES):
            core.read_into(span.start + start, view[start : start + _PIECE_BYTES])
    return bytes(found)
