"""The tree: what is in it, and what stat, ls, find and getfattr tell of it."""

import ctypes
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENAMETOOLONG, ENOENT, ENXIO, ERANGE, EROFS
from pathlib import Path

import pytest
from mount.mounted import Mount, check, error_of, opened, run
from support.held import Span, merge, subtract
from support.kinds import SMALL_VMAS
from support.outside import MapsLine, read_maps
from support.pattern import PAGE
from support.target import Target

_NO_ONE_READS = (b"[vvar", b"[vsyscall]")

LABELS = {
    "private-runs": ["anon"],
    "shared-anon": ["shm"],
    "system-v": ["shm"],
    "memfd-shared": ["memfd.shared"],
    "memfd-odd-name": ["memfd.odd____name__deleted_"],
    "file-private": ["private"],
    "file-deleted": ["gone"],
    "none-data": ["anon"],
    "file-odd-names": [
        "with_space", "new_line", "unicod______", "not_utf-8___", None, None, "_heap_", "-rf", "n" * 64,
    ],
}  # fmt: skip
"""Written by hand from interface.md. None: maps writes " (deleted)" and \\012 itself too."""

HOLED_KINDS = (
    "private-runs",
    "zero-read",
    "shared-anon",
    "shared-anon-other",
    "system-v",
    "memfd-shared",
    "none-data",
)


def _readable(lines: tuple[MapsLine, ...]) -> list[MapsLine]:
    return [line for line in lines if not line.path.startswith(_NO_ONE_READS)]


def test_vmas_has_one_file_for_each_mapping_that_can_be_read(memfs: Mount, holder: Target) -> None:
    names = check("ls", memfs.process(holder.pid) / "vmas").decode().splitlines()
    lines = _readable(read_maps(holder.pid))
    expected = [f"{line.span.start:012x}-{line.span.end:012x}_{line.perms}_" for line in lines]
    assert [name[: name.index("_", 30) + 1] for name in names] == expected


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_tells_what_is_mapped(memfs: Mount, holder: Target, kind: str) -> None:
    for mapping, label in zip(holder.held.of(kind), LABELS[kind], strict=True):
        name = memfs.vma(holder.pid, mapping).name
        if label is not None:
            assert name == f"{mapping.start:012x}-{mapping.end:012x}_{mapping.perms}_{label}"


def test_every_name_that_is_listed_can_be_looked_up(memfs: Mount, holder: Target) -> None:
    vmas = memfs.process(holder.pid) / "vmas"
    for name in os.listdir(vmas):
        assert (vmas / name).is_file()
    check("ls", "-l", vmas)


def test_secret_memory_has_no_file_and_stands_in_maps(memfs: Mount, tmp_path: Path) -> None:
    with Target("secretmem", directory=tmp_path) as target:
        start = target.mapping("secretmem").start
        vmas = memfs.process(target.pid) / "vmas"
        assert not [name for name in os.listdir(vmas) if name.startswith(f"{start:012x}")]
        assert f"{start:x}-".encode() in (memfs.process(target.pid) / "maps").read_bytes()
        with opened(memfs.process(target.pid) / "mem") as flat:
            assert os.pread(flat, PAGE, start) == bytes(PAGE)


def test_maps_is_the_text_that_proc_gives(memfs: Mount, holder: Target) -> None:
    text = check("cat", f"/proc/{holder.pid}/maps")
    file = memfs.process(holder.pid) / "maps"
    assert (check("cat", file), file.stat().st_size) == (text, len(text))


def test_a_listing_leaves_the_size_of_maps_as_it_is(memfs: Mount, holder: Target) -> None:
    """It does not tell it: neither to who asks afterwards, nor to who has the file open."""
    text = Path(f"/proc/{holder.pid}/maps").read_bytes()
    process = memfs.process(holder.pid)
    assert "maps" in os.listdir(process)
    assert (process / "maps").stat().st_size == len(text)
    with opened(process / "maps") as descriptor:
        assert f" {len(text)} " in check("ls", "-l", process).decode()
        assert os.fstat(descriptor).st_size == len(text)
        assert os.lseek(descriptor, 0, os.SEEK_END) == len(text)
        assert os.pread(descriptor, 2 * len(text), 0) == text


_SEND = """
import os, sys
os.listdir(os.path.dirname(sys.argv[1]))
maps = os.open(sys.argv[1], os.O_RDONLY)
while os.sendfile(1, maps, None, 1 << 20):
    pass
"""


