"""Which VMAs a process is made to let into a fork: by what the kernel's flags say of them."""

import pytest

from memfs.linux.maps import Access, Mapping
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.layout import Kind, Layout, Region
from memfs.target.withheld import MOST_RUNS, Withheld, find_withheld, is_better_asked_by_fork

_WRITABLE = frozenset((b"rd", b"wr", b"mr", b"mw", b"me"))
_DEVICE = (1, 5)


def _region(number: int, kind: Kind, pages: int = 4, path: bytes = b"") -> Region:
    start = (16 * number + 16) * PAGE_BYTES
    backed = kind in (Kind.PRIVATE_FILE, Kind.SHARED, Kind.UNREADABLE)
    access = Access.READ | Access.WRITE | (Access.SHARED if kind is Kind.SHARED else Access(0))
    span = Span(start, start + pages * PAGE_BYTES)
    return Region(Mapping(span, access, 0, _DEVICE if backed else (0, 0), 1 if backed else 0, path), kind)


def _uses(*found: tuple[Region, set[bytes]]) -> dict[int, MemoryUse]:
    return {
        region.span.start: MemoryUse(region.span.start, 0, 0, _WRITABLE | flags) for region, flags in found
    }


@pytest.mark.parametrize("flag", [b"dc", b"wf"])
@pytest.mark.parametrize("kind", [Kind.ANONYMOUS, Kind.PRIVATE_FILE, Kind.SHARED])
def test_memory_with_the_flag_is_found(kind: Kind, flag: bytes) -> None:
    region = _region(0, kind)
    layout = Layout((region,))
    assert find_withheld(layout, layout, _uses((region, {flag}))) == [Withheld(region.span, flag)]
    assert not find_withheld(layout, layout, _uses((region, set())))


@pytest.mark.parametrize("flag", [b"io", b"pf", b"mm", b"de", b"dp", b"sl"])
def test_what_the_kernel_would_not_let_be_undone_is_left_alone(flag: bytes) -> None:
    region = _region(0, Kind.ANONYMOUS)
    layout = Layout((region,))
    assert not find_withheld(layout, layout, _uses((region, {b"dc", flag})))


def test_drivers_segments_and_single_pages_are_left_alone() -> None:
    regions = (
        _region(0, Kind.OPAQUE),
        _region(1, Kind.UNREADABLE),
        _region(2, Kind.SHARED, path=b"/SYSV00000000 (deleted)"),
        _region(3, Kind.ANONYMOUS, pages=1),
    )
    layout = Layout(regions)
    assert not find_withheld(layout, layout, _uses(*((region, {b"dc"}) for region in regions)))


@pytest.mark.parametrize("flag", [b"io", b"pf"])
def test_beside_registers_of_a_device_nothing_is_let_in_since_it_may_have_pinned_it(flag: bytes) -> None:
    memory, registers = _region(0, Kind.ANONYMOUS), _region(1, Kind.UNREADABLE, path=b"/dev/vfio/1")
    layout = Layout((memory, registers))
    uses = _uses((memory, {b"dc"}), (registers, {b"dc", flag}))
    assert not find_withheld(layout, layout, uses)


def test_what_was_mapped_since_is_asked_only_where_there_is_such_memory() -> None:
    old, new, heap = (
        _region(0, Kind.ANONYMOUS),
        _region(1, Kind.ANONYMOUS),
        _region(2, Kind.ANONYMOUS, path=b"[heap]"),
    )
    before, now = Layout((old,)), Layout((old, new, heap))
    assert not find_withheld(now, before, _uses((old, {b"wf"})))[1:]
    assert find_withheld(now, before, _uses((old, {b"dc"}))) == [
        Withheld(old.span, b"dc"),
        Withheld(new.span, b"dc"),
    ]


def test_what_was_mapped_after_smaps_had_been_read_and_before_maps_is_asked() -> None:
    old, new = _region(0, Kind.ANONYMOUS), _region(1, Kind.ANONYMOUS)
    layout = Layout((old, new))
    assert find_withheld(layout, layout, _uses((old, {b"dc"})))[1:] == [Withheld(new.span, b"dc")]


def test_all_anonymous_memory_can_be_in_doubt_for_it_may_have_been_advised_since() -> None:
    old, plain, sealed = (_region(number, Kind.ANONYMOUS) for number in range(3))
    layout = Layout((old, plain, sealed))
    uses = _uses((old, {b"dc"}), (plain, set()), (sealed, {b"sl"}))
    assert find_withheld(layout, layout, uses, doubt_all=True)[1:] == [Withheld(plain.span, b"dc")]


def test_vmas_with_nothing_between_them_are_one_run_and_the_largest_runs_are_taken() -> None:
    """Every third VMA is another one, so two withheld ones follow each other."""
    regions = tuple(
        _region(number, Kind.ANONYMOUS, pages=2 + number % 9) for number in range(3 * MOST_RUNS + 30)
    )
    layout = Layout(regions)
    uses = _uses(*((region, {b"dc"} if at % 3 else set()) for at, region in enumerate(regions)))
    found = find_withheld(layout, layout, uses)
    assert len(found) == 2 * MOST_RUNS
    assert [one.line % 3 for one in found] == [1, 2] * MOST_RUNS
    sizes = {one.line: one.span.size for one in found}
    left = [region.span.size for number, region in enumerate(regions) if number % 3 and number not in sizes]
    runs = [sizes[one.line] + sizes[one.line + 1] for one in found if one.line % 3 == 1]
    assert min(runs) >= max(left[at] + left[at + 1] for at in range(0, len(left), 2))


def test_a_fork_is_asked_where_that_takes_less_than_to_ask_each() -> None:
    regions = tuple(_region(number, Kind.ANONYMOUS) for number in range(201))
    wanted = [Withheld(region.span, b"dc", line) for line, region in enumerate(regions[:-1])]
    uses = _uses(*((region, {b"dc"}) for region in regions[:-1]), (regions[-1], set()))
    assert is_better_asked_by_fork(wanted, uses)
    assert not is_better_asked_by_fork(wanted[:8], uses)
    assert not is_better_asked_by_fork([Withheld(one.span, b"wf", one.line) for one in wanted], uses)
    other = regions[-1].span.start
    assert not is_better_asked_by_fork(wanted, {**uses, other: MemoryUse(other, 1 << 30, 0, _WRITABLE)})
