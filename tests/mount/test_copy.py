"""``memfs copy``: the bytes, the holes, what is left when it fails, and that it ends when it is told to."""

import hashlib
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import MEMFS, MIB, Mount, check, complaint, run, wrong
from support.drivers import StuckTarget
from support.pattern import PAGE
from support.target import Target

FULL_DISK_MIB = 8


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4 of our own."""
    image, where = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(FULL_DISK_MIB * MIB)
    check("mkfs.ext4", "-q", "-m", "0", image)
    where.mkdir()
    check("mount", "-o", "loop", image, where)
    yield where
    check("umount", where)


def left_in(directory: Path) -> set[str]:
    """All names in a directory but what mkfs makes."""
    return set(os.listdir(directory)) - {"lost+found"}


@pytest.mark.parametrize("options", [(), ("--verify",), ("--checksum",)], ids=["plain", "verify", "checksum"])
def test_the_copy_of_a_file_has_its_bytes_and_its_holes(
    memfs: Mount, holder: Target, tmp_path: Path, options: tuple[str, ...]
) -> None:
    copy = tmp_path / "copy"
    for mapping in holder.mappings:
        said = check(MEMFS, "copy", *options, memfs.vma(holder.pid, mapping), copy)
        content = copy.read_bytes()
        assert wrong(mapping, content) is None
        if options == ("--checksum",):
            assert said.decode() == f"{hashlib.blake2b(content).hexdigest()}  {copy}\n"
        else:
            assert said == b""
        if mapping.kind == "private-runs":
            # ext4 takes a block more for a file in many pieces.
            assert copy.stat().st_blocks * 512 - sum(span.length for span in mapping.touched) in (0, PAGE)
        assert copy.stat().st_mode & 0o777 == 0o600


def test_a_file_that_ends_inside_a_page_is_copied_to_its_last_byte(
    memfs: Mount, holder: Target, tmp_path: Path
) -> None:
    with memfs.snapshot(holder.pid, "odd") as snapshot:
        for name in ("maps", "core", "info.json"):
            check(MEMFS, "copy", "--verify", snapshot / name, tmp_path / "copy")
            assert name == "core" or (snapshot / name).stat().st_size % PAGE
            check("cmp", snapshot / name, tmp_path / "copy")


@pytest.mark.parametrize("source", ["live", "snapshot"])
def test_a_directory_is_copied_whole(memfs: Mount, holder: Target, tmp_path: Path, source: str) -> None:
    target = tmp_path / "image"
    with memfs.snapshot(holder.pid, "whole") as snapshot:
        directory = memfs.process(holder.pid) if source == "live" else snapshot
        for _ in range(2):  # the second takes the place of the first
            check(MEMFS, "copy", directory, target)
    for mapping in holder.mappings:
        assert wrong(mapping, (target / "vmas" / memfs.vma(holder.pid, mapping).name).read_bytes()) is None
    assert os.readlink(target / "stack") == os.readlink(memfs.process(holder.pid) / "stack")
    assert (target / "maps").read_bytes() == (memfs.process(holder.pid) / "maps").read_bytes()
    assert not {"mem", "core", "proc", "snapshots"} & left_in(target)
    assert left_in(tmp_path) == {"mnt", "log", "image"}


def test_a_directory_of_the_users_is_not_replaced(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis").write_text("years")
    assert "not empty" in complaint(run(MEMFS, "copy", memfs.process(holder.pid), target), 1)
    assert left_in(target) == {"thesis"}


def test_a_process_and_a_snapshot_can_be_named_in_short(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    mapping = holder.mapping("private-runs")
    name = memfs.vma(holder.pid, mapping).name
    # In a mount namespace in which this is the last memfs that was mounted, whoever else mounts here.
    inside = ("unshare", "--mount", "sh", "-c", f'mount --bind {memfs.path} /mnt; exec "$@"', "sh")
    check(*inside, MEMFS, "copy", f"{holder.pid}/vmas/{name}", tmp_path / "file")
    assert wrong(mapping, (tmp_path / "file").read_bytes()) is None
    with memfs.snapshot(holder.pid, "short"):
        check(*inside, MEMFS, "copy", f"{holder.pid}/snapshots/short", tmp_path / "tree")
    assert wrong(mapping, (tmp_path / "tree/vmas" / name).read_bytes()) is None


def test_a_file_keeps_its_mode_its_name_and_its_place(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    mapping = holder.mapping("private-runs")
    file = memfs.vma(holder.pid, mapping)
    image, link, directory = tmp_path / "image", tmp_path / "link", tmp_path / "directory"
    image.write_bytes(b"old")
    image.chmod(0o640)
    link.symlink_to("image")
    directory.mkdir()
    check(MEMFS, "copy", file, link)
    assert (link.is_symlink(), image.stat().st_mode & 0o777) == (True, 0o640)
    assert wrong(mapping, image.read_bytes()) is None
    check(MEMFS, "copy", file, directory)
    assert left_in(directory) == {file.name}


def test_a_pipe_gets_every_byte(memfs: Mount, holder: Target) -> None:
    for mapping in holder.mappings:
        assert wrong(mapping, check(MEMFS, "copy", memfs.vma(holder.pid, mapping), "-")) is None


def test_a_pipe_gets_shared_memory_that_the_kernel_reads_itself(memfs: Mount, tmp_path: Path) -> None:
    with Target("shared-anon", "memfd-shared", directory=tmp_path, size=16 * MIB) as target:
        for mapping in target.mappings:
            assert wrong(mapping, check(MEMFS, "copy", memfs.vma(target.pid, mapping), "-")) is None


def test_a_socket_gets_every_byte(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        for mapping in holder.mappings:
            sender = subprocess.Popen([MEMFS, "copy", memfs.vma(holder.pid, mapping), path])
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as received:
                assert wrong(mapping, received.read()) is None
            assert sender.wait() == 0


def test_a_checksum_of_a_stream_is_that_of_its_bytes(memfs: Mount, holder: Target) -> None:
    mapping = holder.mapping("private-runs")
    done = run(MEMFS, "copy", "--checksum", memfs.vma(holder.pid, mapping), "-")
    assert done.stderr.decode() == f"{hashlib.blake2b(done.stdout).hexdigest()}  -\n"
    assert wrong(mapping, done.stdout) is None


def test_a_reader_that_ends_early_is_named(memfs: Mount, holder: Target) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        sender = subprocess.Popen(
            [MEMFS, "copy", memfs.vma(holder.pid, holder.mapping("private-full")), "-"],
            stdout=writer, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _, said = sender.communicate()
    finally:
        os.close(writer)
    assert sender.returncode == 1
    assert "who reads from - has ended" in said


def test_tmpfs_is_written_through_its_own_pages_and_disks_are_not(
    memfs: Mount, holder: Target, shm: Path, tmp_path: Path
) -> None:
    file = memfs.vma(holder.pid, holder.mapping("private-full"))
    said = run(MEMFS, "copy", "-v", file, shm / "copy").stderr.decode()
    assert (
        said == f"memfs: wrote {shm / 'copy'} through the page cache, for tmpfs keeps its files in memory\n"
    )
    assert (
        run(MEMFS, "copy", "-v", file, tmp_path / "copy").stderr.decode()
        == f"memfs: wrote {tmp_path / 'copy'} directly\n"
    )


def test_a_full_disk_keeps_the_old_file_and_no_litter(memfs: Mount, disk: Path, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path, size=2 * FULL_DISK_MIB * MIB) as target:
        file = memfs.vma(target.pid, target.mapping("private-full"))
        for destination in (disk / "image", disk / "new"):
            (disk / "image").write_bytes(b"the old image")
            said = complaint(run(MEMFS, "copy", file, destination), 1)
            assert f"no room for {destination}" in said
            assert (left_in(disk), (disk / "image").read_bytes()) == ({"image"}, b"the old image")
        assert "no room" in complaint(run(MEMFS, "copy", memfs.process(target.pid), disk / "tree"), 1)
        assert left_in(disk) == {"image"}


def test_the_process_ending_meanwhile_keeps_the_old_file(memfs: Mount, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"the old image")
    with Target("private-full", directory=tmp_path) as target:
        file = memfs.vma(target.pid, target.mapping("private-full"))
    assert re.search(f"{file}.* ended", complaint(run(MEMFS, "copy", file, image), 1))
    assert image.read_bytes() == b"the old image"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_an_interrupted_copy_ends_at_once_though_a_page_never_comes(
    memfs: Mount, tmp_path: Path, number: signal.Signals
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"the old image")
    with StuckTarget() as target:
        copy = subprocess.Popen(
            [MEMFS, "copy", memfs.vma(target.pid, target.mapping), image], stderr=subprocess.PIPE, text=True
        )
        target.wait_for_fault()
        copy.send_signal(number)
        _, said = copy.communicate(timeout=5)
    assert (copy.returncode, said) == (130, "memfs: interrupted\n")
    assert image.read_bytes() == b"the old image"
    assert left_in(tmp_path) == {"mnt", "log", "image"}


def kill_at(command: list[str | Path], delay_s: float) -> int:
    """Run a command, kill it after a time unless it has ended; its status."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = os.pidfd_open(process.pid)
    try:
        if not select.select([ended], [], [], delay_s)[0]:
            process.kill()
    finally:
        os.close(ended)
    return process.wait()


