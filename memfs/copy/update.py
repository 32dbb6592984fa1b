"""An image brought up to date: only what changed since the snapshot that it is of is read and written.

Where the file system shares blocks between copies (XFS, btrfs), a copy is changed and takes the place
of the image. Elsewhere the image is changed in place, by way of a journal.
"""

import errno
import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import attrs

from memfs.copy import journal, tree
from memfs.copy.crew import CHUNK_BYTES, Work
from memfs.copy.digests import is_zeros
from memfs.copy.edits import Edit, Kind, make_hole
from memfs.copy.files import Tools
from memfs.copy.mark import Mark, describe_files, ensure_fits, part_of, read_mark, write_mark
from memfs.copy.newfile import PRIVATE_DIRECTORY, NewFile, cannot_write
from memfs.copy.place import Place
from memfs.copy.reading import Reading, chunks
from memfs.copy.since import Changes, changed_in, vma_span
from memfs.errors import CannotCopy
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import clone, reserve

_NO_CLONES = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)
_ASKED_BYTES = 64 << 20
"""To ask for the holes in less takes longer than to read them: the mount looks to the end of the data."""
_PIECES_AT_ONCE = 64
_COST_OF_CHANGE = 3
_COST_OF_SPAN_BYTES = 100 << 10
_BLOCK_BYTES = 512


class Sink(Protocol):
    """Where changes go: a copy of the image, or a journal."""

    def hole(self, offset: int, size: int) -> None:
        """There is nothing any more."""

    def data(self, pieces: list[Span], view: memoryview) -> None:
        """Bytes of *pieces*, one after the other in *view*, each on a page's start; threads call this."""


@attrs.frozen
class _Clone:
    """A copy that shares its blocks with the image."""

    image: Path
    new: NewFile

    def hole(self, offset: int, size: int) -> None:
        try:
            make_hole(self.new.fd, offset, size)
        except OSError as error:
            raise cannot_write(self.image, error) from None

    def data(self, pieces: list[Span], view: memoryview) -> None:
        at = 0
        for piece in pieces:
            whole = piece.page_aligned().size  # NewFile cuts its end off
            self.new.write(piece.start, view[at : at + whole])
            at += whole


@attrs.frozen
class _Book:
    """A journal, at one file of the image."""

    name: str
    book: journal.Journal

    def hole(self, offset: int, size: int) -> None:
        self.book.add(Edit(Kind.HOLE, self.name, offset, size))

    def data(self, pieces: list[Span], view: memoryview) -> None:
        edits = []
        at = 0
        for piece in pieces:
            edits.append(Edit(Kind.DATA, self.name, piece.start, piece.size, at))
            at += piece.page_aligned().size
        self.book.add_data(edits, view[:at])


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


