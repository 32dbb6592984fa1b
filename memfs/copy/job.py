"""One copy, from what the command line says to the last rename: which of the ways it goes."""

import os
from collections.abc import Callable
from pathlib import Path

import attrs

from memfs.copy import files, stream, tree
from memfs.copy.crew import Crew
from memfs.copy.digests import Content
from memfs.copy.files import Checks, Tools
from memfs.copy.meter import Meter
from memfs.copy.place import Place, find_place
from memfs.copy.reading import Reading
from memfs.errors import BadOption, CannotCopy


@attrs.frozen
class Request:
    """What is asked for.

    Attributes:
        destination: a path, or ``-`` for stdout.
    """

    source: str
    destination: str
    checks: Checks = attrs.field(factory=Checks)


@attrs.frozen
class Copied:
    """One file that was copied.

    Attributes:
        name: the path of the copy.
        digest: BLAKE2b of its content; empty where it was not asked for.
        buffered: why it went through the page cache; empty where it did not.
    """

    name: str
    digest: str
    buffered: str


Note = Callable[[Copied], None]


def run(request: Request, meter: Meter, note: Note) -> None:
    """Do it; *note* is told of each file once it is whole.

    Raises:
        BadOption: an option does not go with the destination.
        CannotCopy: it failed; what the destination was before, it still is.
    """
    place = find_place(request.source)
    crew = Crew()
    tools = Tools(crew, meter, request.checks)
    try:
        if stream.is_stream(request.destination):
            _to_stream(request, place, meter, note)
        elif place.path.is_dir():
            _copy_directory(place, _target_of(request.destination), tools, note)
        else:
            target = _target_of(request.destination)
            if target.is_dir():
                target /= place.path.name
            digest, buffered = files.copy_file(place.path, target, tools)
            note(Copied(str(target), digest, buffered))
    finally:
        crew.close()


def _target_of(destination: str) -> Path:
    """What a symbolic link leads to is replaced, and not the link."""
    target = Path(os.path.realpath(destination))
    if not target.parent.is_dir():
        raise CannotCopy(f"there is no directory {target.parent}", f"mkdir -p {target.parent}")
    return target


def _to_stream(request: Request, place: Place, meter: Meter, note: Note) -> None:
    if request.checks.verify:
        raise BadOption(
            "what went into a stream cannot be verified", "take --checksum, and compare over there"
        )
    if place.path.is_dir():
        raise CannotCopy(
            f"{place.path} is a directory, which no stream can take", "copy a file of it, or use tar -S"
        )
    content = Content() if request.checks.checksum else None
    with stream.opened(request.destination) as out, Reading(place.path, flags=0) as reading:
        stream.send(reading, out, request.destination, meter, content)
        digest = content.finish(reading.size_bytes) if content is not None else ""
    note(Copied(request.destination, digest, ""))


def _copy_directory(place: Place, target: Path, tools: Tools, note: Note) -> None:
    items = tree.list_items(place.path, place.parts)
    copied: list[Copied] = []

    def keep(name: str, digest: str, buffered: str) -> None:
        copied.append(Copied(str(target / name), digest, buffered))

    with tree.NewDirectory(target) as new:
        tree.copy_tree(place.path, items, new, tools, keep, live=place.snapshot is None)
        (new.path / tree.MARK_NAME).touch()
        new.install()
    for one in copied:
        note(one)
