"""Notes of a core file, as the tools that debug with them read them."""

import re
import struct
import subprocess
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import attrs
import pytest
from elftools.construct.lib.container import Container
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from hypothesis import given
from hypothesis import strategies as st
from unit.values import mappings

from memfs.image.elfcore import lay_out
from memfs.image.elfnotes import pack_notes
from memfs.linux.maps import Access, Mapping
from memfs.linux.registers import X86Registers
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.x86 import FORMAT_32, FORMAT_64
from memfs.target.record import ProcessRecord, ThreadRecord

SIGSTOP = 19
AT_NULL, AT_PAGESZ, AT_UID = 0, 6, 11
PRFPREG = "NT_FPREGSET"  # its other name
XSTATE = 0x202  # NT_X86_XSTATE, which pyelftools does not name

UINT32 = st.integers(0, (1 << 32) - 1)
PIDS = st.integers(0, (1 << 22) - 1)
SIGNALS = st.integers(0, 64)
SETS = st.integers(0, (1 << 64) - 1)

processes = st.builds(
    ProcessRecord,
    pid=PIDS,
    parent=PIDS,
    group=PIDS,
    session=PIDS,
    uid=UINT32,
    gid=UINT32,
    state=st.sampled_from([b"R", b"S", b"D", b"T", b"t", b"Z", b"I", b"X"]),
    nice=st.integers(-20, 19),
    flags=UINT32,
    comm=st.binary(max_size=15).map(lambda name: name.replace(b"\0", b"0")),
    arguments=st.lists(st.binary(max_size=30)).map(lambda words: b"".join(word + b"\0" for word in words)),
    auxv=st.lists(st.integers(1, 60), max_size=4).map(
        lambda kinds: b"".join(struct.pack("<QQ", kind, 0) for kind in (*kinds, AT_NULL))
    ),
    core_filter=st.integers(0, 0x1FF),
)
threads = st.builds(
    ThreadRecord,
    tid=PIDS,
    number=PIDS,
    general=st.binary(min_size=216, max_size=216),
    sets=st.fixed_dictionaries(
        {2: st.binary(min_size=512, max_size=512)}, optional={XSTATE: st.binary(min_size=576, max_size=700)}
    ),
    stop_signal=SIGNALS,
    pending=SETS,
    blocked=SETS,
)
several_threads = st.lists(threads, min_size=1, max_size=4, unique_by=lambda thread: thread.number)

PROCESS = ProcessRecord(
    pid=4711,
    parent=42,
    group=4710,
    session=4700,
    uid=1000,
    gid=100_000,
    state=b"S",
    nice=-5,
    flags=0x40_0000,
    comm=b"a program",
    arguments=b"a program\0of\0\0many words\0",
    auxv=b"".join(word.to_bytes(8, "little") for word in (AT_PAGESZ, PAGE_BYTES, AT_UID, 1000, AT_NULL, 0)),
    core_filter=0x33,
)


def thread(tid: int, *, stop_signal: int = 0, extended: bytes = b"") -> ThreadRecord:
    registers = X86Registers(rip=0x1000_0000 + tid, rsp=0x2000_0000 + tid, orig_rax=35, cs=0x33, fs_base=tid)
    sets = {2: bytes(512), **({XSTATE: extended} if extended else {})}
    return ThreadRecord(tid, tid, bytes(registers), sets, stop_signal, 1 << 9, 1 << 1 | 1 << 14)


def pack(process: ProcessRecord, threads: list[ThreadRecord], mappings: Iterable[Mapping]) -> bytes:
    """The notes of a program of 64 bits."""
    return pack_notes(FORMAT_64, process, threads, mappings)


def core_of(notes: bytes) -> bytes:
    """A core file of a program of 64 bits, without memory."""
    return lay_out(FORMAT_64, notes, ()).head


def mapped(path: bytes, *, pages: int = 1, offset: int = 0, inode: int = 1) -> Mapping:
    return Mapping(Span(0x1000, 0x1000 + pages * PAGE_BYTES), Access.READ, offset, (8, 1), inode, path)


def read_notes(notes: bytes) -> list[Container]:
    """The notes by pyelftools."""
    segment = ELFFile(BytesIO(core_of(notes))).get_segment(0)
    assert isinstance(segment, NoteSegment)
    return list(segment.iter_notes())


def kinds_of(notes: bytes) -> list[tuple[str, str | int]]:
    return [(note["n_name"], note["n_type"]) for note in read_notes(notes)]


def described(notes: list[Container], kind: str) -> Container:
    (found,) = (note["n_desc"] for note in notes if note["n_type"] == kind)
    assert isinstance(found, Container)
    return found


@pytest.fixture
def core(tmp_path: Path) -> Path:
    """A core of three threads, the main one in the middle and all in a group stop but the last."""
    threads = [thread(4712, stop_signal=SIGSTOP), thread(4711, stop_signal=SIGSTOP), thread(4713)]
    path = tmp_path / "core"
    path.write_bytes(core_of(pack(PROCESS, threads, [mapped(b"/usr/bin/cat")])))
    return path