def test_a_killed_copy_leaves_the_old_or_the_new_file_and_no_litter(memfs: Mount, tmp_path: Path) -> None:
    directory = tmp_path / "images"
    directory.mkdir()
    image = directory / "image"
    with Target("private-full", directory=tmp_path, size=16 * MIB) as target:
        mapping = target.mapping("private-full")
        outcomes = set()
        for delay_ms in range(20, 140, 10):
            image.write_bytes(b"the old image")
            status = kill_at([MEMFS, "copy", memfs.vma(target.pid, mapping), image], delay_ms / 1000)
            content = image.read_bytes()
            is_old = content == b"the old image"
            assert is_old or wrong(mapping, content) is None
            assert not (is_old and status == 0)
            outcomes.add(is_old)
        check(MEMFS, "copy", memfs.vma(target.pid, mapping), image)
        assert left_in(directory) == {"image"}
        assert True in outcomes


def test_a_line_a_second_tells_how_far_it_is(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    mapping = holder.mapping("private-runs")
    said = run(
        MEMFS, "copy", "--progress=plain", memfs.vma(holder.pid, mapping), tmp_path / "copy"
    ).stderr.decode()
    data = sum(span.length for span in mapping.touched)
    assert said.startswith("copying: 100%, ")
    assert f" of {data / 1024:.1f} KiB of data, {(mapping.length - data) / 1024:.1f} KiB of holes, " in said
    assert said.count("\n") == 1


def test_the_page_cache_does_not_grow(memfs: Mount, tmp_path: Path) -> None:
    size = 128 * MIB
    with Target("private-full", directory=tmp_path, size=size) as target:
        copy = tmp_path / "copy"
        check(MEMFS, "copy", memfs.vma(target.pid, target.mapping("private-full")), copy)
        assert copy.stat().st_size == size
        assert int(check("fincore", "-n", "-b", "-o", "PAGES", copy)) == 0


def test_what_is_not_memory_is_refused(tmp_path: Path, memfs: Mount) -> None:
    (tmp_path / "file").touch()
    for source, sentence in (
        (str(tmp_path / "file"), "is not in a mount of memfs"),
        (str(memfs.path), "is not of one process"),
        (str(tmp_path / "nothing"), "there is no "),
    ):
        assert sentence in complaint(run(MEMFS, "copy", source, tmp_path / "copy"), 1)
    assert "cannot be verified" in complaint(
        run(MEMFS, "copy", "--verify", memfs.process(os.getpid()) / "maps", "-"), 2
    )
