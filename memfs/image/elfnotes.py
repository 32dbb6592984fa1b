"""The notes of an ELF core file: what a debugger learns of a process besides its memory.

Names, contents and order are those of a core that Linux itself dumps on x86-64 (``fs/binfmt_elf.c``),
but for one: Linux writes NT_SIGINFO once, for the thread that a signal killed. Here no thread was
killed, so each has its own. Readers give a thread all notes from its NT_PRSTATUS to the next one.

Values in, bytes out: this module reads nothing, and does not know the file around the notes.
"""

import ctypes
import enum
import struct
from collections.abc import Iterable, Iterator, Sequence

from memfs.linux.arch import X86Registers
from memfs.linux.procfs import Mapping
from memfs.linux.span import PAGE_BYTES
from memfs.target.record import ProcessRecord, ThreadRecord


class NoteType(enum.IntEnum):
    """``NT_*`` of ``<linux/elf.h>``."""

    PRSTATUS = 1
    PRFPREG = 2
    PRPSINFO = 3
    AUXV = 6
    X86_XSTATE = 0x202
    FILE = 0x46494C45
    SIGINFO = 0x53494749


class _PrStatus(ctypes.Structure):
    """``struct elf_prstatus`` (``<linux/elfcore.h>``)."""

    _fields_ = (
        ("si_signo", ctypes.c_int),
        ("si_code", ctypes.c_int),
        ("si_errno", ctypes.c_int),
        ("pr_cursig", ctypes.c_short),
        ("pr_sigpend", ctypes.c_uint64),
        ("pr_sighold", ctypes.c_uint64),
        ("pr_pid", ctypes.c_int32),
        ("pr_ppid", ctypes.c_int32),
        ("pr_pgrp", ctypes.c_int32),
        ("pr_sid", ctypes.c_int32),
        ("times", ctypes.c_int64 * 8),  # pr_utime, pr_stime, pr_cutime, pr_cstime: a timeval each
        ("pr_reg", X86Registers),
        ("pr_fpvalid", ctypes.c_int),
    )


class _PrPsInfo(ctypes.Structure):
    """``struct elf_prpsinfo`` (``<linux/elfcore.h>``)."""

    _fields_ = (
        ("pr_state", ctypes.c_char),
        ("pr_sname", ctypes.c_char),
        ("pr_zomb", ctypes.c_char),
        ("pr_nice", ctypes.c_int8),
        ("pr_flag", ctypes.c_uint64),
        ("pr_uid", ctypes.c_uint32),
        ("pr_gid", ctypes.c_uint32),
        ("pr_pid", ctypes.c_int32),
        ("pr_ppid", ctypes.c_int32),
        ("pr_pgrp", ctypes.c_int32),
        ("pr_sid", ctypes.c_int32),
        ("pr_fname", ctypes.c_char * 16),
        ("pr_psargs", ctypes.c_char * 80),
    )


_STATES = b"RSDTZW"
_UNNAMED_STATE = len(_STATES)
_SIGINFO = struct.Struct("<i124x")  # siginfo_t: si_signo, and nothing else that a stop would set
_NOTE_HEADER = struct.Struct("<III")  # Elf64_Nhdr: n_namesz n_descsz n_type


def pack_notes(process: ProcessRecord, threads: Sequence[ThreadRecord], mappings: Iterable[Mapping]) -> bytes:
    """The contents of the PT_NOTE segment: of *process*, and of each of its *threads*.

    The main thread comes first, as debuggers select the first one; where it has ended, the others
    keep their order.
    """
    notes: list[bytes] = []
    for thread in sorted(threads, key=lambda thread: thread.tid != process.pid):
        is_first = not notes
        notes.append(_note(NoteType.PRSTATUS, _status(process, thread)))
        if is_first:
            notes.append(_note(NoteType.PRPSINFO, _process_info(process)))
        notes.append(_note(NoteType.SIGINFO, _SIGINFO.pack(thread.stop_signal)))
        if is_first:
            notes.append(_note(NoteType.AUXV, process.auxv))
            notes.append(_note(NoteType.FILE, b"".join(_files(mappings))))
        notes.append(_note(NoteType.PRFPREG, thread.floating))
        if thread.extended:
            notes.append(_note(NoteType.X86_XSTATE, thread.extended, owner=b"LINUX"))
    return b"".join(notes)


def _note(kind: NoteType, contents: bytes, owner: bytes = b"CORE") -> bytes:
    name = owner + b"\0"
    return b"".join(
        (
            _NOTE_HEADER.pack(len(name), len(contents), kind),
            name,
            bytes(-len(name) % 4),
            contents,
            bytes(-len(contents) % 4),
        )
    )


def _status(process: ProcessRecord, thread: ThreadRecord) -> bytes:
    return bytes(
        _PrStatus(
            si_signo=thread.stop_signal,
            pr_cursig=thread.stop_signal,
            pr_sigpend=thread.pending,
            pr_sighold=thread.blocked,
            pr_pid=thread.tid,
            pr_ppid=process.parent,
            pr_pgrp=process.group,
            pr_sid=process.session,
            pr_reg=X86Registers.from_buffer_copy(thread.general),
            pr_fpvalid=1,
        )
    )


def _process_info(process: ProcessRecord) -> bytes:
    """The strings end in a NUL byte, even if they must be cut for it."""
    # ``t``, being traced, is a kind of ``T``; letters that came after ``W`` have no number.
    at = _STATES.find(process.state.upper())
    return bytes(
        _PrPsInfo(
            pr_state=at if at >= 0 else _UNNAMED_STATE,
            pr_sname=_STATES[at] if at >= 0 else b".",
            pr_zomb=process.state == b"Z",
            pr_nice=process.nice,
            pr_flag=process.flags,
            pr_uid=process.uid,
            pr_gid=process.gid,
            pr_pid=process.pid,
            pr_ppid=process.parent,
            pr_pgrp=process.group,
            pr_sid=process.session,
            pr_fname=process.comm[:15],
            pr_psargs=process.arguments[:79].replace(b"\0", b" "),
        )
    )


def _files(mappings: Iterable[Mapping]) -> Iterator[bytes]:
    """How many, the unit of offsets, the place of each, and then the path of each.

    Shared memory and memfds count, as the kernel keeps them in files.
    """
    files = [mapping for mapping in mappings if mapping.backed]
    yield struct.pack("<QQ", len(files), PAGE_BYTES)
    for mapping in files:
        yield struct.pack("<QQQ", mapping.span.start, mapping.span.end, mapping.offset // PAGE_BYTES)
    for mapping in files:
        yield mapping.path + b"\0"