@pytest.mark.parametrize("name", ["python3", "nc"], ids=["unknown command", "reads little"])
def test_maps_can_be_sent_by_who_does_not_ask_for_its_size(memfs: Mount, holder: Target, name: str) -> None:
    file = memfs.process(holder.pid) / "maps"
    argv = [name, "-c", _SEND, str(file)]
    sent = subprocess.run(argv, executable="/usr/bin/python3", stdout=subprocess.PIPE, check=True).stdout
    assert sent == Path(f"/proc/{holder.pid}/maps").read_bytes()


def test_a_listing_leaves_the_time_of_an_open_file_as_it_is(memfs: Mount, holder: Target) -> None:
    """tar looks at a file before and after it reads it, and others may look at the directory meanwhile."""
    file = memfs.vma(holder.pid, holder.mapping("private-runs"))
    with opened(file) as descriptor:
        before = os.fstat(descriptor).st_mtime_ns
        assert file.name in os.listdir(file.parent)
        assert os.fstat(descriptor).st_mtime_ns == before


def test_sizes_are_exact(memfs: Mount, holder: Target) -> None:
    for mapping in holder.mappings:
        assert memfs.vma(holder.pid, mapping).stat().st_size == mapping.length
    user = [line for line in read_maps(holder.pid) if line.path != b"[vsyscall]"]
    assert (memfs.process(holder.pid) / "mem").stat().st_size == user[-1].span.end


_ZERO_PAGES = "a page of zeros that was only read looks like one that was written"


@pytest.mark.parametrize(
    "kind", ["private-runs", "private-full", "zero-read", "none-data", "write-only", "thp"]
)
def test_blocks_tell_what_is_resident(memfs: Mount, holder: Target, kind: str) -> None:
    if kind == "zero-read":
        memfs.needs("pagemap_scan", _ZERO_PAGES)
    mapping = holder.mapping(kind)
    resident = sum(span.length for span in mapping.data)
    assert memfs.vma(holder.pid, mapping).stat().st_blocks * 512 == resident


def _data_spans(descriptor: int, size: int) -> Iterator[Span]:
    at = 0
    while at < size:
        if error_of(lambda at=at: os.lseek(descriptor, at, os.SEEK_DATA)) == ENXIO:  # type: ignore[misc]
            return
        start = os.lseek(descriptor, at, os.SEEK_DATA)
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield Span(start, at)


@pytest.mark.parametrize("kind", HOLED_KINDS)
def test_holes_are_just_where_nothing_was_written(memfs: Mount, holder: Target, kind: str) -> None:
    if kind == "zero-read":
        memfs.needs("pagemap_scan", _ZERO_PAGES)
    mapping = holder.mapping(kind)
    with opened(memfs.vma(holder.pid, mapping)) as descriptor:
        found = merge(_data_spans(descriptor, mapping.length))
    assert found == tuple(Span(s.start - mapping.start, s.end - mapping.start) for s in mapping.data)


def test_no_hole_covers_content(memfs: Mount, holder: Target) -> None:
    for mapping in holder.mappings:
        with opened(memfs.vma(holder.pid, mapping)) as descriptor:
            found = merge(_data_spans(descriptor, mapping.length))
        wanted = (Span(s.start - mapping.start, s.end - mapping.start) for s in mapping.data)
        assert (mapping.kind, subtract(wanted, found)) == (mapping.kind, ())


