"""What a snapshot or a core lacks of the memory of its process is told wherever someone may look for it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import Mount, check, memfs, mounted, run
from support.cores import parse_core
from support.held import HeldMapping
from support.pattern import PAGE
from support.target import Target

REASON = "MADV_DONTFORK, and more than snapshot_copy allows"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """What a fork does not keep is not copied here."""
    (tmp_path / "mount").mkdir()
    with mounted(tmp_path / "mount", "snapshot_copy=0") as made:
        yield made


@pytest.fixture
def target(tmp_path: Path) -> Iterator[tuple[Target, HeldMapping]]:
    """A process, and a page of it that is too small to be let into a fork."""
    with Target("private-runs", directory=tmp_path) as made:
        page = made.map(made.mapping("private-runs").end + (1 << 30), PAGE)
        made.write(page.start, PAGE, 1)
        made.madvise(page.start, PAGE, "dontfork")
        yield made, page


def test_a_snapshot_tells(mount: Mount, target: tuple[Target, HeldMapping]) -> None:
    process, page = target
    mount.declare(f"^a snapshot of process {process.pid} lacks 4 KiB: {REASON}$")
    done = memfs("snapshot", "--mount", mount.path, str(process.pid), "one")
    assert (done.returncode, done.stderr.decode()) == (
        0,
        f"memfs: the snapshot lacks 4.0 KiB: {REASON}; see its info.json\n",
    )
    one = mount.process(process.pid) / "snapshots" / "one"
    info = json.loads((one / "info.json").read_bytes())
    assert info["missing"] == [{"reason": REASON, "vmas": 1, "bytes": PAGE}]
    (entry,) = [entry for entry in info["mappings"] if entry["start"] == f"{page.start:012x}"]
    assert (entry["state"], entry["reason"]) == ("absent", REASON)


def test_a_core_tells(mount: Mount, target: tuple[Target, HeldMapping], tmp_path: Path) -> None:
    process, page = target
    for _ in range(3):
        mount.declare(f"^a snapshot of process {process.pid} lacks 4 KiB: {REASON}$")
    source = mount.process(process.pid) / "core"
    check("cp", source, tmp_path / "core")
    core = parse_core(tmp_path / "core")
    assert core.load(page.span).file_size == 0
    (note,) = [note for note in core.notes if note.owner == "MEMFS"]
    assert note.content.decode() == f"{page.start:x}-{page.end:x} {REASON}\n"
    assert b"MEMFS" in check("readelf", "-nW", tmp_path / "core")
    for destination in (str(tmp_path / "image"), "-"):
        done = memfs("copy", source, destination)
        assert done.returncode == 0
        assert done.stderr.decode() == f"memfs: {source} lacks 4.0 KiB: {REASON}\n"


def test_debuggers_take_the_note_for_none_of_theirs(
    mount: Mount, target: tuple[Target, HeldMapping], tmp_path: Path
) -> None:
    process, _ = target
    mount.declare(f"^a snapshot of process {process.pid} lacks 4 KiB: {REASON}$")
    check("cp", mount.process(process.pid) / "core", tmp_path / "core")
    seen = run("gdb", "-batch", "-nx", "-ex", "info threads", "-c", tmp_path / "core")
    assert len(re.findall(rb"(?m)^[* ] +\d+ ", seen.stdout)) == 1
    assert b"MEMFS" not in seen.stdout + seen.stderr


def test_where_nothing_is_missing_nothing_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path) as mount, Target("private-runs", "shared-anon", directory=tmp_path) as target:
        done = memfs("snapshot", "--mount", mount.path, str(target.pid), "one")
        assert (done.returncode, done.stderr) == (0, b"")
        one = mount.process(target.pid) / "snapshots" / "one"
        assert json.loads((one / "info.json").read_bytes())["missing"] == []
        done = memfs("copy", one / "core", tmp_path / "core")
        assert (done.returncode, done.stderr) == (0, b"")
        assert all(note.owner != "MEMFS" for note in parse_core(tmp_path / "core").notes)
