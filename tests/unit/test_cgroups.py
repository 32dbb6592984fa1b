"""Which cgroups are killed as a whole, and moving a process out of one; in a hierarchy that is made up."""

from pathlib import Path

import pytest

from memfs.linux.cgroups import Cgroups


def _hierarchy(directory: Path, *, root: str = "/") -> Cgroups:
    """Below *directory*: `pod`, which is killed as a whole, `pod/server` and `other`."""
    for name, group in {"pod": "1", "pod/server": "0", "other": "0"}.items():
        (directory / name).mkdir()
        (directory / name / "cgroup.procs").write_text("")
        (directory / name / "memory.oom.group").write_text(f"{group}\n")
    (directory / "cgroup.procs").write_text("")
    lines = (
        "23 1 0:21 / /proc rw - proc proc rw",
        "30 1 0:26 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory",
        f"31 1 0:27 {root} {directory} rw,nosuid shared:2 - cgroup2 cgroup2 rw",
    )
    return Cgroups("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("path", "found"),
    [("/", False), ("/pod", True), ("/pod/server", True), ("/other", False), ("/gone", False)],
)
def test_a_process_dies_with_others_where_its_group_or_one_above_is_killed_as_a_whole(
    tmp_path: Path, path: str, found: bool
) -> None:
    groups = _hierarchy(tmp_path)
    assert groups.dies_with_others(b"4:memory:/pod\n0::" + path.encode() + b"\n") is found


def test_in_a_container_the_mount_shows_a_part_of_the_hierarchy(tmp_path: Path) -> None:
    groups = _hierarchy(tmp_path, root="/docker/1")
    assert groups.dies_with_others(b"0::/docker/1/pod/server\n")
    assert not groups.dies_with_others(b"0::/docker/10/pod\n")
    assert not groups.dies_with_others(b"0::/../pod\n")


def test_without_version_2_nobody_does(tmp_path: Path) -> None:
    assert not _hierarchy(tmp_path).dies_with_others(b"4:memory:/pod\n")
    assert not Cgroups(b"").dies_with_others(b"0::/pod\n")


def test_a_process_is_moved_by_its_number(tmp_path: Path) -> None:
    _hierarchy(tmp_path).adopt(4321, b"0::/other\n")
    assert (tmp_path / "other/cgroup.procs").read_text() == "4321"


def test_where_the_hierarchy_is_not_mounted_it_stays() -> None:
    with pytest.raises(FileNotFoundError):
        Cgroups(b"").adopt(4321, b"0::/other\n")