def test_the_flat_file_has_holes_around_a_mapping(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("private-full")
    with opened(memfs.process(holder.pid) / "mem") as flat:
        assert os.lseek(flat, mapping.start - PAGE, os.SEEK_HOLE) == mapping.start - PAGE
        assert os.lseek(flat, mapping.start - PAGE, os.SEEK_DATA) == mapping.start
        assert os.lseek(flat, mapping.start, os.SEEK_HOLE) == mapping.end
        assert os.pread(flat, 2 * PAGE, mapping.start - PAGE)[:PAGE] == bytes(PAGE)


def test_files_belong_to_the_user_of_the_process(memfs: Mount, user_directory: Path, user: int) -> None:
    with Target("private-runs", directory=user_directory, user=user, python="/usr/bin/python3") as target:
        process = memfs.process(target.pid)
        files = (process / "mem", process / "maps", memfs.vma(target.pid, target.mapping("private-runs")))
        for file in files:
            found = file.stat()
            assert (found.st_uid, found.st_gid, stat.filemode(found.st_mode)) == (user, user, "-r--------")
        for directory in (process, process / "vmas"):
            found = directory.stat()
            assert (found.st_uid, found.st_gid, stat.filemode(found.st_mode)) == (user, user, "dr-x------")


def test_the_time_of_live_memory_is_now(memfs: Mount, holder: Target) -> None:
    before = time.time()
    assert before - 1 <= (memfs.process(holder.pid) / "mem").stat().st_mtime <= time.time() + 1


def _listed(where: Path) -> dict[str, tuple[str, str, str]]:
    lines = check("find", where, "-printf", "%P\\0%i\\0%n\\0%y\\n").decode().splitlines()
    return {path: (inode, links, kind) for path, inode, links, kind in (line.split("\0") for line in lines)}


def test_inode_numbers_stay_and_are_never_shared(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    with Target("vmas-60000", directory=tmp_path) as other:
        first = _listed(memfs.process(holder.pid))
        assert first == _listed(memfs.process(holder.pid))
        second = _listed(memfs.process(other.pid))
        inodes = [inode for inode, *_ in (*first.values(), *second.values())]
        assert len(set(inodes)) == len(inodes) > SMALL_VMAS
        assert {links for _, links, kind in first.values() if kind == "f"} == {"1"}


def test_no_two_things_of_the_whole_tree_share_an_inode(memfs: Mount) -> None:
    memfs.declare_denials()
    # Processes may end under find, which then complains; what it has found counts.
    found = run("find", memfs.path, "-printf", "%i\\n").stdout.split()
    assert len(set(found)) == len(found) > 100


def _target_of(link: Path) -> str:
    return check("readlink", link).decode().removesuffix("\n")


def test_links_lead_where_their_names_say(memfs: Mount, holder: Target) -> None:
    process = memfs.process(holder.pid)
    lines = {line.path: line for line in read_maps(holder.pid)}
    program = os.fsencode(os.readlink(f"/proc/{holder.pid}/exe"))
    text = next(line for line in read_maps(holder.pid) if line.path == program and line.perms == "r-xp")
    for name, line in (("heap", lines[b"[heap]"]), ("stack", lines[b"[stack]"]), ("text", text)):
        target = _target_of(process / name)
        assert target.startswith(f"vmas/{line.span.start:012x}-{line.span.end:012x}_{line.perms}_")
        assert (process / name).is_file()
    assert _target_of(process / "proc") == f"/proc/{holder.pid}"


def test_by_name_leads_to_the_process(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        target.set_name(b"odd name/\xff")
        link = memfs.path / "by-name" / "odd_name__" / str(target.pid)
        assert _target_of(link) == f"../../{target.pid}"
        assert link.resolve() == memfs.process(target.pid)
        assert "odd_name__" in os.listdir(memfs.path / "by-name")
        assert os.listdir(link.parent) == [str(target.pid)]


def test_self_is_whoever_reads_it(memfs: Mount) -> None:
    reader = subprocess.Popen(["readlink", memfs.path / "self"], stdout=subprocess.PIPE)
    assert reader.communicate()[0] == b"%d\n" % reader.pid
    assert os.readlink(memfs.path / "self") == str(os.getpid())


def _list_attributes(file: Path, room: int) -> int:
    """llistxattr(2): how many bytes the names take, or the negative errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(room) if room else None
    found = int(libc.llistxattr(os.fsencode(file), buffer, ctypes.c_size_t(room)))
    return found if found >= 0 else -ctypes.get_errno()


def test_the_names_of_attributes_are_told_as_the_kernel_asks_for_them(memfs: Mount, holder: Target) -> None:
    file = memfs.vma(holder.pid, holder.mapping("private-runs"))
    names = b"".join(os.fsencode(name) + b"\0" for name in os.listxattr(file))
    for room, told in ((0, len(names)), (1, -ERANGE), (len(names) - 1, -ERANGE), (len(names), len(names))):
        assert _list_attributes(file, room) == told
    for without in (memfs.path, file.parent, memfs.process(holder.pid) / "maps", memfs.path / "by-name"):
        assert os.listxattr(without) == []
        assert _list_attributes(without, 0) == _list_attributes(without, 100) == 0


def test_getfattr_tells_what_maps_and_smaps_tell(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("file-private")
    file = memfs.vma(holder.pid, mapping)
    dump = check("getfattr", "-d", "--absolute-names", file).decode().splitlines()[1:]
    found = dict(line.removeprefix("user.memfs.").split("=", 1) for line in dump if line)
    assert mapping.path is not None
    assert {name: found[name] for name in ("start", "end", "perms", "offset", "inode", "path", "swap")} == {
        "start": f'"{mapping.start:012x}"',
        "end": f'"{mapping.end:012x}"',
        "perms": f'"{mapping.perms}"',
        "offset": f'"{mapping.offset:08x}"',
        "inode": f'"{Path(os.fsdecode(mapping.path)).stat().st_ino}"',
        "path": f'"{os.fsdecode(mapping.path)}"',
        "swap": '"0"',
    }
    held = sum(span.length for span in mapping.touched)
    assert int(found["rss"].strip('"')) == held
    assert {"rd", "wr", "mr", "mw", "me"} <= set(found["flags"].strip('"').split())
    assert set(found) == {
        "start", "end", "perms", "offset", "device", "inode", "path", "rss", "swap", "flags",
    }  # fmt: skip


def test_names_are_255_bytes_at_most(memfs: Mount, holder: Target) -> None:
    for directory in (memfs.path, memfs.process(holder.pid), memfs.process(holder.pid) / "vmas"):
        assert error_of((directory / ("n" * 256)).stat) == ENAMETOOLONG
        assert error_of((directory / ("n" * 255)).stat) == ENOENT


def test_there_is_nothing_that_the_tree_does_not_list(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("private-runs")
    name = memfs.vma(holder.pid, mapping).name
    near = [name[:-1], name.upper(), "0" + name, name.replace("_rw-p_", "_r--p_"), f"{mapping.start:012x}-"]
    for path in (
        *(f"{holder.pid}/vmas/{each}" for each in near),
        f"0{holder.pid}",
        f"+{holder.pid}",
        "0",
        "-1",
    ):
        assert (path, error_of((memfs.path / path).stat)) == (path, ENOENT)


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda file, _new: os.open(file, os.O_WRONLY),
    "read-write": lambda file, _new: os.open(file, os.O_RDWR),
    "truncate": lambda file, _new: os.truncate(file, 0),
    "create": lambda _file, new: os.open(new, os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda _file, new: os.mkdir(new),
    "mkfifo": lambda _file, new: os.mkfifo(new),
    "symlink": lambda _file, new: os.symlink("x", new),
    "link": lambda file, new: os.link(file, new),
    "rename": lambda file, new: os.rename(file, new),
    "unlink": lambda file, _new: os.unlink(file),
    "rmdir": lambda file, _new: os.rmdir(file.parent),
    "chmod": lambda file, _new: os.chmod(file, 0o777),
    "chown": lambda file, _new: os.chown(file, 1, 1),
    "utime": lambda file, _new: os.utime(file, (0, 0)),
    "setxattr": lambda file, _new: os.setxattr(file, "user.x", b""),
    "removexattr": lambda file, _new: os.removexattr(file, "user.memfs.start"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_can_be_changed(memfs: Mount, holder: Target, change: str) -> None:
    file = memfs.vma(holder.pid, holder.mapping("private-runs"))
    for new in (file.with_name("new"), memfs.process(holder.pid) / "new", memfs.path / "new"):
        assert error_of(lambda new=new: CHANGES[change](file, new)) == EROFS  # type: ignore[misc]


@contextmanager
def _zombie() -> Iterator[int]:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        yield pid
    finally:
        os.waitpid(pid, 0)


@contextmanager
def _thread() -> Iterator[int]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        yield thread.native_id
    finally:
        end.set()
        thread.join()


def _kernel_threads() -> list[int]:
    """They are the children of kthreadd, which has the pid 2."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1] == b"2":
                found.append(int(name))
    return found


def test_what_has_no_memory_of_its_own_is_not_there(memfs: Mount) -> None:
    with _zombie() as zombie, _thread() as thread:
        listed = os.listdir(memfs.path)
        assert str(os.getpid()) in listed
        for pid in (zombie, thread, *_kernel_threads()[:20]):
            assert str(pid) not in listed
            assert error_of(memfs.process(pid).stat) == ENOENT


def test_a_process_of_60000_mappings_is_listed_whole(memfs: Mount, tmp_path: Path) -> None:
    with Target("vmas-60000", directory=tmp_path) as target:
        vmas = memfs.process(target.pid) / "vmas"
        count = len(_readable(read_maps(target.pid)))
        assert count > SMALL_VMAS
        assert int(check("sh", "-c", f"ls {vmas} | wc -l")) == count
        listed = check("ls", "-l", vmas).decode().splitlines()
        assert len(listed) == count + 1
        first = target.mapping("vmas-60000").start
        sizes = {line.split()[4] for line in listed[1:] if line.split()[-1] >= f"{first:012x}"}
        assert str(PAGE) in sizes
