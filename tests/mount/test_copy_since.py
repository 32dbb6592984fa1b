"""``memfs copy --since``: only what changed is written, and the image is byte for byte the full copy."""

import contextlib
import filecmp
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.kinds import CONTENT_KINDS
from mount.mounted import MEMFS, MIB, Mount, check, complaint, run
from mount.test_copy import kill_at, left_in
from mount.test_since import take
from support.held import HeldMapping
from support.pattern import PAGE
from support.target import Target

KILLS = int(os.environ.get("MEMFS_TEST_KILLS", "1"))
"""How many copies of each kind are killed, on each kind of file system; the release was tried with 200."""

FULL_DISKS = int(os.environ.get("MEMFS_TEST_FULL_DISKS", "1"))
"""How many copies of each kind go to a disk that is too small; the release was tried with 20."""

parts = pytest.mark.parametrize("part", ["file", "directory"])


@pytest.fixture(params=["ext4", "xfs", "tmpfs"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory for images: on a disk without and with blocks that files share, and on no disk."""
    where = tmp_path / "images"
    where.mkdir()
    kind = str(request.param)
    if kind == "tmpfs":
        check("mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", where)
    else:
        with (tmp_path / "disk").open("wb") as file:
            file.truncate(400 * MIB)
        check(f"mkfs.{kind}", "-q", tmp_path / "disk")
        check("mount", "-o", "loop", tmp_path / "disk", where)
    yield where
    check("umount", where)


def same_trees(one: Path, other: Path) -> bool:
    """Whether two directories have the same files and links, with the same bytes."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.name != ".memfs-image"}
    if names != {path.relative_to(other) for path in other.rglob("*") if path.name != ".memfs-image"}:
        return False
    for name in names:
        mine, theirs = one / name, other / name
        if mine.is_symlink():
            same = os.readlink(mine) == os.readlink(theirs)
        else:
            same = mine.is_dir() or filecmp.cmp(mine, theirs, shallow=False)
        if not same:
            return False
    return True


def change(target: Target, seed: int) -> None:
    """Write, drop and map some memory, another at each call."""
    chance = random.Random(seed)
    for kind in ("private-full", "shared-anon", "memfd-private", "file-private", "private-runs"):
        mapping = target.mapping(kind)
        for page in chance.sample(range(min(100, mapping.length // PAGE)), 5):
            target.write(mapping.start + page * PAGE, PAGE, seed)
    full = target.mapping("private-full")
    target.madvise(full.start + chance.randrange(100, 500) * PAGE, 300 * PAGE, "dontneed")
    new = target.map(full.start + (1 << 36) + seed * 64 * PAGE, 16 * PAGE, "rw-" if seed % 2 else "r--")
    if seed % 2:
        target.write(new.start, 2 * PAGE, seed)
    if seed > 1:
        target.unmap(full.start + (1 << 36) + (seed - 1) * 64 * PAGE, 16 * PAGE)


def test_an_updated_image_of_a_process_is_the_full_copy(memfs: Mount, images: Path, tmp_path: Path) -> None:
    image = images / "image"
    with Target(*CONTENT_KINDS, directory=tmp_path) as target:
        before = take(memfs, target.pid, "s0")
        check(MEMFS, "copy", before, image)
        for number in (1, 2, 3):
            change(target, number)
            now = take(memfs, target.pid, f"s{number}")
            assert check(MEMFS, "copy", "--verify", "--since", before.name, now, image) == b""
            check(MEMFS, "copy", now, images / "full")
            assert same_trees(image, images / "full")
            assert left_in(images) == {"image", "full"}
            before.rmdir()
            before = now


@pytest.mark.parametrize("part", ["vma", "core"])
def test_an_updated_image_of_a_file_is_the_full_copy(
    memfs: Mount, images: Path, tmp_path: Path, part: str
) -> None:
    image = images / "image"
    with Target(*CONTENT_KINDS, directory=tmp_path) as target:
        vma = f"vmas/{memfs.vma(target.pid, target.mapping('private-full')).name}"
        name = vma if part == "vma" else "core"
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one / name, image)
        change(target, 1)
        two = take(memfs, target.pid, "two")
        said = check(MEMFS, "copy", "--since", f"{one}", "--checksum", two / name, image).decode()
        check("cmp", two / name, image)
        assert said == check("b2sum", image).decode()
        assert left_in(images) == {"image"}


def test_an_updated_flat_image_is_the_full_copy(memfs: Mount, shm: Path, tmp_path: Path) -> None:
    # Of 128 TiB, tmpfs and XFS take it; compared where anything is.
    with Target("private-full", "private-runs", directory=tmp_path) as target:
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one / "mem", shm / "mem")
        gone = target.mapping("private-runs")
        target.write(target.mapping("private-full").start + 9 * PAGE, PAGE, 5)
        target.unmap(gone.start, gone.length)
        two = take(memfs, target.pid, "two")
        check(MEMFS, "copy", "--since", "one", two / "mem", shm / "mem")
        check(MEMFS, "copy", two / "mem", shm / "full")
        assert runs_of(shm / "mem") == runs_of(shm / "full")


def runs_of(path: Path) -> dict[int, bytes]:
    """The pages of a sparse file that are not all zeros, by their offset."""
    found = {}
    with path.open("rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            page = os.pread(file.fileno(), PAGE, at)
            if page.strip(b"\0"):
                found[at] = page
            at += PAGE


def test_a_mapping_that_has_grown_is_brought_up_to_date(memfs: Mount, images: Path, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        base = target.mapping("private-runs").start + (1 << 36)
        target.write(target.map(base, 16 * PAGE).start, 16 * PAGE, 3)
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one, images / "image")
        target.write(target.map(base + 16 * PAGE, 4 * PAGE).start, PAGE, 4)  # the kernel merges them
        two = take(memfs, target.pid, "two")
        (name,) = (name for name in os.listdir(two / "vmas") if name.startswith(f"{base:012x}-"))
        assert (two / "vmas" / name).stat().st_size == 20 * PAGE
        check(MEMFS, "copy", "--since", "one", two, images / "image")
        check(MEMFS, "copy", two, images / "full")
        assert same_trees(images / "image", images / "full")


def test_an_image_that_does_not_fit_is_refused_and_stays(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-full", "private-runs", directory=tmp_path) as target:
        full, runs = (
            memfs.vma(target.pid, target.mapping(kind)).name for kind in ("private-full", "private-runs")
        )
        one, two, three = (take(memfs, target.pid, name) for name in ("one", "two", "three"))
        image = tmp_path / "image"
        file = three / "vmas" / full

        def refused(since: str, source: Path, sentence: str, status: int = 1) -> None:
            before = image.read_bytes() if image.exists() else None
            assert sentence in complaint(run(MEMFS, "copy", "--since", since, source, image), status)
            assert (image.read_bytes() if image.exists() else None) == before

        refused("one", file, "there is no image")
        image.write_bytes(b"not an image")
        refused("one", file, "does not say of which snapshot")
        check(MEMFS, "copy", two / "vmas" / full, image)
        refused("one", file, "is not an image of the snapshot one")
        refused("two", three / "vmas" / runs, "is an image of ")
        refused("four", file, "there is no snapshot four from before three")
        refused("three", two / "vmas" / full, "there is no snapshot three from before two")
        refused("two", memfs.process(target.pid) / "vmas" / full, "is live")
        with image.open("r+b") as opened:
            opened.write(b"!")
        refused("two", file, "was changed since it was copied")
        assert "stream" in complaint(run(MEMFS, "copy", "--since", "two", file, "-"), 2)
        assert one.exists()


def test_a_small_file_beside_the_image_does_where_there_are_no_attributes(
    memfs: Mount, tmp_path: Path
) -> None:
    where = tmp_path / "images"
    where.mkdir()
    check("mount", "-t", "ramfs", "ramfs", where)
    try:
        with Target("private-full", directory=tmp_path) as target:
            name = f"vmas/{memfs.vma(target.pid, target.mapping('private-full')).name}"
            one = take(memfs, target.pid, "one")
            check(MEMFS, "copy", one / name, where / "image")
            target.write(target.mapping("private-full").start, PAGE, 9)
            two = take(memfs, target.pid, "two")
            check(MEMFS, "copy", "--since", "one", two / name, where / "image")
            check("cmp", two / name, where / "image")
            assert left_in(where) <= {"image", ".image.memfs-image"}
    finally:
        check("umount", where)


def wait_status(command: list[str | Path]) -> int:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, check=False).returncode


@contextlib.contextmanager
def two_snapshots(memfs: Mount, directory: Path, part: str) -> Iterator[tuple[Path, Path]]:
    """A file or a directory of two snapshots of 16 MiB, between which every 64th page was written."""
    with Target("private-full", directory=directory, size=16 * MIB) as target:
        mapping: HeldMapping = target.mapping("private-full")
        name = f"vmas/{memfs.vma(target.pid, mapping).name}" if part == "file" else "vmas"
        one = take(memfs, target.pid, "one")
        for at in range(0, mapping.length, 64 * PAGE):
            target.write(mapping.start + at, PAGE, 8)
        yield one / name, take(memfs, target.pid, "two") / name


def is_image(image: Path, source: Path) -> bool:
    """Whether *image* is all of *source*, byte for byte."""
    filecmp.clear_cache()
    return filecmp.cmp(image, source, shallow=False) if source.is_file() else same_trees(image, source)


@contextlib.contextmanager
def scattered(
    memfs: Mount, directory: Path, written: range, hole: range = range(0)
) -> Iterator[tuple[Path, Path]]:
    """A mapping of 16 MiB in two snapshots, between which a page was written at each of *written*.

    Before that *hole* was given back.
    """
    with Target("private-full", directory=directory, size=16 * MIB) as target:
        mapping = target.mapping("private-full")
        name = f"vmas/{memfs.vma(target.pid, mapping).name}"
        if hole:
            target.madvise(mapping.start + hole.start, len(hole), "dontneed")
        one = take(memfs, target.pid, "one") / name
        for at in written:
            target.write(mapping.start + at, PAGE, 8)
        yield one, take(memfs, target.pid, "two") / name


@parts
def test_a_killed_update_leaves_the_old_image_or_is_finished_by_the_next_copy(
    memfs: Mount, images: Path, tmp_path: Path, part: str
) -> None:
    chance = random.Random(5)
    image = images / "image"
    with two_snapshots(memfs, tmp_path, part) as (one, two):
        for _ in range(KILLS):
            check(MEMFS, "copy", one, image)
            kill_at([MEMFS, "copy", "--since", "one", two, image], chance.uniform(0.03, 0.25))
            pending = (images / ".image.memfs-journal").exists()
            if not pending:
                assert is_image(image, one) or is_image(image, two)
            # Whatever came of it, the next copy goes on from there.
            again = [MEMFS, "copy", "--since", "one", two, image]
            status = wait_status(again)
            assert is_image(image, two)
            assert status == 0 or pending or wait_status(again) == 1
            assert left_in(images) == {"image"}


@pytest.mark.parametrize("images", ["ext4", "tmpfs"], indirect=True)
def test_who_is_killed_while_he_makes_room_leaves_an_image_that_can_be_brought_up_to_date(
    memfs: Mount, images: Path, tmp_path: Path
) -> None:
    """To reserve blocks moves the time of the image, by which its mark knows it. XFS makes a clone."""
    image = images / "image"
    hole = range(8 * MIB, 16 * MIB)
    with scattered(memfs, tmp_path, range(10 * MIB, 16 * MIB, 64 * PAGE), hole) as (one, two):
        check(MEMFS, "copy", one, image)
        update = [MEMFS, "copy", "--since", "one", two, image]
        killed = run("strace", "-f", "-qq", "-e", "inject=fallocate:signal=KILL:when=4", *update)
        assert killed.returncode == -signal.SIGKILL
        assert is_image(image, one)
        check(*update)
        assert is_image(image, two)
        assert left_in(images) == {"image"}


@parts
def test_a_killed_copy_leaves_the_old_or_the_new_image(
    memfs: Mount, images: Path, tmp_path: Path, part: str
) -> None:
    chance = random.Random(6)
    image = images / "image"
    with two_snapshots(memfs, tmp_path, part) as (old, new):
        check(MEMFS, "copy", old, image)
        for _ in range(KILLS):
            status = kill_at([MEMFS, "copy", new, image], chance.uniform(0.03, 0.2))
            is_new = is_image(image, new)
            assert is_new or (is_image(image, old) and status)
            if is_new:
                old, new = new, old
        check(MEMFS, "copy", new, image)
        assert is_image(image, new)
        assert left_in(images) == {"image"}


def leave_room(directory: Path, free_bytes: int) -> None:
    """Fill a file system with a file ``ballast``, up to some room."""
    with (directory / "ballast").open("wb") as ballast, contextlib.suppress(OSError):
        at = 0
        while (more := (room := os.statvfs(directory)).f_bfree * room.f_frsize - free_bytes) > 0:
            size = min(MIB // 2, more)
            os.posix_fallocate(ballast.fileno(), at, size)
            at += size


def give_room_back(directory: Path) -> None:
    """Undo :func:`leave_room`, at once: XFS frees the blocks of a file that is unlinked some time later."""
    os.truncate(directory / "ballast", 0)
    (directory / "ballast").unlink()


def test_an_update_on_a_full_disk_changes_nothing(memfs: Mount, images: Path, tmp_path: Path) -> None:
    image = images / "image"
    with Target("private-full", directory=tmp_path, size=16 * MIB) as target:
        mapping = target.mapping("private-full")
        target.madvise(mapping.start, mapping.length, "dontneed")
        name = f"vmas/{memfs.vma(target.pid, mapping).name}"
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one / name, image)
        target.write(mapping.start, mapping.length, 8)
        two = take(memfs, target.pid, "two")
        before = image.read_bytes()
        # Room for the journal and not for the pages, for half of it, and for nothing. Clones have no journal.
        shares = "xfs" in check("findmnt", "-n", "-o", "FSTYPE", images).decode()
        for free in (6 * MIB, MIB // 2) if shares else (20 * MIB, 6 * MIB, MIB // 2):
            leave_room(images, free)
            said = complaint(run(MEMFS, "copy", "--since", "one", two / name, image), 1)
            assert "no room for" in said
            assert image.read_bytes() == before
            give_room_back(images)
        assert left_in(images) == {"image"}
        check(MEMFS, "copy", "--since", "one", two / name, image)
        check("cmp", two / name, image)


@pytest.mark.parametrize("images", ["xfs"], indirect=True)
def test_an_image_whose_blocks_another_file_shares_is_not_written_into_a_full_disk(
    memfs: Mount, images: Path, tmp_path: Path
) -> None:
    image = images / "image"
    with scattered(memfs, tmp_path, range(0, 16 * MIB, 16 * PAGE)) as (one, two):
        check(MEMFS, "copy", one, image)
        check("cp", "--reflink=always", image, images / "backup")
        # 256 spans are too many for a clone. Their journal has room, and what must be copied has not.
        leave_room(images, 2 * MIB)
        assert "no room for" in complaint(run(MEMFS, "copy", "--since", "one", two, image), 1)
        assert is_image(image, one)
        assert left_in(images) == {"image", "backup", "ballast"}
        give_room_back(images)
        check(MEMFS, "copy", "--since", "one", two, image)
        assert is_image(image, two)
        assert is_image(images / "backup", one)


@parts
@pytest.mark.parametrize("since", [True, False], ids=["since", "whole"])
def test_a_disk_that_is_too_small_keeps_the_old_image(
    memfs: Mount, images: Path, tmp_path: Path, part: str, since: bool
) -> None:
    chance = random.Random(7)
    image = images / "image"
    with two_snapshots(memfs, tmp_path, part) as (one, two):
        check(MEMFS, "copy", one, image)
        # An update needs room for 64 pages, in a journal or in what is no more shared.
        for _ in range(FULL_DISKS):
            leave_room(images, chance.randrange(32 * PAGE if since else 15 * MIB))
            command = [MEMFS, "copy", *(("--since", "one") if since else ()), two, image]
            assert "no room for" in complaint(run(*command), 1)
            give_room_back(images)
            assert is_image(image, one)
            assert left_in(images) == {"image"}


def test_what_did_not_change_is_not_written(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        name = f"vmas/{memfs.vma(target.pid, target.mapping('private-full')).name}"
        one, two = take(memfs, target.pid, "one"), take(memfs, target.pid, "two")
        image = tmp_path / "image"
        check(MEMFS, "copy", one / name, image)
        before = image.stat()
        said = run(MEMFS, "copy", "--progress=plain", "--since", "one", two / name, image).stderr.decode()
        assert said.startswith("copying: ")
        assert " 0 B of 0 B of data" in said
        assert image.stat().st_mtime_ns == before.st_mtime_ns
        three = take(memfs, target.pid, "three")  # and it is an image of the second now
        check(MEMFS, "copy", "--since", "two", three / name, image)


def test_a_journal_that_another_user_has_planted_is_not_carried_out(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-full", directory=tmp_path) as target:
        name = f"vmas/{memfs.vma(target.pid, target.mapping('private-full')).name}"
        one = take(memfs, target.pid, "one")
        image, planted = tmp_path / "image", tmp_path / ".image.memfs-journal"
        check(MEMFS, "copy", one / name, image)
        before = image.read_bytes()
        planted.write_bytes(b"anything")
        os.chown(planted, 65534, 65534)
        said = complaint(run(MEMFS, "copy", one / name, image), 1)
        assert "was written by uid 65534" in said
        assert image.read_bytes() == before
        planted.unlink()
        check(MEMFS, "copy", one / name, image)
