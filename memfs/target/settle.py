"""A frozen copy once its process goes on: what nobody stands still for.

The copy is made to run system calls, as its process was, and with the same distrust. Some need text in its
memory: that is written into a page of its own, where the process has nothing, so no byte that is shown of
the copy changes.
"""

import contextlib
import os
from collections.abc import Iterable

import attrs

from memfs.linux.arch import Call
from memfs.linux.areas import MAP_BYTES, PR_SET_MM, PR_SET_MM_MAP, Areas, read_areas
from memfs.linux.ptrace import Option
from memfs.linux.span import PAGE_BYTES, Span
from memfs.target import withheld
from memfs.target.fork import Forked, explained
from memfs.target.injection import Injection
from memfs.target.layout import Layout

_FIRST_TO_BE_KILLED = b"1000"
_NAME = b"memfs-snapshot"
_PR_SET_NAME = 15  # <linux/prctl.h>
_READ_WRITE = 3  # PROT_READ | PROT_WRITE, <asm-generic/mman-common.h>
_PRIVATE_NEW = 0x02 | 0x20 | 0x100000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_NO_FILE = -1
_LOWEST = 1 << 16  # vm.mmap_min_addr is not above it
_HIGHEST = 1 << 47
_AREAS_AT, _ROOT_AT, _ARGUMENTS_AT = 0, 256, 512


def settle(forked: Forked, pid: int, layout: Layout) -> int:
    """Make the copy of process *pid*, which maps *layout*, what it is to be.

    What it holds is kept out of its own forks as it is of its process's: it never forks, but a VMA is told
    from its neighbour by that. In lists of processes it has a name and arguments of its own, and its
    working directory is that of no one.

    Returns the address of the page that it has besides; 0 where it has none, and keeps its names.

    Raises:
        CannotFreeze, TargetStuck, TargetExited: as :func:`memfs.target.fork.fork_copy`.
    """
    copy = forked.copy.pid
    with contextlib.suppress(OSError), open(f"/proc/{copy}/oom_score_adj", "wb") as file:
        file.write(_FIRST_TO_BE_KILLED)
    with contextlib.suppress(OSError):  # all that it ever runs for itself is its end, which is not urgent
        os.sched_setscheduler(copy, os.SCHED_OTHER, os.sched_param(0))
    with explained(pid):
        injection = forked.parent.beside(forked.copy.pid, extra=Option.EXIT_KILL)
        withheld.keep_out(injection, forked.let_in)
        page = _find_free_page(layout, forked.parent.reach)
        if not page or not _map_page(injection, page):
            return 0
        if _write(copy, page, _text_of(read_areas(copy), pid, page, layout)):
            _call(injection, Call.PRCTL, _PR_SET_NAME, page + _ARGUMENTS_AT, 0, 0, 0, 0)
            _call(injection, Call.PRCTL, PR_SET_MM, PR_SET_MM_MAP, page + _AREAS_AT, MAP_BYTES, 0, 0)
            _call(injection, Call.CHDIR, page + _ROOT_AT, 0, 0, 0, 0, 0)
        return page


def _text_of(areas: Areas, pid: int, page: int, layout: Layout) -> bytes:
    """What stands in the page at *page*: arguments of calls, and those that the copy shows as its own."""
    words = b"\0".join((_NAME, b"of", b"process", b"%d" % pid, b""))
    arguments = Span(page + _ARGUMENTS_AT, page + _ARGUMENTS_AT + len(words))
    heap = [r.span.end for r in layout.regions if r.mapping.path == b"[heap]" and not r.mapping.backed]
    packed = attrs.evolve(areas, arguments=arguments).pack(max(heap, default=areas.heap_start))
    return packed.ljust(_ROOT_AT, b"\0") + b"/".ljust(_ARGUMENTS_AT - _ROOT_AT, b"\0") + words


def detach_segments(forked: Forked, pid: int, addresses: Iterable[int]) -> None:
    """Detach the System V segments at *addresses* from the copy of process *pid*: they count attachments.

    Raises:
        CannotFreeze, TargetStuck, TargetExited: as :func:`memfs.target.fork.fork_copy`.
    """
    with explained(pid):
        injection = forked.parent.beside(forked.copy.pid, extra=Option.EXIT_KILL)
        for address in addresses:
            _call(injection, Call.SHMDT, address, 0, 0, 0, 0, 0)


def _call(injection: Injection, call: Call, *arguments: int) -> bool:
    """Have the copy run *call*; returns whether the kernel did not refuse it."""
    try:
        injection.call(call, *arguments)
    except TimeoutError:
        raise
    except OSError:
        return False
    return True


def _map_page(injection: Injection, at: int) -> bool:
    """Map a page at *at*; returns whether it is there."""
    try:
        return injection.call(Call.MMAP, at, PAGE_BYTES, _READ_WRITE, _PRIVATE_NEW, _NO_FILE, 0) == at
    except TimeoutError:
        raise
    except OSError:
        return False


def _find_free_page(layout: Layout, reach: int) -> int:
    """A page in the middle of the largest gap of *layout*, apart from all else; 0 where there is none."""
    highest = min(_HIGHEST, reach // 2)  # above it a 32-bit result would be an errno
    gap = Span(0, 0)
    at = _LOWEST
    for region in layout.regions:
        if region.span.start > highest:
            break
        if region.span.start - at > gap.size:
            gap = Span(at, region.span.start)
        at = max(at, region.span.end)
    return (gap.start + gap.size // 2) & -PAGE_BYTES if gap.size > 3 * PAGE_BYTES else 0


def _write(copy: int, address: int, text: bytes) -> bool:
    """Write *text* into the copy's own page; returns whether that could be done."""
    with contextlib.suppress(OSError), open(f"/proc/{copy}/mem", "r+b", buffering=0) as memory:
        return os.pwrite(memory.fileno(), text, address) == len(text)
    return False
