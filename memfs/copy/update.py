"""An image brought up to date: only what changed since the snapshot that it is of is read and written.

Where the file system shares blocks between copies (XFS, btrfs) and few spans have changed, a copy is
changed and takes the place of the image. Else the image is changed in place, by way of a journal.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from memfs.copy import imagedir, journal
from memfs.copy.carry import Placed, Sink, Slot, carry
from memfs.copy.edits import Edit, EditKind, make_hole
from memfs.copy.files import Tools
from memfs.copy.held import Image
from memfs.copy.mark import Mark, ensure_fits, mark_file, mark_image, part_of, read_mark, size_and_time
from memfs.copy.newfile import PRIVATE_DIRECTORY, NewFile, cannot_write
from memfs.copy.place import Place
from memfs.copy.since import Asked, ChangeList, asked_of, vma_name
from memfs.copy.sourcefile import SourceFile, open_source
from memfs.errors import CannotCopy
from memfs.linux.folder import FolderEntry
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import clone, reserve

_NO_CLONES = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
_COST_OF_CHANGE = 2
_COST_OF_SPAN_BYTES = 70 << 10
_MOST_CLONED_SPANS = 128
"""Each span that is written to a clone splits its blocks from the image's: 1,049 single pages took
0.23 s on XFS and 0.12 s by a journal, 10,486 took 1.7 s and 0.38 s."""
_COW_BYTES = 128 << 10
_SPARE_BYTES = 16 << 20
_BLOCK_BYTES = 512


@attrs.frozen
class _Clone:
    """A copy that shares its blocks with the image."""

    image: FolderEntry
    new: NewFile

    def hole(self, offset: int, size: int) -> None:
        try:
            make_hole(self.new.fd, offset, size)
        except OSError as error:
            raise cannot_write(self.image, error) from None

    def slot(self, buffer: memoryview) -> Slot:
        return Slot(0, buffer)

    def data(self, pieces: list[Placed], slot: Slot) -> None:
        for placed in pieces:
            whole = placed.piece.page_aligned().size  # NewFile cuts its end off
            self.new.write(placed.piece.start, slot.view[placed.at : placed.at + whole])


@attrs.frozen
class _Book:
    """A journal, at one file of the image."""

    name: str
    book: journal.Journal

    def hole(self, offset: int, size: int) -> None:
        self.book.add(Edit(EditKind.HOLE, self.name, offset, size))

    def slot(self, buffer: memoryview) -> Slot:
        return self.book.claim(buffer)

    def data(self, pieces: list[Placed], slot: Slot) -> None:
        edits = [
            Edit(EditKind.DATA, self.name, placed.piece.start, placed.piece.size, slot.at + placed.at)
            for placed in pieces
        ]
        self.book.add_data(edits, slot)


@attrs.frozen
class FilePlan:
    """What is to be done to one file.

    Attributes:
        source: the file in the mount.
        name: its name in the image; "" for an image that is a file itself.
        old_name: the file of the image that is as it was; None for one that is made anew.
    """

    source: Path
    name: str
    old_name: str | None


def update(place: Place, since: str, target: FolderEntry, changes: ChangeList, tools: Tools) -> bool:
    """Make the image *target*, which is of the snapshot *since*, one of *place*.

    Returns False where nothing was done, since a whole copy takes less time, and there is room for it.

    Raises:
        CannotCopy: it is not of that snapshot, or it cannot be done: then it is as it was.
    """
    part = part_of(place.parts)
    try:
        held = Image(target)
    except OSError as error:
        raise CannotCopy(
            f"there is no image {target} to bring up to date ({error.strerror})",
            "copy it anew without --since",
        ) from None
    with held as image:
        try:
            fcntl.flock(image.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotCopy(f"{image} is being brought up to date already", "wait for that") from None
        old = ensure_fits(image, read_mark(image), changes.earlier, since, part)
        items, plans = _plan(place, old)
        mark = Mark(changes.later, part, {plan.name: (0, 0) for plan in plans})
        updater = _Updater(place, image, changes, tools)
        size_bytes, spans = updater.weigh(plans)
        if _is_dear(size_bytes, spans, plans) and image.room_bytes() > 2 * _held_bytes(plans):
            return False
        few = spans <= _MOST_CLONED_SPANS or not _is_roomy(image, size_bytes, spans)
        if few and _can_clone(image, plans):
            updater.by_clones(items, plans, mark)
        else:
            updater.in_place(items, plans, old, mark)
        return True


def _is_dear(size_bytes: int, spans: int, plans: list[FilePlan]) -> bool:
    """Whether so much has changed that to copy all of it takes less time.

    What is updated is written twice, and a page alone takes as long as a dozen in a row.
    """
    return _COST_OF_CHANGE * size_bytes + _COST_OF_SPAN_BYTES * spans > _held_bytes(plans)


def _is_roomy(image: Image, size_bytes: int, spans: int) -> bool:
    """Whether a journal can be carried out even if another file shares all blocks that are written over.

    XFS takes new ones then, for 128 KiB around each span (mkfs.xfs(8), cowextsize). A clone is made in the
    same way, but if that fails nothing has been touched.
    """
    return image.room_bytes() > _COST_OF_CHANGE * size_bytes + spans * _COW_BYTES + _SPARE_BYTES


def _held_bytes(plans: list[FilePlan]) -> int:
    """How much memory the sources hold, as far as their attributes tell."""
    return sum(os.stat(plan.source).st_blocks * _BLOCK_BYTES for plan in plans)


def _plan(place: Place, old: Mark) -> tuple[list[imagedir.Item], list[FilePlan]]:
    if not place.path.is_dir():
        # A VMA that has grown since has another name now: its start says which it is.
        return [], [FilePlan(place.path, "", "")]
    items = imagedir.list_items(place)
    by_start = {_start_of(name): name for name in old.files if _is_vma(name, place)}
    plans = []
    for item in items:
        if item.link is None:
            known = by_start.get(_start_of(item.name)) if _is_vma(item.name, place) else None
            plans.append(FilePlan(place.path / item.name, item.name, known))
    return items, plans


def _start_of(name: str) -> int:
    return vma_name(name.rpartition("/")[2]).span.start


def _is_vma(name: str, place: Place) -> bool:
    return (*place.parts, *name.split("/"))[0] == "vmas"


def _can_clone(image: Image, plans: list[FilePlan]) -> bool:
    """Whether the file system shares blocks between files: tries it."""
    old = next((plan.old_name for plan in plans if plan.old_name is not None), None)
    if old is None:
        return False
    source = image.open(old)
    try:
        trial = NewFile(image.entry, direct=False)
        try:
            clone(trial.fd, source)
        except OSError as error:
            if error.errno not in _NO_CLONES:
                raise cannot_write(image.entry, error) from None
            return False
        finally:
            trial.close()
    finally:
        os.close(source)
    return True


class _Updater:
    """One update, by either way."""

    def __init__(self, place: Place, image: Image, changes: ChangeList, tools: Tools) -> None:
        self._place = place
        self._image = image
        self._changes = changes
        self._tools = tools

    def weigh(self, plans: list[FilePlan]) -> tuple[int, int]:
        """How many bytes have changed, about, and in how many spans."""
        size_bytes = spans = 0
        for plan in plans:
            if plan.old_name is not None:
                with self._old(plan) as old, open_source(plan.source, self._place.device) as source:
                    size, count = self._asked(plan, source, old).weigh(self._changes)
                size_bytes += size
                spans += count
        return size_bytes, spans

    @contextlib.contextmanager
    def _old(self, plan: FilePlan, flags: int = os.O_RDONLY) -> Iterator[int]:
        """A descriptor of the file of the image that is as it was."""
        old = self._image.open(plan.old_name or "", flags)
        try:
            yield old
        finally:
            os.close(old)

    # By clones

    def by_clones(self, items: list[imagedir.Item], plans: list[FilePlan], mark: Mark) -> None:
        """Change a copy that shares its blocks with the image, and put it in its place."""
        if self._image.folder is None:
            new = NewFile(self._image.entry)
            try:
                self._change_clone(plans[0], new, self._image.fd, sync=True)
                files = {"": size_and_time(os.fstat(new.fd))}
                mark_file(new.fd, self._image.entry, attrs.evolve(mark, files=files))
                new.install()
            finally:
                new.close()
            return
        with imagedir.NewDirectory(self._image.entry) as directory:
            imagedir.make_links(directory, items)
            for plan in plans:
                new = NewFile(directory.folder.at(plan.name, make=PRIVATE_DIRECTORY), named=True)
                try:
                    self._clone_one(plan, new)
                finally:
                    new.close()
            directory.install(mark, [plan.name for plan in plans])

    def _clone_one(self, plan: FilePlan, new: NewFile) -> None:
        if plan.old_name is None:
            self._change_clone(plan, new, -1, sync=False)
            return
        with self._old(plan) as old:
            self._change_clone(plan, new, old, sync=False)

    def _change_clone(self, plan: FilePlan, new: NewFile, old: int, *, sync: bool) -> None:
        with open_source(plan.source, self._place.device) as source:
            try:
                if old >= 0:
                    clone(new.fd, old)
                os.ftruncate(new.fd, -(-source.size_bytes // PAGE_BYTES) * PAGE_BYTES)
            except OSError as error:
                raise cannot_write(self._image.entry, error) from None
            spans = self._wanted(plan, source, old)
            self._carry(source, spans, _Clone(self._image.entry, new), holes=old >= 0)
            new.finish(source.size_bytes, sync=sync)

    # In place

    def in_place(self, items: list[imagedir.Item], plans: list[FilePlan], old: Mark, mark: Mark) -> None:
        """Write a journal of all changes, and carry it out."""
        book = journal.Journal(self._image)
        stay = journal.Stay(self._image, old)
        try:
            kept = {plan.old_name for plan in plans} | {plan.name for plan in plans}
            for name in old.files:
                if name and name not in kept:
                    book.add(Edit(EditKind.REMOVE, name))
            links = {item.name for item in items if item.link is not None}
            for left in self._image.links():
                if left not in links:
                    book.add(Edit(EditKind.REMOVE, left))
            for item in items:
                if item.link is not None:
                    book.add(Edit(EditKind.LINK, item.name, other=item.link))
            for plan in plans:
                self._write_plan(plan, book, stay)
            if book.is_empty:
                mark_image(self._image, mark)
                return
            book.commit(mark)
            stay.is_over = True
            book.carry_out(mark, self._tools.crew)
        finally:
            stay.close()
            book.close()

    def _write_plan(self, plan: FilePlan, book: journal.Journal, stay: journal.Stay) -> None:
        with open_source(plan.source, self._place.device) as source:
            if plan.old_name is None:
                book.add(Edit(EditKind.FILE, plan.name, offset=1, size=source.size_bytes))
                self._carry(source, [Span(0, source.size_bytes)], _Book(plan.name, book), holes=False)
                self._ensure_room(source)
                return
            with self._old(plan, os.O_RDWR) as old:
                spans = self._wanted(plan, source, old)
                if plan.old_name != plan.name:
                    book.add(Edit(EditKind.MOVE, plan.old_name, other=plan.name))
                if spans or plan.old_name != plan.name or os.fstat(old).st_size != source.size_bytes:
                    book.add(Edit(EditKind.FILE, plan.name, size=source.size_bytes))
                    written = self._carry(source, spans, _Book(plan.name, book), holes=True)
                    self._set_aside(old, written, stay)

    def _ensure_room(self, source: SourceFile) -> None:
        if self._image.room_bytes() < sum(extent.size for extent in source.extents()):
            raise cannot_write(self._image.entry, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _set_aside(self, old: int, spans: list[Span], stay: journal.Stay) -> None:
        """Make sure that carrying out the journal will not run out of space.

        No byte changes by that, but the time of the file does, until it is set back.
        """
        before = os.fstat(old)
        try:
            for hole in _holes(old, spans, before.st_size):
                stay.begin()
                reserve(old, hole.start, hole.size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise cannot_write(self._image.entry, error) from None
        finally:
            os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))

    # Both

    def _asked(self, plan: FilePlan, source: SourceFile, old: int) -> Asked:
        names = (*self._place.parts, *plan.name.split("/")) if plan.name else self._place.parts
        before = None
        if names[0] == "vmas":
            before = vma_name((plan.old_name or "").rpartition("/")[2] or names[1]).span
            if not plan.name:
                # The image of one VMA has a name of the user's: its size says where it ended.
                before = Span(before.start, before.start + os.fstat(old).st_size)
        return asked_of(source, names, before, old)

    def _wanted(self, plan: FilePlan, source: SourceFile, old: int) -> list[Span]:
        """What is to be carried over: whole pages, but for the end of the file, in order."""
        everything = Span(0, source.size_bytes)
        if plan.old_name is None:
            return [everything]
        found: list[Span] = []
        for span in self._asked(plan, source, old).changed(self._changes):
            whole = span.page_aligned().clip(everything)
            if found and whole.start <= found[-1].end:
                found[-1] = Span(found[-1].start, max(found[-1].end, whole.end))
            else:
                found.append(whole)
        return found

    def _carry(self, source: SourceFile, spans: list[Span], sink: Sink, *, holes: bool) -> list[Span]:
        return carry(source, spans, sink, self._tools.crew, self._tools.meter, holes=holes)


def _holes(fd: int, spans: list[Span], size_bytes: int) -> Iterator[Span]:
    """What of *spans*, which are in order, is not known to have room in a file of that size."""
    hole = Span(0, 0)
    for span in spans:
        at = span.start
        while at < span.end:
            if hole.end <= at:
                hole = _next_hole(fd, at, size_bytes)
            part = span.clip(hole)
            if not part:
                break
            yield part
            at = part.end


def _next_hole(fd: int, at: int, size_bytes: int) -> Span:
    """The first hole of a file at or behind *at*; behind its end all is one."""
    start, end = size_bytes, sys.maxsize
    if at < size_bytes:
        start = os.lseek(fd, at, os.SEEK_HOLE)
    if start < size_bytes:
        with contextlib.suppress(OSError):  # it goes on to the end
            end = os.lseek(fd, start, os.SEEK_DATA)
    return Span(max(start, at) & -PAGE_BYTES, end)
