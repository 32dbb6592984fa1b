"""A journal changes an image in the same way whoever carries it out, and wherever its bytes are by then."""

import os
from pathlib import Path

import pytest

from memfs.copy import journal
from memfs.copy.crew import CHUNK_BYTES, Crew, pages
from memfs.copy.edits import Edit, EditKind
from memfs.copy.held import Image
from memfs.copy.mark import Mark, read_mark
from memfs.linux.folder import Folder
from memfs.linux.span import PAGE_BYTES

_CHUNKS = 4
_SIZE = 2 * _CHUNKS * CHUNK_BYTES


@pytest.mark.parametrize("kept_chunks", [1, 2, _CHUNKS])
@pytest.mark.parametrize("by", ["its maker", "the next copy"])
def test_an_image_has_what_its_journal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_chunks: int, by: str
) -> None:
    monkeypatch.setattr(journal, "_KEPT_BYTES", kept_chunks * CHUNK_BYTES)
    path = tmp_path / "image"
    expected = bytearray(os.urandom(_SIZE))
    path.write_bytes(expected)
    folder = Folder.open(str(tmp_path))
    entry = folder.at("image")
    image = Image(entry)
    crew = Crew()
    book = journal.Journal(image)
    try:
        book.add(Edit(EditKind.FILE, size=_SIZE))
        for number in range(_CHUNKS):
            slot = book.claim(memoryview(pages(CHUNK_BYTES)))
            content = os.urandom(CHUNK_BYTES)
            slot.view[:] = content
            # One large edit, or one for each page, which go to every second page of the image.
            size = CHUNK_BYTES if number % 2 else PAGE_BYTES
            edits = []
            for at in range(0, CHUNK_BYTES, size):
                offset = 2 * (number * CHUNK_BYTES + at)
                edits.append(Edit(EditKind.DATA, "", offset, size, slot.at + at))
                expected[offset : offset + size] = content[at : at + size]
            book.add_data(edits, slot)
        mark = Mark("the later one", "vmas/1000", {"": (0, 0)})
        before = path.read_bytes()
        book.commit(mark)
        assert journal.journal_of(entry).stat() is not None
        assert path.read_bytes() == before
        if by == "its maker":
            book.carry_out(mark, crew)
    finally:
        book.close()
    if by == "the next copy":
        journal.finish(entry, crew)
    crew.close()
    assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["image"]
    found = read_mark(image)
    image.close()
    folder.close()
    assert found is not None
    assert (found.snapshot, found.files[""][0]) == ("the later one", _SIZE)
