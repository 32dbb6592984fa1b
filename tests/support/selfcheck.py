"""Check that holders speak the truth: compare what each kind claims with /proc/PID/mem, maps and pagemap.

    python -m support.selfcheck [KIND...]        (with tests/ on PYTHONPATH)

Exits 0 and names every kind, or says what was wrong. `problems` is the same for a test.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.held import HeldMapping, Span, merge
from support.outside import MapsLine, read_maps, read_memory, read_present
from support.pattern import PAGE
from support.target import Target


def _maps_path(mapping: HeldMapping) -> bytes:
    path = mapping.path or b""
    return path.replace(b"\n", b"\\012") + (b" (deleted)" if mapping.deleted else b"")


def _line_problems(mapping: HeldMapping, lines: tuple[MapsLine, ...]) -> Iterator[str]:
    inside = [line for line in lines if line.span.overlap(mapping.span)]
    covered = merge(line.span for line in inside)
    if mapping.whole_vma and covered != (mapping.span,):
        yield f"{mapping.kind}: maps has {covered}, not {mapping.span}"
    if len(inside) != mapping.vma_count:
        yield f"{mapping.kind}: {len(inside)} VMAs, not {mapping.vma_count}"
    first = inside[0]
    if first.perms != mapping.perms or first.path != _maps_path(mapping) or first.offset != mapping.offset:
        yield f"{mapping.kind}: {first} is not {mapping.perms} {_maps_path(mapping)!r} {mapping.offset}"


def _content_problems(pid: int, mapping: HeldMapping) -> Iterator[str]:
    for span in mapping.unreadable:
        for address in (span.start, span.end - PAGE):
            try:
                read_memory(pid, Span(address, address + PAGE))
            except OSError:
                continue
            yield f"{mapping.kind}: {address:#x} should not be readable"
    for piece in mapping.pieces():
        if wrong := mapping.mismatch(piece.start - mapping.start, read_memory(pid, piece)):
            yield wrong
    for hole in mapping.holes:
        for address in {hole.start, hole.end - PAGE}:
            if any(read_memory(pid, Span(address, address + PAGE))):
                yield f"{mapping.kind}: hole at {address:#x} has data"


def problems(target: Target) -> Iterator[str]:
    """Everything in which *target*'s words differ from the kernel's. Faults pages in, as mem does."""
    lines = read_maps(target.pid)
    for mapping in target.mappings:
        yield from _line_problems(mapping, lines)
        present = read_present(target.pid, mapping.span)
        if mapping.touched_exact and present != mapping.touched:
            yield f"{mapping.kind}: present {present[:9]}, not {mapping.touched[:9]}"
    for mapping in target.mappings:
        yield from _content_problems(target.pid, mapping)


def main() -> int:
    """Check the kinds named, or all."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Target(*(sys.argv[1:] or ["all"]), directory=Path(directory)) as target,
    ):
        found = list(problems(target))
        kinds = dict.fromkeys(mapping.kind for mapping in target.mappings)
        unavailable = [f"{kind} unavailable: {reason}" for kind, reason in target.held.unavailable.items()]
        sys.stdout.write("\n".join([" ".join(kinds), *unavailable, *found]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
