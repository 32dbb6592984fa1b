"""One copy, from what the command line says to the last rename: which of the ways it goes."""

import os
from collections.abc import Callable

import attrs

from memfs.copy import files, imagedir, journal, stream
from memfs.copy.crew import Crew
from memfs.copy.destination import Special, found
from memfs.copy.digests import Content
from memfs.copy.files import Checks, Tools
from memfs.copy.held import Image
from memfs.copy.lacking import lacking
from memfs.copy.mark import Mark, part_of, read_mark
from memfs.copy.meter import Meter
from memfs.copy.newfile import clear_leftovers
from memfs.copy.place import Place, find_place
from memfs.copy.since import read_changes, snapshot_id, vma_name
from memfs.copy.sourcefile import open_source
from memfs.copy.update import update
from memfs.errors import BadOption, CannotCopy
from memfs.linux.folder import FolderEntry
from memfs.linux.maps import Access

_CORE = "core"


@attrs.frozen
class CopyRequest:
    """What the command line asks for.

    Attributes:
        destination: a path, or ``-`` for stdout.
        since: the snapshot that the destination is an image of, a name or a path; None for a whole copy.
    """

    source: str
    destination: str
    since: str | None = None
    checks: Checks = attrs.field(factory=Checks)


@attrs.frozen
class CopiedFile:
    """One file that was copied.

    Attributes:
        name: the path of the copy.
        digest: BLAKE2b of its content; empty where it was not asked for.
        buffered: why it went through the page cache; empty where it did not.
    """

    name: str
    digest: str
    buffered: str


Note = Callable[[CopiedFile], None]


def run(request: CopyRequest, meter: Meter, note: Note) -> dict[str, int]:
    """Do it; *note* is told of each file once it is whole.

    Returns how much the source says that it lacks of the memory of its process, in bytes by the reason.

    Raises:
        BadOption: an option does not go with the destination.
        CannotCopy: it failed; what the destination was before, it still is.
    """
    place = find_place(request.source)
    if place.parts != (_CORE,):
        _run(request, place, meter, note)
        return {}
    # All who have a live core open at one time read the same one.
    with open_source(place.path, place.device) as core:
        lacks = lacking(core)
        _run(request, place, meter, note)
    return lacks


def _run(request: CopyRequest, place: Place, meter: Meter, note: Note) -> None:
    crew = Crew()
    tools = Tools(crew, meter, request.checks)
    name = None if place.path.is_dir() else place.path.name
    try:
        if request.destination == "-":
            _to_stream(request, place, None, meter, note)
            return
        with found(request.destination, name) as target:
            if isinstance(target, Special):
                _to_stream(request, place, target, meter, note)
            else:
                _to_image(request, place, target, tools, note)
    finally:
        crew.close()


def _to_image(request: CopyRequest, place: Place, target: FolderEntry, tools: Tools, note: Note) -> None:
    journal.finish(target, tools.crew)
    clear_leftovers(target)
    if request.since is not None and update(
        place, request.since, target, read_changes(place, request.since), tools
    ):
        _check(place, target, tools, note)
    elif place.path.is_dir():
        _copy_directory(place, target, tools, note)
    else:
        digest, buffered = files.copy_file(place, target, _mark_of(place), tools)
        note(CopiedFile(str(target), digest, buffered))


def _mark_of(place: Place) -> Mark | None:
    """What an image of *place* says of itself; None of live memory, which no image stays the same as."""
    if place.snapshot is None:
        return None
    return Mark(snapshot_id(place.snapshot, place.device), part_of(place.parts))


def _check(place: Place, target: FolderEntry, tools: Tools, note: Note) -> None:
    with Image(target) as image:
        mark = read_mark(image)
        for name in mark.files if mark is not None else ():
            digest = files.check(place, image, name, tools)
            note(CopiedFile(os.path.join(str(target), name) if name else str(target), digest, ""))


def _to_stream(request: CopyRequest, place: Place, special: Special | None, meter: Meter, note: Note) -> None:
    """Send it to *special*, or to stdout."""
    if request.since is not None:
        raise BadOption("a stream has no image that --since could bring up to date", "name the image")
    if request.checks.verify:
        raise BadOption(
            "what went into a stream cannot be verified", "take --checksum, and compare over there"
        )
    if place.path.is_dir():
        raise CannotCopy(
            f"{place.path} is a directory, which no stream can take", "copy a file of it, or use tar -S"
        )
    content = Content() if request.checks.checksum else None
    shared = content is None and _is_shared(place)
    flags = 0 if shared else os.O_DIRECT
    with (
        stream.opened(special, request.destination) as out,
        open_source(place.path, place.device, flags) as reading,
    ):
        if shared:
            stream.send_shared(reading, out, request.destination, meter)
        else:
            stream.send(reading, out, request.destination, meter, content)
        digest = content.finish(reading.size_bytes) if content is not None else ""
    note(CopiedFile(request.destination, digest, ""))


def _is_shared(place: Place) -> bool:
    """Whether it is shared memory of a running process; a snapshot has a copy of that."""
    if place.snapshot is not None or place.parts[:1] != ("vmas",):
        return False
    return bool(vma_name(place.parts[1]).access & Access.SHARED)


def _copy_directory(place: Place, target: FolderEntry, tools: Tools, note: Note) -> None:
    items = imagedir.list_items(place)
    copied: list[CopiedFile] = []

    def keep(name: str, digest: str, buffered: str) -> None:
        copied.append(CopiedFile(f"{target}/{name}", digest, buffered))

    with imagedir.NewDirectory(target) as new:
        imagedir.copy_tree(place, items, new, tools, keep)
        names = [item.name for item in items if item.link is None]
        new.install(_mark_of(place) or Mark("", part_of(place.parts)), names)
    for one in copied:
        note(one)
