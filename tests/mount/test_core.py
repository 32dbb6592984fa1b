"""Core files under the eyes of those who read them: gdb, elfutils, binutils, pyelftools, pystack, cp.

What a core must say is taken from the process itself, by /proc or by gdb attached to it, and from the core
that the kernel dumps of the same process. Where gdb cannot make sense of the kernel's own core either (gdb 13
does not know how AMD's processors lay out their registers), that is no fault of ours.
"""

import contextlib
import hashlib
import math
import os
import random
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount, check, mounted, opened, read_all, run
from support.cores import (
    PYTHON_FUNCTIONS,
    X86_XSAVE_LAYOUT,
    X86_XSTATE,
    Core,
    Load,
    PythonProgram,
    ThreadsProgram,
    complaints,
    holes_and_data,
    parse_core,
    run_gdb,
    wait_until_let_go,
    why_no_kernel_core,
)
from support.held import Span
from support.outside import read_maps, read_memory
from support.pattern import PAGE

_UNREADABLE = (b"[vvar", b"[vsyscall]")
_EXPRESSIONS = ("first", "*first.next", "counter", "mutex", "places", "vectors", "silent")
_MODULE_SECONDS = 100.0
_SPINNER = "registers"
_DEPTHS = {"sleep": 2, "condition": 3, "read": 4, "poll": 5}
_PLACES = {
    "sleep": "sleep_long",
    "condition": "wait_for_condition",
    "read": "read_silence",
    "poll": "poll_silence",
}
_FILTERS = (0x33, 0x00, 0x01, 0x02, 0x04, 0x08, 0x10, 0x6F)
_MANY_VMAS = 66_000
_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
_FULL = (
    "private",
    "none",
    "dontdump",
    "shared",
    "memfd",
    "file-shared",
    "file-private",
    "file-private-written",
)


