"""Memory that a process keeps out of its forks (madvise(2)), let into one of them and kept out again.

MADV_DONTFORK and MADV_WIPEONFORK are flags of a VMA, no pages: a fork can copy such memory like any other.
So the stopped process is made to take the flag away before it forks, and to set it again after that. It
must not be set where it was not, or later forks would lack memory that they need. What smaps told before
the stop may be outdated, so the kernel is asked in the stop which VMAs have it, in one of two ways:

- of each VMA the flag of its first page is set, which changes nothing where the VMA has it, and splits that
  page off where it has not;
- a fork that is made for that alone lacks just the VMAs that have MADV_DONTFORK (``dup_mmap``, mm/mmap.c).

Memory can be sealed, so that the flag cannot be set (mseal(2), Linux 6.10): it is left alone.

A VMA without its flag may be merged with a neighbour. Setting the flag again splits it off at the same
addresses, as the two were not merged before because of the flag alone. VMAs that follow each other, with
nothing between them but free addresses, are advised by one call: madvise(2) passes over gaps.
"""

import enum
import errno
import itertools
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.arch import Call
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.injection import Injection
from memfs.target.layout import Kind, Layout, Region

MOST_RUNS = 1024
"""Runs of VMAs that are let in, at most: each takes 0.1 ms of the stop."""
_CALL_BYTES = 4 << 20
"""A fork copies page tables of so much memory while the process runs one call of ours."""
_FORK_CALLS = 48
"""So many calls a fork takes besides."""

Among = Callable[[list[int]], frozenset[int]]
"""Tells which of some addresses have a quality."""


class Advice(enum.IntEnum):
    """``MADV_*`` of <asm-generic/mman-common.h>."""

    DONTFORK = 10
    DOFORK = 11
    WIPEONFORK = 18
    KEEPONFORK = 19


DONTFORK = b"dc"
_WIPEONFORK = b"wf"
_ADVICE = {
    DONTFORK: (Advice.DONTFORK, Advice.DOFORK),
    _WIPEONFORK: (Advice.WIPEONFORK, Advice.KEEPONFORK),
}
FLAGS = frozenset(_ADVICE)
"""Of smaps: MADV_DONTFORK and MADV_WIPEONFORK."""
_LEFT_ALONE = frozenset((b"io", b"pf", b"mm", b"de", b"dp", b"sl"))
"""VM_SPECIAL, VM_DROPPABLE, VM_SEALED: a flag cannot be taken away, or not set again (mm/madvise.c)."""
_OF_A_DEVICE = frozenset((b"io", b"pf"))
_KINDS = (Kind.ANONYMOUS, Kind.PRIVATE_FILE, Kind.SHARED)
_SEGMENT = b"/SYSV"  # a VMA of it that is split counts as two attachments
_OF_THE_KERNEL = (b"[heap]", b"[stack]")


@attrs.frozen
class Withheld:
    """A VMA that is left out of forks, or emptied in them.

    Attributes:
        flag: of smaps, ``dc`` or ``wf``.
        line: of maps, from 0.
    """

    span: Span
    flag: bytes
    line: int = attrs.field(default=0, eq=False)

    @property
    def setting(self) -> Advice:
        """What sets the flag."""
        return _ADVICE[self.flag][0]

    @property
    def clearing(self) -> Advice:
        """What takes it away."""
        return _ADVICE[self.flag][1]

    @property
    def first_page(self) -> Span:
        """What is asked."""
        return Span(self.span.start, self.span.start + PAGE_BYTES)


@attrs.frozen
class Asking:
    """How to find out what has its flag in the stop.

    Attributes:
        beginning: tells at which addresses a VMA begins now.
        lacking: tells at which of the addresses of VMAs a fork has none; None where that is not to be used.
    """

    beginning: Among
    lacking: Among | None = None


def may_be_pinned(layout: Layout, uses: ReadOnlyDict[int, MemoryUse]) -> bool:
    """Whether a device may have pinned memory of the process for good: it maps registers of one.

    Pinned pages are copied inside the fork itself (``copy_present_page``, mm/memory.c). What is given to
    a device is often kept out of forks, by ibv_fork_init(3) and by QEMU, and may be all there is.
    """
    return any(
        region.mapping.backed and use.flags & _OF_A_DEVICE
        for region in layout.regions
        if (use := uses.get(region.span.start)) is not None
    )


def find_withheld(
    layout: Layout, before: Layout, uses: ReadOnlyDict[int, MemoryUse], *, doubt_all: bool = False
) -> list[Withheld]:
    """What in *layout* is likely to be withheld, in order of flags and addresses.

    Args:
        before: how the process was mapped after smaps had told *uses*. Where that has changed, or smaps
            told nothing, and there is withheld memory at all, anonymous memory is in doubt, and among what is
            found.
        doubt_all: so is all other anonymous memory: it may have been advised since.
    """
    if not any(use.flags & FLAGS for use in uses.values()) or may_be_pinned(before, uses):
        return []
    doubts = any(DONTFORK in use.flags for use in uses.values())
    found = []
    for line, region in enumerate(layout.regions):
        if not _can_be_let_in(region):
            continue
        use = uses.get(region.span.start)
        changed = use is None or before.at(region.span.start) != region
        if changed or (doubt_all and use is not None and not use.flags & (FLAGS | _LEFT_ALONE)):
            if doubts and region.kind is Kind.ANONYMOUS and region.mapping.path not in _OF_THE_KERNEL:
                found.append(Withheld(region.span, DONTFORK, line))
        elif use is not None and not use.flags & _LEFT_ALONE:
            found += [Withheld(region.span, flag, line) for flag in use.flags & FLAGS]
    return sorted(itertools.chain(*_largest(found)), key=_order)


