"""What becomes of a VMA in a snapshot, decided without a process."""

import attrs
import pytest

from memfs.linux.maps import Access, Mapping
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.snapshot.fates import Facts, decide, find_private, find_wanted, uses_of_process
from memfs.snapshot.places import Copied
from memfs.snapshot.values import Fate, Part
from memfs.target.layout import Kind, Layout, Region
from memfs.target.origins import object_key
from memfs.target.vmaflags import VmaFlags
from memfs.target.withheld import Withheld

_START = 16 * PAGE_BYTES
_SPAN = Span(_START, _START + 4 * PAGE_BYTES)
_FLAGS = frozenset((b"rd", b"wr"))


def _region(kind: Kind, *, shared: bool = False, served: bool = False) -> Region:
    backed = shared or kind in (Kind.PRIVATE_FILE, Kind.SHARED)
    access = Access.READ | Access.WRITE | (Access.SHARED if shared or kind is Kind.SHARED else Access(0))
    device, inode, path = ((8, 1), 7, b"/x") if backed else ((0, 0), 0, b"")
    return Region(Mapping(_SPAN, access, 0, device, inode, path), kind, served)


def _uses(*flags: bytes) -> dict[int, MemoryUse]:
    return {_START: MemoryUse(_START, 0, 0, _FLAGS | set(flags))}


_FORKED = Facts(
    known=Layout((_region(Kind.SHARED),)),
    before=_uses(b"dc"),
    uses=_uses(),
    copied={},
    fetched=(),
    steady=frozenset(),
    shared=frozenset(),
    why_live={},
    let_in=(),
    may_be_pinned=False,
    copy_all=False,
)
_COPIED_ALL = attrs.evolve(_FORKED, let_in=None, copy_all=True)
_KEY = object_key(_region(Kind.SHARED).mapping)


@pytest.mark.parametrize("kind", [Kind.ANONYMOUS, Kind.PRIVATE_FILE, Kind.OPAQUE])
def test_private_memory_that_the_fork_has_is_frozen(kind: Kind) -> None:
    region = _region(kind)
    assert decide(region, _FORKED) == Part(region, Fate.FROZEN)


def test_shared_memory_is_live_and_the_reason_is_its_size_unless_another_is_known() -> None:
    region = _region(Kind.SHARED)
    assert decide(region, _FORKED) == Part(
        region, Fate.LIVE, "shared memory, and more than snapshot_copy allows"
    )
    known = attrs.evolve(_FORKED, why_live={_KEY: "and it was mapped anew meanwhile"})
    assert decide(region, known).reason == "shared memory, and it was mapped anew meanwhile"


def test_a_shared_file_without_a_writer_is_frozen_and_read_as_a_private_one() -> None:
    region = _region(Kind.SHARED)
    part = decide(region, attrs.evolve(_FORKED, steady=frozenset((_KEY,))))
    assert (part.fate, part.region.kind, part.reason) == (Fate.FROZEN, Kind.PRIVATE_FILE, "")


@pytest.mark.parametrize("facts", [_FORKED, _COPIED_ALL])
@pytest.mark.parametrize("kind", [Kind.ANONYMOUS, Kind.PRIVATE_FILE, Kind.SHARED])
def test_what_was_copied_is_shown_from_the_copy_whatever_else_is_known(kind: Kind, facts: Facts) -> None:
    copied = {_START: Copied("because", _SPAN.size, 1 << 40)}
    part = decide(_region(kind), attrs.evolve(facts, copied=copied, fetched=(_SPAN,)))
    assert (part.fate, part.region.kind, part.reason) == (Fate.COPIED, Kind.COPIED, "because")
    assert _START + part.shift == 1 << 40


def test_a_copy_of_what_others_map_as_well_says_so() -> None:
    copied = {_START: Copied("shared memory", _SPAN.size, 0)}
    facts = attrs.evolve(_FORKED, copied=copied, shared=frozenset((_KEY,)))
    assert "did not stand still" in decide(_region(Kind.SHARED), facts).reason


@pytest.mark.parametrize("facts", [_FORKED, _COPIED_ALL])
def test_memory_that_no_one_can_read_and_missing_pages_of_shared_memory_are_absent(facts: Facts) -> None:
    assert decide(_region(Kind.UNREADABLE), facts).fate is Fate.ABSENT
    part = decide(_region(Kind.SHARED), attrs.evolve(facts, fetched=(_SPAN,)))
    assert (part.fate, part.region.kind) == (Fate.ABSENT, Kind.ABSENT)


