"""What changed from one snapshot to the next: the times of files, and the list of changed addresses."""

import itertools
import os
from pathlib import Path

import pytest
from mount.kinds import CONTENT_KINDS
from mount.mounted import Mount, check, mounted, read_all
from support.held import HeldMapping, Span
from support.pattern import PAGE
from support.target import Target

SECOND_NS = 1_000_000_000
_WRITTEN = ("private-runs", "private-full", "shared-anon", "zero-read", "memfd-private", "file-private")


def take(mount: Mount, pid: int, name: str) -> Path:
    """Take a snapshot."""
    path = mount.process(pid) / "snapshots" / name
    path.mkdir()
    return path


def since(later: Path, earlier: Path) -> list[Span]:
    """What changed, by what the mount says."""
    head, *lines = (later / ".since" / earlier.name).read_text().splitlines()
    marks = (os.getxattr(each, "user.memfs.snapshot").decode() for each in (earlier, later))
    assert head == f"# {' '.join(marks)}"
    spans = [Span(*(int(part, 16) for part in line.split("-"))) for line in lines]
    assert all(one.end < other.start for one, other in itertools.pairwise(spans))
    return spans


def files(snapshot: Path) -> dict[str, os.stat_result]:
    """The VMA files of a snapshot."""
    return {path.name: path.stat() for path in (snapshot / "vmas").iterdir()}


def within(spans: list[Span], mapping: HeldMapping) -> list[Span]:
    """The parts of *spans* that lie in a mapping."""
    return [part for span in spans if (part := span.overlap(mapping.span))]