def is_better_asked_by_fork(wanted: Iterable[Withheld], uses: ReadOnlyDict[int, MemoryUse]) -> bool:
    """Whether a fork that lacks what is *wanted* is made sooner than each VMA is asked."""
    others = sum(use.resident_bytes for use in uses.values() if DONTFORK not in use.flags)
    return _count(wanted, DONTFORK) > _FORK_CALLS + others // _CALL_BYTES


def _count(wanted: Iterable[Withheld], flag: bytes) -> int:
    return sum(one.flag == flag for one in wanted)


def _order(one: Withheld) -> tuple[bytes, int]:
    return one.flag, one.line


def _runs(wanted: Iterable[Withheld]) -> list[list[Withheld]]:
    """Those with one flag and nothing else mapped between them, together."""
    runs: list[list[Withheld]] = []
    for one in sorted(wanted, key=_order):
        if runs and (runs[-1][-1].flag, runs[-1][-1].line + 1) == _order(one):
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs


def _can_be_let_in(region: Region) -> bool:
    """One page is too small to be asked whether it has the flag."""
    return (
        region.kind in _KINDS
        and region.span.size > PAGE_BYTES
        and not region.mapping.path.startswith(_SEGMENT)
    )


def _largest(wanted: Iterable[Withheld]) -> list[list[Withheld]]:
    """The largest runs of *wanted*, as many as may be let in."""
    return sorted(_runs(wanted), key=lambda run: -sum(one.span.size for one in run))[:MOST_RUNS]


def let_in(
    helper: Injection, process: Injection, wanted: Sequence[Withheld], asking: Asking
) -> list[Withheld]:
    """Take the flags of *wanted* away until the thread of *process* gets its registers back.

    Args:
        helper: runs the calls, and shares the memory of *process*.
        asking: how to find out which of them have their flag.

    Returns those that had their flag, and have it no more.

    Raises:
        Diverted, Killed, TimeoutError: the thread does not do it. What was done is undone later.
    """
    having: list[Withheld] = []
    lacking = _lacking(wanted, asking)
    if lacking is not None:
        shown = _runs(one for one in wanted if one.flag == DONTFORK and one.span.start in lacking)
        having += itertools.chain(*(run for run in shown if _advise(helper, run, run[0].setting)))
        wanted = [one for one in wanted if one.flag != DONTFORK]
    having += _having_flag(helper, process, wanted, asking.beginning)
    found = []
    for run in _largest(having):
        process.defer(Call.MADVISE, *_arguments(_whole(run), run[0].setting))
        if _advise(helper, run, run[0].clearing):
            found += run
    return found


def _lacking(wanted: Iterable[Withheld], asking: Asking) -> frozenset[int] | None:
    """Where a fork lacks what is *wanted*; None where none can be had, or is not to be used."""
    if asking.lacking is None:
        return None
    try:
        return asking.lacking([one.span.start for one in wanted if one.flag == DONTFORK])
    except TimeoutError:
        raise
    except OSError:  # a limit of processes leaves room for the copy alone
        return None


def _having_flag(
    helper: Injection, process: Injection, wanted: Iterable[Withheld], beginning: Among
) -> list[Withheld]:
    """Those of *wanted* that have their flag, and let it be set."""
    asked = []
    for one in wanted:
        undoing = _arguments(one.first_page, one.clearing)
        process.defer(Call.MADVISE, *undoing)
        if _advise_span(helper, one.first_page, one.setting):
            asked.append(one)
        else:
            process.forget(Call.MADVISE, *undoing)
    split = beginning([one.first_page.end for one in asked]) if asked else frozenset()
    having = []
    for one in asked:
        first_page = one.first_page
        if first_page.end in split:
            _advise_span(helper, first_page, one.clearing)
        else:
            having.append(one)
        process.forget(Call.MADVISE, *_arguments(first_page, one.clearing))
    return having


def keep_out(injection: Injection, found: Iterable[Withheld]) -> None:
    """Set the flags of *found* again, by a thread of the same memory or of a copy of it.

    Raises:
        Diverted, Killed, TimeoutError: the thread does not do it.
    """
    for run in _runs(found):
        _advise(injection, run, run[0].setting)


def _whole(run: Sequence[Withheld]) -> Span:
    return Span(run[0].span.start, run[-1].span.end)


def _advise(injection: Injection, run: Sequence[Withheld], advice: Advice) -> bool:
    """Have the thread call madvise(2) for all of *run*."""
    return _advise_span(injection, _whole(run), advice, gaps=len(run) > 1)


def _advise_span(injection: Injection, span: Span, advice: Advice, *, gaps: bool = False) -> bool:
    """Have the thread call madvise(2); returns whether the kernel did not refuse it.

    Where there are *gaps*, ENOMEM says just that: all else was advised (``madvise_walk_vmas``, mm/madvise.c).
    """
    try:
        injection.call(Call.MADVISE, *_arguments(span, advice))
    except TimeoutError:
        raise
    except OSError as error:
        return gaps and error.errno == errno.ENOMEM
    return True


def _arguments(span: Span, advice: Advice) -> tuple[int, ...]:
    return span.start, span.size, advice, 0, 0, 0
