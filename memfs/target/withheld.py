"""Memory that a process keeps out of its forks (madvise(2)), let into one of them and kept out again.

MADVDONTFORK and MADV_WIPEONFORK are flags of a VMA, no pages: a fork can copy such memory like any other.
So the stopped process is made to take the flag away before it forks, and to set it again after that. It
must not be set where it was not, or later forks would lack memory that they need. What smaps told before
the stop may be outdated, so each VMA is asked: to set the flag of its first page changes nothing where the
VMA has it, and splits that page off where it has not. Sealed memory (mseal(2), Linux 6.10) does not let it
be set: it is left alone.

A VMA without its flag may be merged with a neighbour. Setting the flag again splits it off at the same
addresses, as the two were not merged before because of the flag alone.
"""

import enum
from collections.abc import Callable, Iterable
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.arch import Call
from memfs.linux.smaps import MemoryUse
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target.injection import Injection
from memfs.target.layout import Kind, Layout, Region

MOST = 64
"""VMAs that are let in, at most: each takes 0.3 to 0.5 ms of the stop."""

Beginning = Callable[[list[int]], frozenset[int]]
"""Tells at which of some addresses a VMA begins now."""


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
    """

    span: Span
    flag: bytes

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


def find_withheld(layout: Layout, before: Layout, uses: ReadOnlyDict[int, MemoryUse]) -> list[Withheld]:
    """What in *layout* is likely to be withheld, the largest first.

    Args:
        before: how the process was mapped when smaps told *uses*. Where that has changed, and there is
            withheld memory at all, anonymous memory is in doubt, and among what is found.
    """
    if not any(use.flags & FLAGS for use in uses.values()) or may_be_pinned(before, uses):
        return []
    doubts = any(DONTFORK in use.flags for use in uses.values())
    found = []
    for region in layout.regions:
        if not _can_be_let_in(region):
            continue
        if before.at(region.span.start) != region:
            if doubts and region.kind is Kind.ANONYMOUS and region.mapping.path not in _OF_THE_KERNEL:
                found.append(Withheld(region.span, DONTFORK))
            continue
        use = uses.get(region.span.start)
        if use is not None and not use.flags & _LEFT_ALONE:
            found += [Withheld(region.span, flag) for flag in use.flags & FLAGS]
    found.sort(key=lambda one: -one.span.size)
    return found[:MOST]


def _can_be_let_in(region: Region) -> bool:
    """One page is too small to be asked whether it has the flag."""
    return (
        region.kind in _KINDS
        and region.span.size > PAGE_BYTES
        and not region.mapping.path.startswith(_SEGMENT)
    )


def let_in(injection: Injection, wanted: Iterable[Withheld], beginning: Beginning) -> list[Withheld]:
    """Take the flags of *wanted* away until the thread of *injection* gets its registers back.

    Returns those that had their flag, and have it no more.

    Raises:
        Diverted, Killed, TimeoutError: the thread does not do it. What was done is undone later.
    """
    found = []
    for one in _having_flag(injection, wanted, beginning):
        injection.defer(Call.MADVISE, *_arguments(one.span, one.setting))
        if _advise(injection, one.span, one.clearing):
            found.append(one)
    return found


def _having_flag(injection: Injection, wanted: Iterable[Withheld], beginning: Beginning) -> list[Withheld]:
    """Those of *wanted* that have their flag, and let it be set."""
    asked = []
    for one in wanted:
        undoing = _arguments(one.first_page, one.clearing)
        injection.defer(Call.MADVISE, *undoing)
        if _advise(injection, one.first_page, one.setting):
            asked.append(one)
        else:
            injection.forget(Call.MADVISE, *undoing)
    split = beginning([one.first_page.end for one in asked]) if asked else frozenset()
    having = []
    for one in asked:
        first_page = one.first_page
        if first_page.end in split:
            _advise(injection, first_page, one.clearing)
        else:
            having.append(one)
        injection.forget(Call.MADVISE, *_arguments(first_page, one.clearing))
    return having


def keep_out(injection: Injection, found: Iterable[Withheld]) -> None:
    """Set the flags of *found* again, by a thread of the same memory or of a copy of it.

    Raises:
        Diverted, Killed, TimeoutError: the thread does not do it.
    """
    for one in found:
        _advise(injection, one.span, one.setting)


def _advise(injection: Injection, span: Span, advice: Advice) -> bool:
    """Have the thread call madvise(2); returns whether the kernel did not refuse it."""
    try:
        injection.call(Call.MADVISE, *_arguments(span, advice))
    except TimeoutError:
        raise
    except OSError:
        return False
    return True


def _arguments(span: Span, advice: Advice) -> tuple[int, ...]:
    return span.start, span.size, advice, 0, 0, 0