def update(place: Place, since: str, image: Path, changes: Changes, tools: Tools) -> bool:
    """Make *image*, which is of the snapshot *since*, one of *place*.

    Returns False where nothing was done, since a whole copy takes less time, and there is room for it.

    Raises:
        CannotCopy: it is not of that snapshot, or it cannot be done: then it is as it was.
    """
    part = part_of(place.parts)
    try:
        lock = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotCopy(
            f"there is no image {image} to bring up to date ({error.strerror})",
            "copy it anew without --since",
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotCopy(f"{image} is being brought up to date already", "wait for that") from None
        old = ensure_fits(image, read_mark(image), changes.earlier, since, part)
        items, plans = _plan(place, old)
        mark = Mark(changes.later, part, {plan.name: (0, 0) for plan in plans})
        updater = _Updater(place, image, changes, tools)
        if updater.is_dear(plans) and _has_room(image, plans):
            return False
        if _can_clone(image, plans):
            updater.by_clones(items, plans, mark, lock)
        else:
            updater.in_place(items, plans, old, mark)
        return True
    finally:
        os.close(lock)


def _has_room(image: Path, plans: list[FilePlan]) -> bool:
    room = os.statvfs(image)
    return room.f_bavail * room.f_frsize > 2 * _held_bytes(plans)


def _held_bytes(plans: list[FilePlan]) -> int:
    """How much memory the sources hold, as far as their attributes tell."""
    return sum(os.stat(plan.source).st_blocks * _BLOCK_BYTES for plan in plans)


def _plan(place: Place, old: Mark) -> tuple[list[tree.Item], list[FilePlan]]:
    if not place.path.is_dir():
        # A VMA that has grown since has another name now: its start says which it is.
        return [], [FilePlan(place.path, "", "")]
    items = tree.list_items(place.path, place.parts)
    by_start = {vma_span(name.rpartition("/")[2]).start: name for name in old.files if _is_vma(name, place)}
    plans = []
    for item in items:
        if item.link is None:
            known = (
                by_start.get(vma_span(item.name.rpartition("/")[2]).start)
                if _is_vma(item.name, place)
                else None
            )
            plans.append(FilePlan(place.path / item.name, item.name, known))
    return items, plans


def _is_vma(name: str, place: Place) -> bool:
    return (*place.parts, *name.split("/"))[0] == "vmas"


def _can_clone(image: Path, plans: list[FilePlan]) -> bool:
    """Whether the file system shares blocks between files: tries it."""
    old = next((plan.old_name for plan in plans if plan.old_name is not None), None)
    if old is None:
        return False
    source = os.open(image / old if old else image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        trial = NewFile(image, direct=False)
        try:
            clone(trial.fd, source)
        except OSError as error:
            if error.errno not in _NO_CLONES:
                raise cannot_write(image, error) from None
            return False
        finally:
            trial.close()
    finally:
        os.close(source)
    return True


class _Updater:
    """One update, by either way."""

    def __init__(self, place: Place, image: Path, changes: Changes, tools: Tools) -> None:
        self._place = place
        self._image = image
        self._changes = changes
        self._tools = tools

    def is_dear(self, plans: list[FilePlan]) -> bool:
        """Whether so much has changed that to copy all of it takes less time.

        What is updated is written twice or more, and a page alone takes as long as a dozen in a row.
        """
        cost = 0
        for plan in plans:
            if plan.old_name is not None:
                old = os.open(self._image / plan.old_name if plan.old_name else self._image, os.O_RDONLY)
                try:
                    with Reading(plan.source) as source:
                        spans = self._wanted(plan, source, old)
                finally:
                    os.close(old)
                cost += sum(_COST_OF_CHANGE * span.size + _COST_OF_SPAN_BYTES for span in spans)
        return cost > _held_bytes(plans)

    # By clones

    def by_clones(self, items: list[tree.Item], plans: list[FilePlan], mark: Mark, lock: int) -> None:
        """Change a copy that shares its blocks with the image, and put it in its place."""
        if not self._image.is_dir():
            new = NewFile(self._image)
            try:
                self._change_clone(plans[0], new, lock, sync=True)
                stat = os.fstat(new.fd)
                whole = attrs.evolve(mark, files={"": (stat.st_size, stat.st_mtime_ns)})
                write_mark(self._image, whole, new.fd)
                new.install()
            finally:
                new.close()
            return
        with tree.NewDirectory(self._image) as directory:
            for item in items:
                path = directory.path / item.name
                path.parent.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
                if item.link is not None:
                    path.symlink_to(item.link)
            for plan in plans:
                new = NewFile(directory.path / plan.name, named=True)
                try:
                    self._clone_one(plan, new)
                finally:
                    new.close()
            names = [plan.name for plan in plans]
            write_mark(directory.path, attrs.evolve(mark, files=describe_files(directory.path, names)))
            directory.install()

    def _clone_one(self, plan: FilePlan, new: NewFile) -> None:
        if plan.old_name is None:
            self._change_clone(plan, new, -1, sync=False)
            return
        old = os.open(self._image / plan.old_name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._change_clone(plan, new, old, sync=False)
        finally:
            os.close(old)

    def _change_clone(self, plan: FilePlan, new: NewFile, old: int, *, sync: bool) -> None:
        with Reading(plan.source) as source:
            try:
                if old >= 0:
                    clone(new.fd, old)
                os.ftruncate(new.fd, -(-source.size_bytes // PAGE_BYTES) * PAGE_BYTES)
            except OSError as error:
                raise cannot_write(self._image, error) from None
            self._carry(source, self._wanted(plan, source, old), old >= 0, _Clone(self._image, new))
            new.finish(source.size_bytes, sync=sync)

    # In place

    def in_place(self, items: list[tree.Item], plans: list[FilePlan], old: Mark, mark: Mark) -> None:
        """Write a journal of all changes, and carry it out."""
        book = journal.Journal(self._image)
        try:
            kept = {plan.old_name for plan in plans} | {plan.name for plan in plans}
            for name in old.files:
                if name and name not in kept:
                    book.add(Edit(Kind.REMOVE, name))
            links = {item.name for item in items if item.link is not None}
            for left in self._image.iterdir() if self._image.is_dir() else ():
                if left.is_symlink() and left.name not in links:
                    book.add(Edit(Kind.REMOVE, left.name))
            for item in items:
                if item.link is not None:
                    book.add(Edit(Kind.LINK, item.name, other=item.link))
            for plan in plans:
                self._write_plan(plan, book)
            book.commit(mark)
        finally:
            book.close()
        journal.finish(self._image, self._tools.crew)

    def _write_plan(self, plan: FilePlan, book: journal.Journal) -> None:
        with Reading(plan.source) as source:
            if plan.old_name is None:
                book.add(Edit(Kind.FILE, plan.name, offset=1, size=source.size_bytes))
                self._carry(source, [Span(0, source.size_bytes)], False, _Book(plan.name, book))
                self._ensure_room(source)
                return
            old = os.open(
                self._image / plan.old_name if plan.old_name else self._image, os.O_RDWR | os.O_CLOEXEC
            )
            try:
                spans = self._wanted(plan, source, old)
                if plan.old_name != plan.name:
                    book.add(Edit(Kind.MOVE, plan.old_name, other=plan.name))
                if spans or plan.old_name != plan.name or os.fstat(old).st_size != source.size_bytes:
                    book.add(Edit(Kind.FILE, plan.name, size=source.size_bytes))
                    written = self._carry(source, spans, True, _Book(plan.name, book))
                    self._set_aside(old, written)
            finally:
                os.close(old)

    def _ensure_room(self, source: Reading) -> None:
        room = os.statvfs(self._image)
        if room.f_bavail * room.f_frsize < sum(extent.size for extent in source.extents()):
            raise cannot_write(self._image, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _set_aside(self, old: int, spans: list[Span]) -> None:
        """Make sure that carrying out the journal will not run out of space. No byte changes by that."""
        before = os.fstat(old)
        try:
            for span in spans:
                reserve(old, span.start, span.size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise cannot_write(self._image, error) from None
        finally:
            os.utime(old, ns=(before.st_atime_ns, before.st_mtime_ns))

    # Both

    def _wanted(self, plan: FilePlan, source: Reading, old: int) -> list[Span]:
        if plan.old_name is None:
            return [Span(0, source.size_bytes)]
        names = (*self._place.parts, *plan.name.split("/")) if plan.name else self._place.parts
        old_name = plan.old_name.rpartition("/")[2] or names[-1]
        if names[0] == "vmas" and not plan.name:
            # The image of one VMA has a name of the user's: its size says where it ended.
            start = vma_span(names[1]).start
            old_name = f"{start:012x}-{start + os.fstat(old).st_size:012x}_"
        everything = Span(0, source.size_bytes)
        found = changed_in(source, names, old_name, old, self._changes)
        return [span.page_aligned().clip(everything) for span in found]

    def _carry(self, source: Reading, spans: list[Span], holes: bool, sink: Sink) -> list[Span]:
        """Read *spans* and write them, with *holes* where the source has some; returns what is data."""
        data: list[Span] = []
        for span in spans:
            if span.size < _ASKED_BYTES and holes:
                data.append(span)
                continue
            at = span.start
            for extent in source.extents(span):
                if extent.start > at and holes:
                    sink.hole(at, extent.start - at)
                data.append(extent)
                at = extent.end
            if at < span.end and holes:
                sink.hole(at, span.end - at)
        self._tools.meter.expect(sum(span.size for span in data), source.size_bytes)
        self._tools.crew.run(self._works(source, data, sink))
        return data

    def _works(self, source: Reading, data: list[Span], sink: Sink) -> Iterator[Work]:
        batch: list[Span] = []
        size = 0
        for piece in chunks(data):
            if batch and (size + piece.size > CHUNK_BYTES or len(batch) == _PIECES_AT_ONCE):
                yield functools.partial(self._carry_pieces, source, batch, sink)
                batch, size = [], 0
            batch.append(piece)
            size += piece.size
        if batch:
            yield functools.partial(self._carry_pieces, source, batch, sink)

    def _carry_pieces(self, source: Reading, pieces: list[Span], sink: Sink, buffer: memoryview) -> None:
        at = 0
        data = []
        for piece in pieces:
            view = buffer[at : at + piece.size]
            source.read_into(piece.start, view)
            self._tools.meter.add(piece.size)
            if is_zeros(view):
                sink.hole(piece.start, piece.size)
                continue
            whole = piece.page_aligned().size
            if whole > piece.size:
                buffer[at + piece.size : at + whole] = bytes(whole - piece.size)
            at += whole
            data.append(piece)
        if data:
            sink.data(data, buffer[:at])
