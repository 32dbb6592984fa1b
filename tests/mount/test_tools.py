"""The tools people have, on the memory of a process: each ends with status 0 and has the right bytes."""

import ctypes
import hashlib
import mmap
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.kinds import CONTENT_KINDS
from mount.mounted import LIMIT_SECONDS, MIB, Mount, check, mounted, mounts_on, opened, run, wrong
from support.held import HeldMapping
from support.pattern import PAGE
from support.target import Target

COPIERS = {
    "cp": ["cp"],
    "cp-sparse-never": ["cp", "--sparse=never"],
    "cp-sparse-always": ["cp", "--sparse=always"],
    "rsync": ["rsync", "-aS"],
    "install": ["install", "-m600"],
}
BLOCKS = [("bs=16K",), ("bs=128K",), ("bs=1M",), ("bs=5000",), ("bs=3M",)]
FLAGS = [(), ("iflag=direct",)]
RANGES = [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (12345, 300_001), (MIB - 5, 10), (0, MIB)]
"""Offset and length: aligned or not, inside a page, over its edge, over the edge of a request."""

Reader = Callable[[Path, int], bytes]


@pytest.fixture(scope="module", params=["on", "off"])
def either_memfs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount that splices, and one that copies: all tools read them, one after the other."""
    directory = tmp_path_factory.mktemp("tools")
    with mounted(directory, f"splice={request.param}", limit_seconds=4 * LIMIT_SECONDS) as mount:
        yield mount


def _one_by_one(memfs: Mount, holder: Target, read: Reader) -> None:
    """Assert that *read*, given a file and its size, gets every byte of every mapping right."""
    for mapping in holder.mappings:
        assert wrong(mapping, read(memfs.vma(holder.pid, mapping), mapping.length)) is None


@pytest.mark.parametrize("copier", COPIERS)
def test_a_copy_has_the_bytes_of_the_process(
    either_memfs: Mount, holder: Target, copier: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"

    def read(file: Path, _size: int) -> bytes:
        copy.unlink(missing_ok=True)
        check(*COPIERS[copier], file, copy)
        return copy.read_bytes()

    _one_by_one(either_memfs, holder, read)


@pytest.mark.parametrize("flags", FLAGS, ids=["", "direct"])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0])
def test_dd_reads_the_right_bytes_by_blocks_of_any_size(
    either_memfs: Mount, holder: Target, block: tuple[str], flags: tuple[str]
) -> None:
    _one_by_one(
        either_memfs, holder, lambda file, _size: check("dd", f"if={file}", "status=none", *block, *flags)
    )


@pytest.mark.parametrize("flags", FLAGS, ids=["", "direct"])
def test_dd_reads_the_right_bytes_of_any_range(
    either_memfs: Mount, holder: Target, flags: tuple[str]
) -> None:
    where = ",".join(("iflag=skip_bytes", "count_bytes", *(flag.removeprefix("iflag=") for flag in flags)))
    for kind in ("private-runs", "file-private", "memfd-shared"):
        mapping = holder.mapping(kind)
        file = either_memfs.vma(holder.pid, mapping)
        for offset, length in RANGES:
            got = check(
                "dd", f"if={file}", "status=none", "bs=128K", f"skip={offset}", f"count={length}", where
            )
            wanted = min(length, mapping.length - offset)
            assert (len(got), mapping.mismatch(offset, got)) == (wanted, None)


def test_nc_sends_the_right_bytes(either_memfs: Mount, holder: Target) -> None:
    def read(file: Path, _size: int) -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as server, file.open("rb") as source:
            sender = subprocess.Popen(
                ["nc", "-N", "127.0.0.1", str(server.getsockname()[1])],
                stdin=source,
                stdout=subprocess.DEVNULL,
            )
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as received:
                content = received.read()
            assert sender.wait() == 0
        return content

    _one_by_one(either_memfs, holder, read)


@pytest.mark.parametrize("options", [(), ("-S",)], ids=["plain", "sparse"])
def test_tar_keeps_the_right_bytes(
    either_memfs: Mount, holder: Target, options: tuple[str, ...], tmp_path: Path
) -> None:
    archive, copies = tmp_path / "vmas.tar", tmp_path / "copies"
    copies.mkdir()
    names = [either_memfs.vma(holder.pid, mapping).name for mapping in holder.mappings]
    check("tar", "-c", *options, "-f", archive, "-C", either_memfs.process(holder.pid) / "vmas", *names)
    check("tar", "-xf", archive, "-C", copies)
    for name, mapping in zip(names, holder.mappings, strict=True):
        assert wrong(mapping, (copies / name).read_bytes()) is None


def test_a_pipe_from_cat_carries_the_right_bytes(either_memfs: Mount, holder: Target) -> None:
    for mapping in holder.mappings:
        cat = subprocess.Popen(["cat", either_memfs.vma(holder.pid, mapping)], stdout=subprocess.PIPE)
        assert cat.stdout is not None
        with cat.stdout:
            got = run("sha256sum", stdin=cat.stdout.fileno()).stdout.split()[0].decode()
        assert cat.wait() == 0
        assert got == hashlib.sha256(mapping.expected(0, mapping.length)).hexdigest()


def test_cmp_finds_no_difference_to_proc_mem(either_memfs: Mount, tmp_path: Path) -> None:
    # Reading /proc/PID/mem touches what it reads, so this target is no one else's.
    with Target(*CONTENT_KINDS, directory=tmp_path) as target:
        for mapping in target.mappings:
            peer = tmp_path / "peer"
            block = mapping.start // PAGE, mapping.length // PAGE
            check(
                "dd", f"if=/proc/{target.pid}/mem", f"of={peer}", "status=none", f"bs={PAGE}",
                f"skip={block[0]}", f"count={block[1]}",
            )  # fmt: skip
            assert check("cmp", peer, either_memfs.vma(target.pid, mapping)) == b""


def test_the_flat_file_has_each_byte_at_its_address(either_memfs: Mount, holder: Target) -> None:
    flat = either_memfs.process(holder.pid) / "mem"
    for mapping in holder.mappings:
        for offset in (0, max(0, mapping.length - 3 * PAGE - 7)):
            length = min(2 * PAGE + 5, mapping.length - offset)
            where = f"skip={mapping.start + offset}", f"count={length}", "iflag=skip_bytes,count_bytes"
            got = check("dd", f"if={flat}", "status=none", "bs=1M", *where)
            assert (len(got), mapping.mismatch(offset, got)) == (length, None)


def test_xxd_shows_the_right_bytes(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("private-full")
    shown = check("xxd", "-p", "-c", "64", "-s", "8190", "-l", "64", memfs.vma(holder.pid, mapping))
    assert bytes.fromhex(shown.decode()) == mapping.expected(8190, 64)


@pytest.mark.parametrize("way", ["--mmap", "--no-mmap"])
def test_rg_finds_a_text_in_the_memory_of_this_process(memfs: Mount, way: str) -> None:
    text = f"a text of {os.getpid()} that is found".encode()
    with mmap.mmap(-1, 8 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[5 * MIB + 77 : 5 * MIB + 77 + len(text)] = text
        anchor = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(anchor)
        files = (memfs.process(os.getpid()) / "vmas").iterdir()
        spans = {file: [int(part, 16) for part in file.name.partition("_")[0].split("-")] for file in files}
        (file,) = (file for file, (start, end) in spans.items() if start <= address < end)
        found = check("rg", way, "--text", "--only-matching", "--byte-offset", text.decode(), file)
        del anchor
    offset = address + 5 * MIB + 77 - spans[file][0]
    assert f"{offset}:{text.decode()}" in found.decode().splitlines()


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_a_file_can_be_mapped(either_memfs: Mount, holder: Target, flags: int) -> None:
    def read(file: Path, size: int) -> bytes:
        with opened(file) as descriptor, mmap.mmap(descriptor, size, flags, mmap.PROT_READ) as mapped:
            return mapped[:]

    _one_by_one(either_memfs, holder, read)


def test_sendfile_sends_the_right_bytes(either_memfs: Mount, holder: Target, tmp_path: Path) -> None:
    def read(file: Path, size: int) -> bytes:
        with opened(file) as source, (tmp_path / "sent").open("w+b") as sent:
            offset = 0
            while moved := os.sendfile(sent.fileno(), source, offset, size - offset):
                offset += moved
        return (tmp_path / "sent").read_bytes()

    _one_by_one(either_memfs, holder, read)


def test_splice_gives_the_right_bytes(either_memfs: Mount, holder: Target) -> None:
    reader, writer = os.pipe()

    def read(file: Path, _size: int) -> bytes:
        content = bytearray()
        with opened(file) as source:
            while moved := os.splice(source, writer, 32 * 1024):
                content += os.read(reader, moved)
        return bytes(content)

    try:
        _one_by_one(either_memfs, holder, read)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_copy_of_a_whole_process_succeeds(memfs: Mount, holder: Target, shm: Path) -> None:
    check("cp", "-r", memfs.process(holder.pid), shm / "copy")
    for mapping in holder.mappings:
        copy = shm / "copy/vmas" / memfs.vma(holder.pid, mapping).name
        assert wrong(mapping, copy.read_bytes()) is None
    flat = shm / "copy/mem"
    with opened(flat) as descriptor:
        for mapping in holder.mappings:
            assert mapping.mismatch(0, os.pread(descriptor, PAGE, mapping.start)) is None


def test_findmnt_and_df_know_the_mount(memfs: Mount) -> None:
    shown = check("findmnt", "-n", "-o", "FSTYPE,SOURCE,TARGET", memfs.path).decode().split()
    assert shown == ["fuse.memfs", "memfs", str(memfs.path)]
    assert mounts_on(memfs.path) == [("fuse.memfs", "memfs")]
    source, kib, *_, target = check("df", memfs.path).decode().splitlines()[1].split()
    assert (source, target) == ("memfs", str(memfs.path))
    total = int(Path("/proc/meminfo").read_text().split()[1])
    assert int(kib) == pytest.approx(total, rel=0.01)


def _held_sizes(mappings: tuple[HeldMapping, ...]) -> int:
    return sum(span.length for mapping in mappings for span in mapping.touched)


def test_du_tells_the_memory_that_a_process_holds(memfs: Mount, holder: Target) -> None:
    told = int(check("du", "-s", "-B1", memfs.process(holder.pid) / "vmas").split()[0])
    rss = holder.rss().rss
    assert told == pytest.approx(rss, rel=0.1)
    assert told > _held_sizes(holder.mappings) * 0.9
