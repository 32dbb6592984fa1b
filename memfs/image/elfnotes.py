"""The notes of an ELF core file: what a debugger learns of a process besides its memory.

Names, contents and order are those of a core that Linux itself dumps (``fs/binfmt_elf.c``; for a program
of 32 bits on a kernel of 64 ``fs/compat_binfmt_elf.c``). One more tells what is lacking, if anything is. And
Linux writes NT_SIGINFO once, for the thread that a signal killed. Here no thread was killed, so each has its
own. Readers give a thread all notes from its NT_PRSTATUS to the next one.

Values in, bytes out: this module reads nothing, and does not know the file around the notes.
"""

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence

import attrs

from memfs.linux.arch import CoreFormat
from memfs.linux.elf import MISSING, OUR_OWNER, Note, pack_note
from memfs.linux.maps import Mapping
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.record import ProcessRecord, ThreadRecord


class NoteType(enum.IntEnum):
    """``NT_*`` of ``<linux/elf.h>``: of those that every processor has."""

    PRSTATUS = 1
    PRPSINFO = 3
    AUXV = 6
    FILE = 0x46494C45
    SIGINFO = 0x53494749


# struct elf_prstatus (<linux/elfcore.h>): si_signo si_code si_errno, pr_cursig, pr_sigpend pr_sighold,
#     pr_pid pr_ppid pr_pgrp pr_sid, four timevals; pr_reg and pr_fpvalid follow
_STATUS = {8: struct.Struct("<3ih2x2Q4i64x"), 4: struct.Struct("<3ih2x2I4i32x")}
# struct elf_prpsinfo: pr_state pr_sname pr_zomb pr_nice, pr_flag, pr_uid pr_gid,
#     pr_pid pr_ppid pr_pgrp pr_sid, pr_fname pr_psargs
_PROCESS = {8: struct.Struct("<BcBb4xQ2I4i16s80s"), 4: struct.Struct("<BcBbI2H4i16s80s")}
_WORD = {8: "Q", 4: "I"}
_OVERFLOW_ID = 65534  # for an id that does not fit (high2lowuid, <linux/highuid.h>)

_STATES = b"RSDTZW"
_UNNAMED_STATE = len(_STATES)
_DEAD_STATE = 8  # TASK_DEAD, which has no letter here, of a main thread that has ended
_SIGINFO = struct.Struct("<i124x")  # siginfo_t: si_signo, and nothing else that a stop would set


@attrs.frozen
class Lacking:
    """Memory that is not in the file, though the process can read it."""

    span: Span
    reason: str


def pack_notes(
    form: CoreFormat,
    process: ProcessRecord,
    threads: Sequence[ThreadRecord],
    mappings: Iterable[Mapping],
    lacking: Sequence[Lacking] = (),
) -> bytes:
    """The contents of the PT_NOTE segment: of *process*, of each of its *threads*, and what is *lacking*.

    The main thread comes first, as debuggers select the first one; where it has ended, the others
    keep their order.
    """
    notes: list[bytes] = []
    for thread in sorted(threads, key=lambda thread: thread.number != process.pid):
        is_first = not notes
        notes.append(_note(NoteType.PRSTATUS, _status(form, process, thread)))
        if is_first:
            notes.append(_note(NoteType.PRPSINFO, _process_info(form, process)))
        notes.append(_note(NoteType.SIGINFO, _SIGINFO.pack(thread.stop_signal)))
        if is_first:
            notes.append(_note(NoteType.AUXV, _cut_auxv(form.word_bytes, process.auxv)))
            notes.append(_note(NoteType.FILE, b"".join(_files(form.word_bytes, mappings))))
            if lacking:
                notes.append(pack_note(Note(OUR_OWNER, MISSING, b"".join(map(_line, lacking)))))
        for one in form.sets:
            if one.kind in thread.sets:
                notes.append(_note(one.kind, thread.sets[one.kind], one.owner))
    if process.extra_note is not None:
        kind, owner, contents = process.extra_note
        notes.append(_note(kind, contents, owner))
    return b"".join(notes)


def _note(kind: int, contents: bytes, owner: bytes = b"CORE") -> bytes:
    return pack_note(Note(owner, kind, contents))


def _line(one: Lacking) -> bytes:
    return f"{one.span} {one.reason}\n".encode()


def _status(form: CoreFormat, process: ProcessRecord, thread: ThreadRecord) -> bytes:
    signals = (1 << 8 * form.word_bytes) - 1
    layout = _STATUS[form.word_bytes]
    registers = form.general(thread.general)
    head = layout.pack(
        thread.stop_signal, 0, 0,
        thread.stop_signal,
        thread.pending & signals, thread.blocked & signals,
        thread.number, process.parent, process.group, process.session,
    )  # fmt: skip
    has_floating = struct.pack("<i", form.floating in thread.sets)
    return head + registers + has_floating + bytes(-len(head + registers + has_floating) % form.word_bytes)


def _process_info(form: CoreFormat, process: ProcessRecord) -> bytes:
    """The strings end in a NUL byte, even if they must be cut for it."""
    # ``t``, being traced, is a kind of ``T``; letters that came after ``W`` have no number. Nor has ``Z``, as
    # the kernel does not look for it where it looks for the others (fill_psinfo, fs/binfmt_elf.c).
    at = _STATES.find(process.state.upper())
    number, letter = (at, _STATES[at : at + 1]) if at >= 0 else (_UNNAMED_STATE, b".")
    if process.state == b"Z":
        number, letter = _DEAD_STATE, b"."
    return _PROCESS[form.word_bytes].pack(
        number, letter, 0, process.nice,
        process.flags,
        *(_id(id_, form.id_bytes) for id_ in (process.uid, process.gid)),
        process.pid, process.parent, process.group, process.session,
        process.comm[:15], process.arguments[:79].replace(b"\0", b" "),
    )  # fmt: skip


def _id(id_: int, size_bytes: int) -> int:
    return id_ if id_ < 1 << 8 * size_bytes else _OVERFLOW_ID


def _cut_auxv(word_bytes: int, auxv: bytes) -> bytes:
    """Up to its end, AT_NULL: /proc looks for a longer zero in a vector of 32-bit words (fs/proc/base.c)."""
    for at in range(0, len(auxv), 2 * word_bytes):
        if not any(auxv[at : at + word_bytes]):
            return auxv[: at + 2 * word_bytes]
    return auxv


def _files(word_bytes: int, mappings: Iterable[Mapping]) -> Iterator[bytes]:
    """How many, the unit of offsets, the place of each, and then the path of each.

    Shared memory and memfds count, as the kernel keeps them in files.
    """
    files = [mapping for mapping in mappings if mapping.backed and mapping.span.end < 1 << 8 * word_bytes]
    word = _WORD[word_bytes]
    yield struct.pack(f"<2{word}", len(files), PAGE_BYTES)
    for mapping in files:
        offset = mapping.offset // PAGE_BYTES
        yield struct.pack(f"<3{word}", mapping.span.start, mapping.span.end, offset)
    for mapping in files:
        yield mapping.path + b"\0"
