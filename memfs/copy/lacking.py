"""What a core file of the mount lacks: read from the note that memfs writes into it."""

from collections import Counter

from memfs.copy.sourcefile import SourceFile
from memfs.errors import CannotCopy
from memfs.linux.elf import FILE_HEADER, MISSING, OUR_OWNER, PT_NOTE, parse_file_header, parse_notes
from memfs.linux.span import Span

_MOST_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20


def lacking(core: SourceFile) -> dict[str, int]:
    """Return how many bytes are not in *core*, by the reason."""
    try:
        headers = parse_file_header(_read(core, Span(0, FILE_HEADER.size)))
        if headers is None:
            return {}
        table = _read(core, Span(headers.offset, headers.offset + headers.header_bytes))
        found = next(headers.parse(table), None)  # notes come first
        if found is None or found.type != PT_NOTE or found.file_bytes > _MOST_BYTES:
            return {}
        notes = _read(core, Span(found.offset, found.offset + found.file_bytes))
    except CannotCopy:
        return {}  # the copy fails in the same way, and says so
    lost: Counter[str] = Counter()
    for note in parse_notes(notes):
        if (note.owner, note.type) == (OUR_OWNER, MISSING):
            for line in note.contents.decode(errors="replace").splitlines():
                span, _, reason = line.partition(" ")
                start, _, end = span.partition("-")
                lost[reason] += int(end, 16) - int(start, 16)
    return lost


def _read(core: SourceFile, span: Span) -> bytes:
    found = bytearray(span.clip(Span(0, core.size_bytes)).size)
    with memoryview(found) as view:
        for start in range(0, len(view), _PIECE_BYTES):
            core.read_into(span.start + start, view[start : start + _PIECE_BYTES])
    return bytes(found)