def run(*command: str | Path) -> str:
    """What a reader prints; a complaint of it is a failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def test_notes_stand_in_the_order_of_linux() -> None:
    extended = bytes(576)
    notes = pack_notes(
        FORMAT_64, PROCESS, [thread(4711, extended=extended), thread(4712, extended=extended)], ()
    )
    assert kinds_of(notes) == [
        ("CORE", "NT_PRSTATUS"),
        ("CORE", "NT_PRPSINFO"),
        ("CORE", "NT_SIGINFO"),
        ("CORE", "NT_AUXV"),
        ("CORE", "NT_FILE"),
        ("CORE", PRFPREG),
        ("LINUX", XSTATE),
        ("CORE", "NT_PRSTATUS"),
        ("CORE", "NT_SIGINFO"),
        ("CORE", PRFPREG),
        ("LINUX", XSTATE),
    ]


def test_without_an_xsave_area_there_is_no_note_for_it() -> None:
    assert ("LINUX", XSTATE) not in kinds_of(pack(PROCESS, [thread(4711)], ()))


@given(processes, several_threads, st.lists(mappings, max_size=5))
def test_every_note_has_the_size_of_its_structure_and_they_fill_the_segment(
    process: ProcessRecord, threads: list[ThreadRecord], mappings: list[Mapping]
) -> None:
    packed = pack(process, threads, mappings)
    notes = read_notes(packed)
    assert sum(note["n_size"] for note in notes) == len(packed)
    sizes = {note["n_type"]: note["n_descsz"] for note in notes}
    assert sizes["NT_PRSTATUS"] == 336
    assert sizes["NT_PRPSINFO"] == 136
    assert sizes["NT_SIGINFO"] == 128


@given(processes, several_threads)
def test_what_belongs_to_the_process_reads_as_it_was(
    process: ProcessRecord, threads: list[ThreadRecord]
) -> None:
    notes = read_notes(pack(process, threads, ()))
    info = described(notes, "NT_PRPSINFO")
    assert info["pr_nice"] == process.nice % 256
    assert info["pr_flag"] == process.flags
    assert (info["pr_uid"], info["pr_gid"]) == (process.uid, process.gid)
    assert (info["pr_pid"], info["pr_ppid"]) == (process.pid, process.parent)
    assert (info["pr_pgrp"], info["pr_sid"]) == (process.group, process.session)
    assert info["pr_fname"] == process.comm.ljust(16, b"\0")
    assert info["pr_psargs"] == process.arguments.replace(b"\0", b" ")[:79].ljust(80, b"\0")
    assert [note["n_descdata"] for note in notes if note["n_type"] == "NT_AUXV"] == [process.auxv]


@pytest.mark.parametrize(
    ("state", "number", "name", "is_zombie"),
    [
        (b"R", 0, b"R", 0),
        (b"S", 1, b"S", 0),
        (b"D", 2, b"D", 0),
        (b"T", 3, b"T", 0),
        (b"t", 3, b"T", 0),
        (b"Z", 8, b".", 0),
        (b"I", 6, b".", 0),
    ],
)
def test_a_state_has_its_number_and_letter(state: bytes, number: int, name: bytes, is_zombie: int) -> None:
    process = attrs.evolve(PROCESS, state=state)
    info = described(read_notes(pack(process, [thread(4711)], ())), "NT_PRPSINFO")
    assert (info["pr_state"], info["pr_sname"], info["pr_zomb"]) == (number, name, is_zombie)


@given(processes, several_threads)
def test_each_thread_has_its_registers_and_signals_and_the_main_thread_comes_first(
    process: ProcessRecord, threads: list[ThreadRecord]
) -> None:
    process = attrs.evolve(process, pid=threads[-1].number)
    notes = [(note["n_type"], note["n_descdata"]) for note in read_notes(pack(process, threads, ()))]
    ordered = [threads[-1], *threads[:-1]]
    assert [contents[112:328] for kind, contents in notes if kind == "NT_PRSTATUS"] == [
        thread.general for thread in ordered
    ]
    assert [contents for kind, contents in notes if kind == PRFPREG] == [thread.sets[2] for thread in ordered]
    assert [contents for kind, contents in notes if kind == XSTATE] == [
        thread.sets[XSTATE] for thread in ordered if XSTATE in thread.sets
    ]
    assert [contents for kind, contents in notes if kind == "NT_SIGINFO"] == [
        thread.stop_signal.to_bytes(128, "little") for thread in ordered
    ]


def test_without_the_main_thread_the_others_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(core_of(pack(PROCESS, [thread(4713), thread(4712)], ())))
    assert re.findall(r"\bpid: (\d+), ppid", run("eu-readelf", "-n", path)) == ["4713", "4711", "4712"]


@given(st.lists(mappings, max_size=8))
def test_every_mapping_of_a_file_is_listed_with_its_path_as_maps_has_it(mappings: list[Mapping]) -> None:
    files = [mapping for mapping in mappings if mapping.backed]
    listed = described(read_notes(pack(PROCESS, [thread(4711)], mappings)), "NT_FILE")
    assert listed["page_size"] == PAGE_BYTES
    assert [
        (Span(entry["vm_start"], entry["vm_end"]), entry["page_offset"])
        for entry in listed["Elf_Nt_File_Entry"]
    ] == [(mapping.span, mapping.offset // PAGE_BYTES) for mapping in files]
    assert listed["filename"] == [mapping.path for mapping in files]


def test_a_core_of_32_bits_has_the_structures_of_i386() -> None:
    registers = X86Registers(
        rip=0x1000, rsp=0x2000, orig_rax=(1 << 64) - 1, rax=(1 << 64) - 514, cs=0x23, gs=0x63
    )
    sets = {2: bytes(108), 0x46E62B7F: bytes(512), XSTATE: bytes(600), 0x200: bytes(48)}
    thread = ThreadRecord(4711, 3, bytes(registers), sets, 0, 1 << 40 | 1 << 9, 1 << 1)
    auxv = struct.pack("<8I", 6, PAGE_BYTES, 11, 0, AT_NULL, 0, 0, 0)
    process = attrs.evolve(PROCESS, pid=3, auxv=auxv, extra_note=(0x205, b"LINUX", b"layout.."))
    packed = pack_notes(FORMAT_32, process, [thread], [mapped(b"/usr/bin/cat", offset=2 * PAGE_BYTES)])
    segment = ELFFile(BytesIO(lay_out(FORMAT_32, packed, ()).head)).get_segment(0)
    assert isinstance(segment, NoteSegment)
    notes = [(note["n_name"], note["n_type"], note["n_descdata"]) for note in segment.iter_notes()]
    status, info, _, words, files, *others, extra = (content for _, _, content in notes)
    assert struct.unpack("<3ih2x2I4i32x17Ii", status) == (
        *(0, 0, 0, 0, 1 << 9, 1 << 1, 3, 42, 4710, 4700),
        *(0, 0, 0, 0, 0, 0, (1 << 32) - 514, 0, 0, 0, 0x63, (1 << 32) - 1, 0x1000, 0x23, 0, 0x2000, 0),
        1,
    )
    assert struct.unpack_from("<4xI2H4i", info) == (0x40_0000, 1000, 65534, 3, 42, 4710, 4700)
    assert (len(info), info[28:37]) == (124, b"a program")
    assert words == auxv[:24]
    assert files == struct.pack("<5I", 1, PAGE_BYTES, 0x1000, 0x2000, 2) + b"/usr/bin/cat\0"
    assert [len(content) for content in others] == [108, 512, 600, 48]
    assert [name for name, _, _ in notes[5:]] == ["CORE", "LINUX", "LINUX", "LINUX", "LINUX"]
    assert extra == b"layout.."


def test_eu_readelf_reads_every_note(core: Path) -> None:
    text = run("eu-readelf", "-n", core)
    assert text.count("PRSTATUS") == text.count("SIGINFO") == text.count("FPREGSET") == 3
    assert text.count("info.si_signo: 19, info.si_code: 0, info.si_errno: 0, cursig: 19") == 2
    assert text.count("info.si_signo: 0, info.si_code: 0, info.si_errno: 0, cursig: 0") == 1
    assert text.count("sigpend: <10>") == text.count("sighold: <2,15>") == 3
    assert "pid: 4712, ppid: 42, pgrp: 4710, sid: 4700" in text
    assert "utime: 0.000000, stime: 0.000000, cutime: 0.000000, cstime: 0.000000" in text
    assert text.count("orig_rax: 35, fpvalid: 1") == 3
    assert "uid: 1000, gid: 100000, pid: 4711, ppid: 42, pgrp: 4710, sid: 4700" in text
    assert "state: 1, sname: S, zomb: 0, nice: 251, flag: 0x0000000000400000" in text
    assert "fname: a program, psargs: a program of  many words \n" in text
    assert "PAGESZ: 4096\n    UID: 1000\n    NULL\n" in text
    assert re.search(r"1 files:\n +00001000-00002000 00000000 4096 +/usr/bin/cat\n", text)


def test_gdb_gives_each_thread_its_own_registers_and_signal(core: Path) -> None:
    question = r'thread apply all -q printf "%d %d %d\n", $rip, $fs_base, $_siginfo.si_signo'
    text = run("gdb", "-nx", "-q", "--batch", "-ex", "info threads", "-ex", question, "-c", core)
    assert re.search(r"^\* 1 +LWP 4711 ", text, re.MULTILINE)
    told = {tuple(map(int, line)) for line in re.findall(r"^(\d+) (\d+) (\d+)$", text, re.MULTILINE)}
    base = 0x1000_0000
    assert told == {(base + 4711, 4711, 19), (base + 4712, 4712, 19), (base + 4713, 4713, 0)}
