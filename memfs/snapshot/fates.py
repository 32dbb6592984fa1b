"""What becomes of each VMA in a snapshot, and why. Values only: this module looks at no process."""

from collections.abc import Iterator
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.smaps import MemoryUse
from memfs.linux.span import Span
from memfs.snapshot.aside import SHARED, what_fork_does_not_keep
from memfs.snapshot.places import Copied, Wanted
from memfs.snapshot.values import Fate, Part
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import ObjectKey, object_key
from memfs.target.vmaflags import VmaFlags
from memfs.target.withheld import DONTFORK, FLAGS, Withheld

_SERVED = "another process or machine serves its file"
_TOO_MUCH = "and more than snapshot_copy allows"
_MAPPED_SINCE = "and it was mapped just before"
_ADVISED_SINCE = "and it was mapped or advised so just before"
_BY_OTHERS = ", and other processes that map it did not stand still"


def find_wanted(
    layout: Layout, known: VmaFlags, let_in: frozenset[Withheld], steady: frozenset[ObjectKey]
) -> Iterator[Wanted]:
    """Yield the VMAs that must be copied because a fork does not keep them.

    Args:
        let_in: VMAs that the process will be made to let into the fork.
        steady: files that need no copy, see :mod:`memfs.snapshot.steady`.
    """
    for region in layout.regions:
        use = known.uses.get(region.span.start)
        flags = use.flags if use else frozenset()
        if flags & FLAGS:
            flags -= {flag for flag in flags & FLAGS if Withheld(region.span, flag) in let_in}
        reason = what_fork_does_not_keep(region, flags)
        if reason == SHARED and object_key(region.mapping) in steady:
            continue
        if reason:
            yield Wanted(region, reason)


def find_private(layout: Layout, known: VmaFlags) -> Iterator[Wanted]:
    """Yield the private VMAs that must be copied where the process cannot be forked."""
    for region in layout.regions:
        if (
            region.has_file
            and not region.served
            and not region.mapping.shared
            and not _is_fetched(region, known.fetched)
        ):
            yield Wanted(region, "fork is not possible")


@attrs.frozen
class Facts:
    """What is known of the VMAs of a process after it has been copied.

    Attributes:
        known: what was mapped when it was decided what is copied, before the stop.
        before: what smaps said then of each VMA, by its start address.
        uses: what smaps says of each VMA of the fork, by its start address; of the process where it was not
            forked.
        copied: the VMAs whose bytes were copied, by their start address.
        fetched: VMAs whose missing pages a userfaultfd supplies.
        steady: files that are mapped shared, and whose changes are seen.
        shared: objects that other processes map as well.
        why_live: why an object was not copied, by its key, where that is not for its size.
        let_in: the VMAs that the process was made to let into the fork; None where it was not forked.
        may_be_pinned: whether a device may have pinned memory of the process.
        copy_all: whether everything was copied instead of forking.
    """

    known: Layout
    before: ReadOnlyDict[int, MemoryUse]
    uses: ReadOnlyDict[int, MemoryUse]
    copied: ReadOnlyDict[int, Copied]
    fetched: tuple[Span, ...]
    steady: frozenset[ObjectKey]
    shared: frozenset[ObjectKey]
    why_live: ReadOnlyDict[ObjectKey, str]
    let_in: tuple[Withheld, ...] | None
    may_be_pinned: bool
    copy_all: bool


def decide_all(layout: Layout, facts: Facts) -> tuple[Part, ...]:
    """Return the fate of each VMA."""
    return tuple(decide(region, facts) for region in layout.regions)


