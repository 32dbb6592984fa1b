"""Pages that two forks share and pages that they do not, by the frames that the kernel names."""

import ctypes
import itertools
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from memfs.linux.frames import Comparer, shows_frames
from memfs.linux.span import PAGE_BYTES, Span

PAGES = 20_000  # more than are compared at once


@pytest.fixture(autouse=True)
def _frames() -> None:
    if not shows_frames():
        pytest.skip("frame numbers need CAP_SYS_ADMIN")


@contextmanager
def frozen_fork() -> Iterator[int]:
    """A forked child that does nothing: a descriptor of its pagemap."""
    end, keep = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(keep)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    pagemap = os.open(f"/proc/{child}/pagemap", os.O_RDONLY)
    try:
        yield pagemap
    finally:
        os.close(pagemap)
        os.close(keep)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "written",
    [
        [],
        [0],
        [PAGES - 1],
        [1, 2, 3, 8190, 8191, 8192, 8193, 16383, 16384],
        list(range(0, PAGES, 2)),
        list(range(PAGES)),
    ],
    ids=["none", "first", "last", "over-the-edges", "every-other", "all"],
)
def test_exactly_the_pages_written_between_two_forks_differ(written: list[int]) -> None:
    memory = mmap.mmap(-1, PAGES * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, PAGES, 3):  # the others stay untouched
        memory[page * PAGE_BYTES] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    comparer = Comparer()
    with frozen_fork() as one:
        for page in written:
            memory[page * PAGE_BYTES] = 2
        with frozen_fork() as other:
            spans = list(comparer.differing(one, other, Span(start, start + PAGES * PAGE_BYTES)))
    comparer.close()
    pages = [(at - start) // PAGE_BYTES for span in spans for at in range(span.start, span.end, PAGE_BYTES)]
    assert pages == written
    assert all(span.end < after.start for span, after in itertools.pairwise(spans))


def test_an_address_space_that_is_gone_is_no_proof() -> None:
    memory = mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with frozen_fork() as other:
        gone = os.dup(other)
    comparer = Comparer()
    with pytest.raises(ProcessLookupError):
        list(comparer.differing(gone, gone, Span(start, start + PAGE_BYTES)))
    comparer.close()
    os.close(gone)
