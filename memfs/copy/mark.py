"""What an image says of itself: of which snapshot it is, and how its files were when it was whole.

A file has it as an extended attribute, or in a small file beside it where there are none; a directory in
a small file in it. An image that was touched since does not fit its own mark any more.
"""

import contextlib
import errno
import json
import os
from pathlib import Path

import attrs

from memfs.copy.newfile import PRIVATE_FILE
from memfs.errors import CannotCopy

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
    """

    snapshot: str
    part: str
    files: dict[str, tuple[int, int]] = attrs.field(factory=dict)

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
        return Mark(str(found["snapshot"]), str(found["part"]), files)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no mark") from error


def part_of(names: tuple[str, ...]) -> str:
    """The part of a snapshot that *names* lead to."""
    if len(names) == 2 and names[0] == "vmas":
        return f"vmas/{names[1].partition('-')[0]}"
    return "/".join(names)


def _beside(image: Path) -> Path:
    return image.parent / f".{image.name}.memfs-image"


def write_mark(image: Path, mark: Mark, fd: int = -1) -> None:
    """Store *mark* with *image*, whose files are as they will stay; *fd* is a file that has no name yet."""
    if fd < 0 and image.is_dir():
        _write_small(image / MARK_NAME, mark.format())
        return
    try:
        os.setxattr(fd if fd >= 0 else image, _XATTR, mark.format())
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        _write_small(_beside(image), mark.format())
    else:
        with contextlib.suppress(FileNotFoundError):
            _beside(image).unlink()


def _write_small(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def read_mark(image: Path) -> Mark | None:
    """The mark of *image*; None where it has none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        if image.is_dir():
            return parse_mark((image / MARK_NAME).read_bytes())
        with contextlib.suppress(OSError):
            return parse_mark(os.getxattr(image, _XATTR))
        return parse_mark(_beside(image).read_bytes())
    return None


def describe_files(image: Path, names: list[str]) -> dict[str, tuple[int, int]]:
    """Sizes and times of files of *image*, for a mark."""
    found = {}
    for name in names:
        stat = os.stat(image / name)
        found[name] = (stat.st_size, stat.st_mtime_ns)
    return found


def ensure_fits(image: Path, mark: Mark | None, snapshot: str, name: str, part: str) -> Mark:
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