def decide(region: Region, facts: Facts) -> Part:
    """Return the fate of *region*. It is FROZEN only where the fork has it as it was."""
    if not region.has_file:
        return Part(region, Fate.ABSENT, "no one can read it")
    copied = facts.copied.get(region.span.start)
    if copied is not None:
        return _decide_copied(region, copied, facts)
    absent = Region(region.mapping, Kind.ABSENT)
    if region.mapping.shared or facts.copy_all:
        if _is_fetched(region, facts.fetched):
            return Part(absent, Fate.ABSENT, "its pages come from a userfaultfd")
        if region.served:
            # To copy it while the process stands still would let its server decide for how long.
            return Part(absent, Fate.ABSENT, _SERVED) if facts.copy_all else Part(region, Fate.LIVE, _SERVED)
    if facts.copy_all:
        return Part(absent, Fate.ABSENT, _TOO_MUCH if region.mapping.shared else "it could not be read")
    use = facts.uses.get(region.span.start)
    if use is None:
        return Part(absent, Fate.ABSENT, _why_kept_out(region, facts))
    if is_steady(region, facts.steady):
        return Part(Region(region.mapping, Kind.PRIVATE_FILE), Fate.FROZEN)
    if reason := what_fork_does_not_keep(region, _flags_in_fork(region, use.flags, facts.let_in)):
        if region.kind is Kind.SHARED:
            known = facts.known.at(region.span.start) == region
            why = facts.why_live.get(object_key(region.mapping), _TOO_MUCH if known else _MAPPED_SINCE)
            return Part(region, Fate.LIVE, f"{reason}, {why}")
        return Part(absent, Fate.ABSENT, f"{reason}, {_why_not_copied(region, use.flags, facts)}")
    if region.kind is Kind.OPAQUE and region.mapping.shared:
        return Part(region, Fate.LIVE, "a device")
    return Part(region, Fate.FROZEN)


def _decide_copied(region: Region, copied: Copied, facts: Facts) -> Part:
    reason = copied.reason
    if region.kind is Kind.SHARED and object_key(region.mapping) in facts.shared:
        reason += _BY_OTHERS
    shown = Region(region.mapping, Kind.COPIED)
    return Part(shown, Fate.COPIED, reason, copied.size_bytes, copied.at)


def _flags_in_fork(
    region: Region, flags: frozenset[bytes], let_in: tuple[Withheld, ...] | None
) -> frozenset[bytes]:
    """Return *flags* of a VMA of the fork without those that it did not have when the fork was made."""
    if not flags & FLAGS or let_in is None:
        return flags
    taken = {one.flag for one in let_in if one.span == region.span}
    return flags - {DONTFORK} - taken


def _why_kept_out(region: Region, facts: Facts) -> str:
    if region.kind is Kind.OPAQUE:
        return "MADV_DONTFORK, memory of a driver"
    if facts.may_be_pinned:
        return f"MADV_DONTFORK, a device may use it, {_TOO_MUCH}"
    return f"MADV_DONTFORK, {_why_not_copied(region, frozenset((DONTFORK,)), facts)}"


def _why_not_copied(region: Region, flags: frozenset[bytes], facts: Facts) -> str:
    """Return why private memory with *flags* was not copied: too much, or nobody knew that it had to be."""
    before = facts.before.get(region.span.start)
    known = before is not None and flags & FLAGS <= before.flags
    return _TOO_MUCH if known else _ADVISED_SINCE


def is_steady(region: Region, steady: frozenset[ObjectKey]) -> bool:
    """Whether *region* maps one of the *steady* files shared."""
    return region.kind is Kind.SHARED and object_key(region.mapping) in steady


def _is_fetched(region: Region, fetched: tuple[Span, ...]) -> bool:
    return any(region.span.clip(span) for span in fetched)


def uses_of_process(
    layout: Layout, before: Layout, known: ReadOnlyDict[int, MemoryUse], uses: ReadOnlyDict[int, MemoryUse]
) -> ReadOnlyDict[int, MemoryUse]:
    """Return *uses* of the fork with the flags of the process: a fork does not lock its memory, for example.

    Of a VMA that the fork lacks, the result has what was *known* of the process.

    Args:
        layout: of the stopped process.
        before: of the process when *known* was read: the flags of a VMA that has changed since are unknown.
    """
    merged = {**known, **uses}
    for region in layout.regions:
        start = region.span.start
        old, new = known.get(start), uses.get(start)
        if old is None or new is None or old.flags == new.flags:
            continue
        if before.at(start) == region:
            merged[start] = attrs.evolve(new, flags=old.flags)
    return merged
