"""What an image says of itself: of which snapshot it is, and how its files were when it was whole.

A file has it as an extended attribute, or in a small file beside it where there are none; a directory in
a small file in it. An image that was touched since does not fit its own mark any more.
"""

import contextlib
import errno
import json
import os

import attrs

from memfs.copy.held import Image
from memfs.copy.newfile import NewFile, cannot_write
from memfs.errors import CannotCopy
from memfs.linux.folder import Folder, FolderEntry, is_ours

MARK_NAME = ".memfs-image"
"""The file in a directory by which it is known as an image of ours."""

_XATTR = "user.memfs.image"
_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENOSPC, errno.EPERM)


@attrs.frozen
class Mark:
    """The mark of an image.

    Attributes:
        snapshot: the name of the snapshot that no other one has.
        part: what of it the image shows; a VMA by its start, since its end may move.
        files: size in bytes and mtime in nanoseconds of each file by its name; that of a file itself is "".
        inode: in a journal, the inode number of the image that it is for; else 0.
    """

    snapshot: str
    part: str
    files: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    inode: int = 0

    def format(self) -> bytes:
        """As it is stored."""
        return json.dumps(attrs.asdict(self)).encode()


def parse_mark(text: bytes) -> Mark:
    """The mark from what is stored.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(text)
        files = {str(name): (int(size), int(mtime)) for name, (size, mtime) in found["files"].items()}
        return Mark(str(found["snapshot"]), str(found["part"]), files, int(found.get("inode", 0)))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no mark") from error


def part_of(names: tuple[str, ...]) -> str:
    """The part of a snapshot that *names* lead to."""
    if len(names) == 2 and names[0] == "vmas":
        return f"vmas/{names[1].partition('-')[0]}"
    return "/".join(names)


def _beside(image: FolderEntry) -> FolderEntry:
    return image.beside(f".{image.name}.memfs-image")


def mark_file(fd: int, image: FolderEntry, mark: Mark) -> None:
    """Store *mark* with the file *fd*, which is *image* or will be, and is as it will stay.

    Raises:
        CannotCopy: it cannot be.
    """
    try:
        os.setxattr(fd, _XATTR, mark.format())
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise cannot_write(image, error) from None
        _write_small(_beside(image), mark.format())
    else:
        with contextlib.suppress(OSError):  # there is none, or it is not ours to remove
            _beside(image).unlink()


def mark_directory(folder: Folder, mark: Mark) -> None:
    """Store *mark* in the directory *folder*, whose files are as they will stay.

    Raises:
        CannotCopy: it cannot be.
    """
    _write_small(FolderEntry(folder, MARK_NAME), mark.format())


def mark_image(image: Image, mark: Mark) -> None:
    """Store *mark* with *image*, with the sizes and times that its files have now.

    Raises:
        CannotCopy: it cannot be.
        OSError: one of its files is not there.
    """
    whole = attrs.evolve(mark, files=describe_files(image, list(mark.files)), inode=0)
    if image.folder is not None:
        mark_directory(image.folder, whole)
    else:
        mark_file(image.fd, image.entry, whole)


def _write_small(entry: FolderEntry, content: bytes) -> None:
    new = NewFile(entry, direct=False)
    try:
        new.write(0, memoryview(content))
        new.finish(len(content))
        new.install()
    finally:
        new.close()


def read_mark(image: Image) -> Mark | None:
    """The mark of *image*; None where it has none that can be read, or another user can have written it."""
    with contextlib.suppress(OSError, ValueError):
        if image.folder is not None:
            return parse_mark(_read_small(FolderEntry(image.folder, MARK_NAME)))
        with contextlib.suppress(OSError):
            return parse_mark(os.getxattr(image.fd, _XATTR))
        return parse_mark(_read_small(_beside(image.entry)))
    return None


def _read_small(entry: FolderEntry) -> bytes:
    with open(entry.open_file(), "rb") as file:
        if not (entry.folder.is_private or is_ours(os.fstat(file.fileno()))):
            raise ValueError("not ours")
        return file.read()


def describe_files(image: Image, names: list[str]) -> dict[str, tuple[int, int]]:
    """Sizes and times of files of *image*, for a mark."""
    return {name: size_and_time(image.stat(name)) for name in names}


def size_and_time(found: os.stat_result) -> tuple[int, int]:
    """What a mark tells of a file."""
    return found.st_size, found.st_mtime_ns


def ensure_fits(image: Image, mark: Mark | None, snapshot: str, name: str, part: str) -> Mark:
    """Make sure that *image* is what *snapshot*, called *name*, was when it was copied.

    Raises:
        CannotCopy: it is not, or no one knows.
    """
    anew = "copy it anew without --since"
    if mark is None:
        raise CannotCopy(f"{image} does not say of which snapshot it is", anew)
    if mark.snapshot != snapshot:
        raise CannotCopy(
            f"{image} is not an image of the snapshot {name}", f"name the one that it is of, or {anew}"
        )
    if mark.part != part:
        raise CannotCopy(
            f"{image} is an image of {mark.part or 'the whole snapshot'}, and not of {part or 'all of it'}",
            anew,
        )
    try:
        same = describe_files(image, list(mark.files)) == mark.files
    except OSError:
        same = False
    if not same:
        raise CannotCopy(f"{image} was changed since it was copied", anew)
    return mark