@pytest.mark.parametrize(
    ("kind", "forked", "copied"),
    [(Kind.SHARED, Fate.LIVE, Fate.ABSENT), (Kind.PRIVATE_FILE, Fate.FROZEN, Fate.ABSENT)],
)
def test_a_served_file_is_never_copied(kind: Kind, forked: Fate, copied: Fate) -> None:
    region = _region(kind, served=True)
    assert decide(region, _FORKED).fate is forked
    assert decide(region, _COPIED_ALL).fate is copied


@pytest.mark.parametrize(
    ("kind", "pinned", "reason"),
    [
        (Kind.OPAQUE, True, "MADV_DONTFORK, memory of a driver"),
        (Kind.ANONYMOUS, True, "MADV_DONTFORK, a device may use it, and more than snapshot_copy allows"),
        (Kind.ANONYMOUS, False, "MADV_DONTFORK, and more than snapshot_copy allows"),
    ],
)
def test_what_the_fork_lacks_is_absent_and_says_why(kind: Kind, pinned: bool, reason: str) -> None:
    part = decide(_region(kind), attrs.evolve(_FORKED, uses={}, may_be_pinned=pinned))
    assert (part.fate, part.reason) == (Fate.ABSENT, reason)


def test_memory_that_nobody_knew_to_be_kept_out_is_not_said_to_be_too_much() -> None:
    late = attrs.evolve(_FORKED, before=_uses(), uses={})
    assert decide(_region(Kind.ANONYMOUS), late).reason.endswith("just before")
    emptied = attrs.evolve(_FORKED, uses=_uses(b"wf"))
    assert decide(_region(Kind.ANONYMOUS), emptied).reason.endswith("just before")
    known = attrs.evolve(emptied, before=_uses(b"wf"))
    assert decide(_region(Kind.ANONYMOUS), known).reason.endswith("snapshot_copy allows")


def test_memory_that_was_emptied_in_the_fork_is_absent_unless_it_was_let_in() -> None:
    region = _region(Kind.ANONYMOUS)
    emptied = attrs.evolve(_FORKED, uses=_uses(b"wf"))
    assert decide(region, emptied).fate is Fate.ABSENT
    let_in = attrs.evolve(emptied, let_in=(Withheld(_SPAN, b"wf"),))
    assert decide(region, let_in).fate is Fate.FROZEN
    elsewhere = attrs.evolve(emptied, let_in=(Withheld(_SPAN.moved(PAGE_BYTES), b"wf"),))
    assert decide(region, elsewhere).fate is Fate.ABSENT


def test_a_shared_device_is_live() -> None:
    assert decide(_region(Kind.OPAQUE, shared=True), _FORKED).fate is Fate.LIVE


@pytest.mark.parametrize("shared", [False, True])
def test_without_a_fork_what_was_not_copied_is_absent(shared: bool) -> None:
    region = _region(Kind.SHARED if shared else Kind.ANONYMOUS)
    assert decide(region, _COPIED_ALL).fate is Fate.ABSENT


def test_shared_memory_is_wanted_unless_its_file_is_steady() -> None:
    region = _region(Kind.SHARED)
    layout, known = Layout((region,)), VmaFlags(_uses(), (), 0)
    assert [one.region for one in find_wanted(layout, known, frozenset(), frozenset())] == [region]
    assert not list(find_wanted(layout, known, frozenset(), frozenset((_KEY,))))


def test_memory_that_is_let_into_the_fork_is_not_wanted() -> None:
    layout, known = Layout((_region(Kind.ANONYMOUS),)), VmaFlags(_uses(b"dc"), (), 0)
    assert len(list(find_wanted(layout, known, frozenset(), frozenset()))) == 1
    assert not list(find_wanted(layout, known, frozenset((Withheld(_SPAN, b"dc"),)), frozenset()))


def test_without_a_fork_private_memory_is_wanted_that_can_be_read_without_waiting() -> None:
    known = VmaFlags(_uses(), (), 0)
    for region, fetched, wanted in (
        (_region(Kind.ANONYMOUS), (), True),
        (_region(Kind.PRIVATE_FILE), (), True),
        (_region(Kind.ANONYMOUS), (_SPAN,), False),
        (_region(Kind.PRIVATE_FILE, served=True), (), False),
        (_region(Kind.SHARED), (), False),
        (_region(Kind.UNREADABLE), (), False),
    ):
        found = find_private(Layout((region,)), attrs.evolve(known, fetched=fetched))
        assert bool(list(found)) is wanted


def test_flags_are_those_of_the_process_where_it_has_the_same_vma() -> None:
    layout = Layout((_region(Kind.ANONYMOUS),))
    locked, fork = _uses(b"lo"), _uses()
    assert uses_of_process(layout, layout, locked, fork) == locked
    assert uses_of_process(layout, Layout(()), locked, fork) == fork
    assert uses_of_process(layout, layout, locked, {}) == locked