def test_the_time_of_a_file_is_that_of_the_snapshot_in_which_it_last_changed(
    memfs: Mount, tmp_path: Path
) -> None:
    with Target(*CONTENT_KINDS, directory=tmp_path) as target:
        written = target.mapping("private-full")
        one = take(memfs, target.pid, "one")
        target.write(written.start + 5 * PAGE, PAGE, seed=7)
        two = take(memfs, target.pid, "two")
        three = take(memfs, target.pid, "three")
        taken = [(snapshot / "info.json").stat().st_mtime_ns for snapshot in (one, two, three)]
        before = files(one)
        assert {found.st_mtime_ns for found in before.values()} == {taken[0]}
        after, last = files(two), files(three)
        # What fork keeps is compared by frames, shared memory was copied and is compared by its bytes.
        for mapping in target.mappings:
            (name,) = (name for name in after if name.startswith(f"{mapping.start:012x}-"))
            times = after[name].st_mtime_ns, last[name].st_mtime_ns
            if mapping.start == written.start:
                # Of another second than before, since rsync looks no closer.
                second = max(taken[1], (taken[0] // SECOND_NS + 1) * SECOND_NS)
                assert times == (second, second)
            elif not mapping.kind.startswith(("file", "memfd-private")):
                assert times == (taken[0], taken[0]), mapping.kind
            assert after[name].st_ctime_ns == taken[1]
        assert ((two / "mem").stat().st_mtime_ns, (two / "maps").stat().st_mtime_ns) == (second, taken[0])
        # Told or not: it stays when the snapshots go by which it was found.
        one.rmdir()
        two.rmdir()
        assert {name: found.st_mtime_ns for name, found in files(three).items()} == {
            name: found.st_mtime_ns for name, found in last.items()
        }


def test_a_time_is_found_before_the_snapshot_goes_by_which_it_is_found(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        one = take(memfs, target.pid, "one")
        taken = (one / "info.json").stat().st_mtime_ns
        two = take(memfs, target.pid, "two")
        one.rmdir()
        (name,) = (
            name for name in files(two) if name.startswith(f"{target.mapping('private-runs').start:012x}")
        )
        assert files(two)[name].st_mtime_ns == taken


def test_every_page_that_changed_is_listed_and_of_anonymous_memory_no_other(
    memfs: Mount, tmp_path: Path
) -> None:
    with Target(*CONTENT_KINDS, directory=tmp_path) as target:
        one = take(memfs, target.pid, "one")
        held = {mapping.start: mapping for mapping in target.mappings}
        changed: dict[int, list[Span]] = {}
        for mapping in target.mappings:
            if mapping.kind in _WRITTEN:
                changed[mapping.start] = [
                    Span(mapping.start + page * PAGE, mapping.start + (page + 1) * PAGE) for page in (1, 4, 7)
                ]
                for span in changed[mapping.start]:
                    target.write(span.start, PAGE, seed=99)
        two = take(memfs, target.pid, "two")
        listed = since(two, one)
        for mapping in target.mappings:
            old, new = held[mapping.start], mapping
            pages = range(0, mapping.length, PAGE)
            differ = [at for at in pages if old.expected(at, PAGE) != new.expected(at, PAGE)]
            spans = within(listed, mapping)
            assert all(any(span.start <= mapping.start + at < span.end for span in spans) for at in differ)
            if mapping.kind in _WRITTEN[:3]:
                assert spans == changed[mapping.start]


def test_what_is_mapped_anew_and_what_is_dropped_is_listed(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", "private-full", directory=tmp_path) as target:
        one = take(memfs, target.pid, "one")
        full = target.mapping("private-full")
        target.madvise(full.start + 8 * PAGE, 4 * PAGE, "dontneed")
        new = target.map(full.start + (1 << 36), 16 * PAGE)
        target.write(new.start, PAGE, seed=3)
        two = take(memfs, target.pid, "two")
        listed = since(two, one)
        assert within(listed, full) == [Span(full.start + 8 * PAGE, full.start + 12 * PAGE)]
        assert within(listed, new) == [new.span]
        assert within(listed, target.mapping("private-runs")) == []


def test_a_mapped_file_that_was_written_is_listed(memfs: Mount, tmp_path: Path) -> None:
    with Target("file-private", directory=tmp_path) as target:
        mapping = target.mapping("file-private")
        path = Path(os.fsdecode(mapping.path or b""))
        one = take(memfs, target.pid, "one")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes((content[-1] ^ 1,)))
        two = take(memfs, target.pid, "two")
        assert within(since(two, one), mapping) == [mapping.span]


def test_only_an_earlier_snapshot_of_the_process_can_be_asked_about(memfs: Mount, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        one, two = take(memfs, target.pid, "one"), take(memfs, target.pid, "two")
        assert os.listdir(two / ".since") == ["one"]
        for snapshot, name in ((one, "two"), (one, "one"), (two, "nothing")):
            with pytest.raises(FileNotFoundError):
                (snapshot / ".since" / name).read_bytes()
        assert ".since" not in os.listdir(two)
        one.rmdir()
        with pytest.raises(FileNotFoundError):
            (two / ".since/one").read_bytes()


def test_without_frame_numbers_everything_counts_as_changed(user: int, user_directory: Path) -> None:
    with (
        mounted(user_directory, user=user) as mount,
        Target("private-runs", directory=user_directory, user=user, python="/usr/bin/python3") as target,
    ):
        mapping = target.mapping("private-runs")
        script = (
            "import os, sys; base = sys.argv[1]; os.mkdir(base + '/one'); os.mkdir(base + '/two');"
            "print(open(base + '/two/.since/one').read());"
            "times = [os.stat(f'{base}/{name}/vmas/' + sys.argv[2]).st_mtime for name in ('one', 'two')];"
            "assert int(times[1]) > int(times[0])"
        )
        name = f"{mapping.start:012x}-{mapping.end:012x}_{mapping.perms}_anon"
        base = mount.process(target.pid) / "snapshots"
        said = check("/usr/bin/python3", "-c", script, str(base), name, user=user).decode()
        spans = [line.split("-") for line in said.splitlines()[1:] if line]
        assert any(int(start, 16) <= mapping.start and mapping.end <= int(end, 16) for start, end in spans)


def test_rsync_of_the_next_snapshot_sends_what_changed_and_reads_no_more(
    memfs: Mount, tmp_path: Path
) -> None:
    with Target("private-runs", "private-full", "shared-anon", directory=tmp_path) as target:
        written = target.mapping("private-full")
        copy = tmp_path / "copy"
        one = take(memfs, target.pid, "one")
        check("rsync", "-aS", f"{one}/vmas/", copy)
        target.write(written.start + 3 * PAGE, PAGE, seed=7)
        two = take(memfs, target.pid, "two")
        names = {mapping.start: f"{mapping.start:012x}-" for mapping in target.mappings}
        sent = check("rsync", "-aSi", f"{two}/vmas/", copy).decode()
        told = {
            line.split()[1].partition("-")[0] + "-" for line in sent.splitlines() if line.startswith(">f")
        }
        assert told & set(names.values()) == {names[written.start]}
        (name,) = (name for name in os.listdir(copy) if name.startswith(names[written.start]))
        content = (copy / name).read_bytes()
        assert written.length == len(content)
        assert target.mapping("private-full").mismatch(0, content) is None
        with open(two / "vmas" / name, "rb") as file:
            assert read_all(file.fileno(), written.length) == content
