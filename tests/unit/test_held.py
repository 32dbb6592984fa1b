"""An image that is held is the one that is written to, and a journal is carried out on no other one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memfs.copy import journal
from memfs.copy.crew import Crew, pages
from memfs.copy.edits import Bytes, Edit, EditKind, Editor
from memfs.copy.held import Image
from memfs.copy.mark import Mark
from memfs.errors import CannotCopy
from memfs.linux.folder import Folder
from memfs.linux.span import PAGE_BYTES

_OLD, _NEW = (bytes((value,)) * PAGE_BYTES for value in (1, 2))


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Threads that write."""
    made = Crew()
    yield made
    made.close()


@contextlib.contextmanager
def image(directory: Path, name: str) -> Iterator[Image]:
    """The image of that name, held."""
    with Folder.open(str(directory)) as folder, Image(folder.at(name)) as found:
        yield found


def test_an_update_goes_into_the_image_that_was_looked_at(tmp_path: Path, crew: Crew) -> None:
    for name in ("image", "victim"):
        (tmp_path / name / "vmas").mkdir(parents=True, mode=0o700)
        for file in ("one", "two", "three"):
            (tmp_path / name / "vmas" / file).write_bytes(_OLD)
    with (tmp_path / "journal").open("w+b") as data, image(tmp_path, "image") as found:
        data.write(_NEW)
        data.flush()
        (tmp_path / "image").rename(tmp_path / "away")
        (tmp_path / "image").symlink_to("victim")
        Editor(found, Bytes(data.fileno()), crew).run([
            Edit(EditKind.MOVE, "vmas/two", other="vmas/four"),
            Edit(EditKind.REMOVE, "vmas/three"),
            Edit(EditKind.LINK, "stack", other="vmas/one"),
            Edit(EditKind.FILE, "vmas/one", size=PAGE_BYTES),
            Edit(EditKind.DATA, "vmas/one", 0, PAGE_BYTES, 0),
        ])  # fmt: skip
    vmas = tmp_path / "away" / "vmas"
    assert {path.name: path.read_bytes() for path in vmas.iterdir()} == {"one": _NEW, "four": _OLD}
    assert (tmp_path / "away" / "stack").is_symlink()
    victim = tmp_path / "victim" / "vmas"
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == dict.fromkeys(
        ("one", "two", "three"), _OLD
    )


@pytest.mark.parametrize("planted", ["link", "fifo"])
def test_what_is_no_file_of_the_image_is_not_written_to(tmp_path: Path, crew: Crew, planted: str) -> None:
    (tmp_path / "victim").write_bytes(_OLD)
    (tmp_path / "image").mkdir(mode=0o700)
    if planted == "link":
        (tmp_path / "image" / "file").symlink_to("../victim")
    else:
        os.mkfifo(tmp_path / "image" / "file")
    with (tmp_path / "journal").open("w+b") as data, image(tmp_path, "image") as found:
        editor = Editor(found, Bytes(data.fileno()), crew)
        with pytest.raises(OSError, match=r"Too many levels|not an ordinary file"):
            editor.run([Edit(EditKind.FILE, "file", size=PAGE_BYTES)])
    assert (tmp_path / "victim").read_bytes() == _OLD


def test_an_edit_stays_in_its_image(tmp_path: Path, crew: Crew) -> None:
    (tmp_path / "victim").write_bytes(_OLD)
    (tmp_path / "image").mkdir(mode=0o700)
    for edit in (
        Edit(EditKind.FILE, "../victim", size=0),
        Edit(EditKind.REMOVE, "../victim"),
        Edit(EditKind.LINK, "../victim", other="x"),
        Edit(EditKind.MOVE, "../victim", other="x"),
    ):
        with (tmp_path / "journal").open("w+b") as data, image(tmp_path, "image") as found:
            editor = Editor(found, Bytes(data.fileno()), crew)
            with pytest.raises(OSError, match="does not lead below"):
                editor.run([edit])
    assert (tmp_path / "victim").read_bytes() == _OLD


def test_a_directory_in_an_image_that_others_may_write_to_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "image" / "vmas").mkdir(parents=True)
    (tmp_path / "image" / "vmas" / "one").write_bytes(_OLD)
    (tmp_path / "image" / "vmas").chmod(0o777)
    with image(tmp_path, "image") as found, pytest.raises(PermissionError, match="others may write"):
        found.open("vmas/one", os.O_RDWR)


@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["shared", "sticky"])
def test_a_file_that_has_another_name_is_no_image_where_others_may_have_made_it(
    tmp_path: Path, mode: int
) -> None:
    (tmp_path / "file").write_bytes(_OLD)
    os.link(tmp_path / "file", tmp_path / "image")
    with image(tmp_path, "image") as found:
        assert found.stat("").st_size == PAGE_BYTES
    tmp_path.chmod(mode)
    with pytest.raises(CannotCopy, match="has other names"), image(tmp_path, "image"):
        pass


def write_journal(found: Image) -> None:
    """The journal of an update that was interrupted before its first edit."""
    book = journal.Journal(found)
    book.add(Edit(EditKind.FILE, size=PAGE_BYTES))
    slot = book.claim(memoryview(pages(PAGE_BYTES)))
    slot.view[:] = _NEW
    book.add_data([Edit(EditKind.DATA, "", 0, PAGE_BYTES, slot.at)], slot)
    book.commit(Mark("later", "vmas/1000", {"": (0, 0)}))
    book.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["shared", "sticky"])
def test_a_journal_that_was_given_to_another_image_is_not_carried_out(
    tmp_path: Path, crew: Crew, mode: int
) -> None:
    """A user can move what root has written in a directory of his, and cannot write it."""
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(_OLD)
    tmp_path.chmod(mode)
    with image(tmp_path, "one") as one, image(tmp_path, "two") as two:
        write_journal(one)
        (tmp_path / ".one.memfs-journal").rename(tmp_path / ".two.memfs-journal")
        with pytest.raises(CannotCopy, match="the journal of another image"):
            journal.finish(two.entry, crew)
        assert (tmp_path / "two").read_bytes() == _OLD
        (tmp_path / ".two.memfs-journal").rename(tmp_path / ".one.memfs-journal")
        journal.finish(one.entry, crew)
        assert (tmp_path / "one").read_bytes() == _NEW
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_journal_whose_image_is_gone_is_removed(tmp_path: Path, crew: Crew) -> None:
    (tmp_path / "image").write_bytes(_OLD)
    with image(tmp_path, "image") as found:
        write_journal(found)
        (tmp_path / "image").unlink()
        journal.finish(found.entry, crew)
    assert os.listdir(tmp_path) == []
