"""A held directory: what is done below it stays below it, and it knows who else can change its entries."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfs.linux.folder import Folder, is_ours

_DEPTH = 200


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A directory ``held``, beside which there is a directory ``victim`` with a file."""
    (tmp_path / "held").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_text("precious")
    with Folder.open(str(tmp_path / "held")) as found:
        yield found


def held(folder: Folder) -> Path:
    """Where it is."""
    return Path(folder.path)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../victim", "one/../two", "one//two", "/etc", "one/"])
def test_a_name_that_does_not_lead_below_it_is_none(folder: Folder, name: str) -> None:
    with pytest.raises(OSError, match="does not lead below") as raised:
        folder.at(name, make=0o700)
    assert raised.value.errno == errno.EINVAL
    assert os.listdir(held(folder)) == []


def test_no_symbolic_link_is_followed(folder: Folder) -> None:
    (held(folder) / "way").symlink_to("../victim")
    (held(folder) / "file").symlink_to("../victim/file")
    with pytest.raises(OSError, match="Not a directory"):
        folder.at("way/file")
    with pytest.raises(OSError, match="Too many levels"):
        folder.at("file").open(os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="Not a directory"):
        folder.at("way").open_folder()
    found = folder.at("file").stat()
    assert found is not None
    assert stat.S_ISLNK(found.st_mode)


def test_its_entries_are_found_whatever_its_name_leads_to(folder: Folder, tmp_path: Path) -> None:
    inside = folder.at("one/two", make=0o700)
    (tmp_path / "held").rename(tmp_path / "away")
    (tmp_path / "held").symlink_to("victim")
    (tmp_path / "away" / "one").rename(tmp_path / "away" / "other")
    (tmp_path / "away" / "one").symlink_to("../victim")
    os.close(inside.open(os.O_WRONLY | os.O_CREAT, 0o600))
    os.close(folder.at("one/three").open(os.O_WRONLY | os.O_CREAT, 0o600))
    assert sorted(os.listdir(tmp_path / "away" / "other")) == ["three", "two"]
    assert os.listdir(tmp_path / "victim") == ["file"]


def test_nothing_is_waited_for(folder: Folder) -> None:
    os.mkfifo(held(folder) / "fifo")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError, match="not an ordinary file"):
            folder.at("fifo").open_file(flags)


def test_it_is_emptied_to_the_bottom_and_no_further(folder: Folder, tmp_path: Path) -> None:
    deep = held(folder)
    for number in range(_DEPTH):
        deep = deep / "down"
        deep.mkdir()
        (deep / f"file{number}").touch()
        (deep / "link").symlink_to(tmp_path / "victim")
    for number in range(10):
        (held(folder) / f"directory{number}").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    folder.clear()
    assert os.listdir(held(folder)) == []
    assert os.listdir(tmp_path / "victim") == ["file"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("mode", "is_private", "is_sticky"),
    [
        (0o700, True, False), (0o755, True, False), (0o1755, True, True), (0o2755, True, False),
        (0o777, False, False), (0o1777, False, True), (0o757, False, False), (0o702, False, False),
    ],
)  # fmt: skip
def test_its_mode_tells_who_changes_its_entries(
    tmp_path: Path, mode: int, is_private: bool, is_sticky: bool
) -> None:
    tmp_path.chmod(mode)
    with Folder.open(str(tmp_path)) as folder:
        assert (folder.is_private, folder.is_sticky) == (is_private, is_sticky)
    tmp_path.chmod(0o700)


def test_a_file_with_two_names_is_not_ours_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    assert is_ours((tmp_path / "file").lstat())
    os.link(tmp_path / "file", tmp_path / "name")
    assert not is_ours((tmp_path / "file").lstat())


def test_what_others_may_open_and_what_is_no_file_is_not_ours_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o640)
    os.mkfifo(tmp_path / "fifo", mode=0o600)
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "fifo", "link"):
        assert not is_ours((tmp_path / name).lstat())