@pytest.fixture(scope="module")
def memfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests that want nothing special of it."""
    with mounted(tmp_path_factory.mktemp("mount"), limit_seconds=_MODULE_SECONDS) as mount:
        yield mount


@pytest.fixture
def threads(tmp_path: Path) -> Iterator[ThreadsProgram]:
    """The program that most cores here are of, each of its threads at its place."""
    with ThreadsProgram(tmp_path / "threads") as target:
        yield target
        wait_until_let_go(target.pid)  # else its copy, an orphan, would come to this process


def _copy(memfs: Mount, pid: int, directory: Path) -> Core:
    check("cp", "--sparse=auto", memfs.process(pid) / "core", directory / "core")
    wait_until_let_go(pid)
    return parse_core(directory / "core")


# Debuggers


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "waiting"])
def test_gdb_sees_in_a_core_what_it_sees_in_the_process(
    memfs: Mount, threads: ThreadsProgram, tmp_path: Path, stopped: bool
) -> None:
    if stopped:
        threads.stop()
    core = _copy(memfs, threads.pid, tmp_path)
    if stopped:
        threads.wait_until_stopped()
    seen = run_gdb(tmp_path, _EXPRESSIONS, threads.path, core.path)
    attached = run_gdb(tmp_path, _EXPRESSIONS, "-p", str(threads.pid))
    assert set(seen.threads) == set(attached.threads) == set(threads.threads.values())
    assert seen.values == attached.values
    assert '"first", weight = -1.25' in seen.values["first"]
    assert '"last", weight = 0.5' in seen.values["*first.next"]
    for name, tid in threads.threads.items():
        if stopped or name != _SPINNER:  # which goes round between two instructions
            assert seen.threads[tid]["frames"] == attached.threads[tid]["frames"]
        if stopped:
            # A call that was entered again after the core was taken is another one, restart_syscall(2).
            registers = seen.threads[tid]["registers"]
            known = {name: value for name, value in registers.items() if "<unavailable>" not in value}
            assert known.items() <= attached.threads[tid]["registers"].items()
            assert {"rip", "rsp", "orig_rax", "eflags", "fs_base", "st0", "mxcsr", "xmm0"} <= known.keys()
    for name, depth in _DEPTHS.items():
        tid = threads.threads[name]
        frames = [frame for frame in seen.threads[tid]["frames"] if frame["function"] == "descend"]
        assert _PLACES[name] in seen.functions(tid)
        assert [frame["locals"]["depth"] for frame in frames] == [str(n) for n in range(1, depth + 1)]
        assert frames[-1]["locals"]["half"] == f"{depth / 2:g}"
        assert frames[-1]["locals"]["squares"] == f"{{{depth}, {depth**2}, {depth**3}}}"
        assert frames[-1]["locals"]["mark"].startswith(f'"depth {depth}\\000')


def test_registers_have_what_was_loaded_into_them(
    memfs: Mount, threads: ThreadsProgram, tmp_path: Path
) -> None:
    core = _copy(memfs, threads.pid, tmp_path)
    at = core.thread_numbers().index(threads.threads[_SPINNER])
    general = struct.unpack_from("<27Q", core.of("NT_PRSTATUS")[at].content, 112)
    assert general[1:4] == (0x4444444444444444, 0x3333333333333333, 0x2222222222222222)  # r14 r13 r12
    assert general[5] == 0x1111111111111111  # rbx
    assert general[15] == (1 << 64) - 1  # orig_rax: in no system call
    floating = core.of("NT_FPREGSET")[at].content
    extended = core.of(X86_XSTATE)[at].content
    mantissa, exponent = struct.unpack_from("<QH", floating, 48)  # st1, the first that was loaded
    assert mantissa * 2.0 ** (exponent - 16383 - 63) == math.pi
    assert struct.unpack_from("<QH", floating, 32) == (1 << 63, 16383)  # st0: 1
    for number in range(16):
        loaded = bytes((16 * number + byte + 1) % 256 for byte in range(32))
        for area in (floating, extended):
            assert area[160 + 16 * number :][:16] == loaded[:16]
        if " avx " in Path("/proc/cpuinfo").read_text():
            assert extended[576 + 16 * number :][:16] == loaded[16:]


def test_pystack_reads_the_stack_of_a_python_program(memfs: Mount, tmp_path: Path) -> None:
    with PythonProgram() as target:
        _copy(memfs, target.pid, tmp_path)
        executable = os.readlink(f"/proc/{target.pid}/exe")
        shown = run("pystack", "core", tmp_path / "core", executable, "--locals")
    assert shown.returncode == 0, shown
    for text in (*PYTHON_FUNCTIONS, "a text to be found", "depth: 2"):
        assert text in shown.stdout.decode()


# Notes


def test_each_note_says_what_proc_says(memfs: Mount, threads: ThreadsProgram, tmp_path: Path) -> None:
    threads.stop()
    core = _copy(memfs, threads.pid, tmp_path)
    order = [note.kind for note in core.notes]
    main = ["NT_PRSTATUS", "NT_PRPSINFO", "NT_SIGINFO", "NT_AUXV", "NT_FILE", "NT_FPREGSET", X86_XSTATE]
    other = ["NT_PRSTATUS", "NT_SIGINFO", "NT_FPREGSET", X86_XSTATE]
    if " xsave " not in Path("/proc/cpuinfo").read_text():
        main.pop()
        other.pop()
    layout = [X86_XSAVE_LAYOUT] if X86_XSTATE in main else []
    assert order == main + (len(threads.threads) - 1) * other + layout
    assert core.thread_numbers() == sorted(threads.threads.values())
    assert core.thread_numbers()[0] == threads.pid
    for note in core.of("NT_PRSTATUS"):
        assert struct.unpack_from("<i", note.content)[0] == signal.SIGSTOP  # si_signo
        assert struct.unpack_from("<QQ", note.content, 16) == (0, 1 << signal.SIGUSR2 - 1)  # pending, blocked
    process = core.of("NT_PRPSINFO")[0].parsed
    assert (process["pr_fname"].rstrip(b"\0"), process["pr_pid"]) == (b"threads", threads.pid)
    assert (process["pr_ppid"], process["pr_sname"]) == (os.getpid(), b"T")
    assert core.of("NT_AUXV")[0].content == Path(f"/proc/{threads.pid}/auxv").read_bytes()
    files = core.of("NT_FILE")[0].parsed
    told = [
        (each["vm_start"], each["vm_end"], each["page_offset"] * files["page_size"], name)
        for each, name in zip(files["Elf_Nt_File_Entry"], files["filename"], strict=True)
    ]
    mapped = [line for line in read_maps(threads.pid) if line.inode]
    assert told == [(line.span.start, line.span.end, line.offset, line.path) for line in mapped]


_READERS = {
    "readelf": ("readelf", "-W", "-h", "-l", "-S", "-n"),
    "objdump": ("objdump", "-h"),
    "eu-readelf": ("eu-readelf", "-h", "-l", "-n"),
}


@pytest.mark.parametrize("options", [(), ("core=full",)], ids=["filtered", "full"])
def test_readers_complain_of_no_more_than_in_a_core_of_the_kernel(
    threads: ThreadsProgram, tmp_path: Path, options: tuple[str, ...]
) -> None:
    if reason := why_no_kernel_core():
        pytest.skip(reason)
    threads.stop()
    (tmp_path / "mount").mkdir()
    with mounted(tmp_path / "mount", *options) as memfs:
        ours = _copy(memfs, threads.pid, tmp_path).path
    theirs = threads.dump()
    for argv in _READERS.values():
        said = [run(*argv, core) for core in (ours, theirs)]
        assert [done.returncode for done in said] == [0, 0]
        found, allowed = (complaints((done.stdout + done.stderr).decode()) for done in said)
        assert found <= allowed
    seen, dumped = (run_gdb(tmp_path, _EXPRESSIONS, threads.path, core) for core in (ours, theirs))
    assert seen.complaints <= dumped.complaints
    assert seen.unavailable() == dumped.unavailable()
    assert seen.values == dumped.values


def test_eu_readelf_knows_every_note(memfs: Mount, threads: ThreadsProgram, tmp_path: Path) -> None:
    core = _copy(memfs, threads.pid, tmp_path)
    shown = check("eu-readelf", "-n", core.path).decode()
    assert set(re.findall(r"<unknown>: (\d+)", shown)) <= {str(X86_XSAVE_LAYOUT)}  # elfutils 0.188 does not
    heads = [line.split() for line in shown.splitlines() if line.startswith(("  CORE ", "  LINUX "))]
    sizes = [(owner, int(size)) for owner, size, *_kind in heads]
    assert sizes == [(note.owner, len(note.content)) for note in core.notes]


# Memory


def _assert_same_memory(target: ThreadsProgram, core: Core, loads: list[Load]) -> None:
    for load in loads:
        span = Span(load.span.start, load.span.start + load.file_size)
        assert core.content(load) == read_memory(target.pid, span), load


def _readable(pid: int) -> list[Span]:
    return [line.span for line in read_maps(pid) if not line.path.startswith(_UNREADABLE)]


def test_a_core_has_the_memory_of_its_process(
    either_memfs: Mount, threads: ThreadsProgram, tmp_path: Path
) -> None:
    threads.stop()
    core = _copy(either_memfs, threads.pid, tmp_path)
    assert [load.span for load in core.loads] == [line.span for line in read_maps(threads.pid)]
    held = [load for load in core.loads if load.span in threads.mappings.values()]
    assert len(held) == len(threads.mappings)
    assert core.load(threads.mappings["dontdump"]).file_size == 0
    assert core.content(core.load(threads.mappings["none"])).startswith(b"none, page 0\0")
    files = {line.span for line in read_maps(threads.pid) if line.path.startswith(b"/")}
    _assert_same_memory(threads, core, held + [load for load in core.loads if load.span in files])


def test_a_full_core_leaves_nothing_out(threads: ThreadsProgram, tmp_path: Path) -> None:
    threads.stop()
    directory = tmp_path / "mount"
    directory.mkdir()
    with mounted(directory, "core=full") as memfs:
        core = _copy(memfs, threads.pid, tmp_path)
    readable = _readable(threads.pid)
    for load in core.loads:
        assert load.file_size == (load.span.length if load.span in readable else 0)
    _assert_same_memory(threads, core, [core.load(span) for span in threads.mappings.values()])
    text = next(line.span for line in read_maps(threads.pid) if line.perms == "r-xp")
    _assert_same_memory(threads, core, [core.load(text)])


@pytest.mark.parametrize("core_filter", _FILTERS, ids=hex)
def test_a_core_has_the_segments_of_a_core_of_the_kernel(
    memfs: Mount, tmp_path: Path, core_filter: int
) -> None:
    if reason := why_no_kernel_core():
        pytest.skip(reason)
    with ThreadsProgram(tmp_path / "threads", core_filter=core_filter) as target:
        target.stop()
        readable = _readable(target.pid)
        ours, theirs = _copy(memfs, target.pid, tmp_path), parse_core(target.dump())
    seen, dumped = (
        [(load.span, load.file_size, load.flags) for load in core.loads if load.span in readable]
        for core in (ours, theirs)
    )
    assert len(seen) == len(readable)
    assert seen == dumped
    for kind in target.mappings:
        contents = [core.content(core.load(target.mappings[kind])) for core in (ours, theirs)]
        assert contents[0] == contents[1]


@pytest.fixture
def many_mappings_allowed() -> Iterator[None]:
    """More mappings than a process may have else."""
    before = _MAX_MAP_COUNT.read_text()
    _MAX_MAP_COUNT.write_text(f"{max(int(before), 2 * _MANY_VMAS)}\n")
    yield
    _MAX_MAP_COUNT.write_text(before)


@pytest.mark.usefixtures("many_mappings_allowed")
def test_a_core_may_have_more_segments_than_a_header_can_count(memfs: Mount, tmp_path: Path) -> None:
    with ThreadsProgram(tmp_path / "threads", vmas=_MANY_VMAS) as target:
        target.stop()
        core = _copy(memfs, target.pid, tmp_path)
        lines = read_maps(target.pid)
        _assert_same_memory(target, core, [core.load(target.mappings["private"])])
    assert len(lines) > _MANY_VMAS > 0xFFFF
    assert [load.span for load in core.loads] == [line.span for line in lines]
    head = run("readelf", "-h", core.path)
    assert (head.returncode, head.stderr) == (0, b"")
    assert f"65535 ({len(lines) + 1})" in head.stdout.decode()
    shown = check("eu-readelf", "-l", core.path).decode()
    assert sum(line.startswith("  LOAD ") for line in shown.splitlines()) == len(lines)


# The file


def test_the_size_is_exact_from_the_first_look_after_open(
    memfs: Mount, threads: ThreadsProgram, tmp_path: Path
) -> None:
    with opened(memfs.process(threads.pid) / "core") as descriptor:
        size = os.fstat(descriptor).st_size
        (tmp_path / "core").write_bytes(read_all(descriptor, 2 * size))
        assert os.pread(descriptor, 1, size) == b""
    assert (tmp_path / "core").stat().st_size == size == parse_core(tmp_path / "core").end


def test_a_core_can_be_read_from_anywhere(either_memfs: Mount, threads: ThreadsProgram) -> None:
    chance = random.Random(threads.pid)
    with opened(either_memfs.process(threads.pid) / "core") as descriptor:
        size = os.fstat(descriptor).st_size
        whole = read_all(descriptor, size)
        for _ in range(200):
            offset = chance.randrange(size)
            length = chance.choice((1, 100, PAGE, 5 * PAGE + 17, 1 << 20))
            assert os.pread(descriptor, length, offset) == whole[offset : offset + length]


def test_a_core_has_holes_where_the_process_has_nothing(
    memfs: Mount, threads: ThreadsProgram, tmp_path: Path
) -> None:
    with opened(memfs.process(threads.pid) / "core") as descriptor:
        size = os.fstat(descriptor).st_size
        stretches = list(holes_and_data(descriptor))
        whole = read_all(descriptor, size)
        check("cp", "--sparse=auto", f"/proc/{os.getpid()}/fd/{descriptor}", tmp_path / "copy")
    copy = tmp_path / "copy"
    assert [span.start for span, _ in stretches] == [0, *(span.end for span, _ in stretches[:-1])]
    assert stretches[-1][0].end == size
    for span, is_data in stretches:
        assert is_data or not any(whole[span.start : span.end])
    half_written = parse_core(copy).load(threads.mappings["private"])
    assert half_written.file_size == half_written.span.length
    for start in range(half_written.offset, half_written.offset + half_written.file_size, 2 * PAGE):
        written, untouched = Span(start, start + PAGE), Span(start + PAGE, start + 2 * PAGE)
        assert [is_data for span, is_data in stretches if span.overlap(written)] == [True]
        assert [is_data for span, is_data in stretches if span.overlap(untouched)] == [False]
    assert copy.read_bytes() == whole
    data = sum(span.length for span, is_data in stretches if is_data)
    assert copy.stat().st_blocks * 512 <= data + 16 * PAGE < size


# Snapshots behind it


def test_all_who_read_a_core_read_one_snapshot(memfs: Mount, threads: ThreadsProgram) -> None:
    path = memfs.process(threads.pid) / "core"
    assert threads.copies() == []
    with contextlib.ExitStack() as first:
        one = first.enter_context(opened(path))
        size = os.fstat(one).st_size
        before = hashlib.sha256(read_all(one, size)).digest()
        for _ in range(3):
            threads.count()
        with opened(path) as another:
            assert len(threads.copies()) == 1
            first.close()
            assert hashlib.sha256(read_all(another, size)).digest() == before
            assert len(threads.copies()) == 1
        wait_until_let_go(threads.pid)
    with opened(path) as later:
        assert hashlib.sha256(read_all(later, size)).digest() != before
    wait_until_let_go(threads.pid)


def test_a_core_of_a_snapshot_stops_nobody_again(
    memfs: Mount, threads: ThreadsProgram, tmp_path: Path
) -> None:
    snapshot = memfs.process(threads.pid) / "snapshots" / "one"
    threads.count()
    snapshot.mkdir()
    copies = threads.copies()
    threads.count()
    with opened(snapshot / "core") as descriptor:
        assert threads.copies() == copies
        size = os.fstat(descriptor).st_size
        assert (snapshot / "core").stat().st_size == size
        (tmp_path / "core").write_bytes(read_all(descriptor, size))
    assert threads.copies() == copies
    seen = run_gdb(tmp_path, ["counter"], threads.path, tmp_path / "core")
    assert seen.values == {"counter": "1"}
    snapshot.rmdir()
    wait_until_let_go(threads.pid)


def test_a_core_outlives_its_process(memfs: Mount, threads: ThreadsProgram, tmp_path: Path) -> None:
    with opened(memfs.process(threads.pid) / "core") as descriptor:
        size = os.fstat(descriptor).st_size
        half = read_all(descriptor, size // 2)
        (copy,) = threads.copies()
        threads.kill()
        whole = read_all(descriptor, size)
    assert len(whole) == size
    assert whole.startswith(half)
    (tmp_path / "core").write_bytes(whole)
    seen = run_gdb(tmp_path, ["counter"], threads.path, tmp_path / "core")
    assert set(seen.threads) == set(threads.threads.values())
    os.waitpid(copy, 0)  # an orphan, it came to the subreaper


def test_a_core_can_be_sent_through_a_pipe(memfs: Mount, threads: ThreadsProgram, tmp_path: Path) -> None:
    with (tmp_path / "core").open("wb") as received:
        sender = subprocess.Popen(["cat", memfs.process(threads.pid) / "core"], stdout=subprocess.PIPE)
        assert sender.stdout is not None
        subprocess.run(["cat"], stdin=sender.stdout, stdout=received, check=True)
        sender.stdout.close()
    assert sender.wait() == 0
    core = parse_core(tmp_path / "core")
    assert core.end == (tmp_path / "core").stat().st_size
    assert len(core.of("NT_PRSTATUS")) == len(threads.threads)
