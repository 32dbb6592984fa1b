"""Settings of the machine that a test may change for a while, and puts back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")


@contextmanager
def huge_pages(count: int) -> Iterator[int]:
    """Have at least *count* huge pages reserved (kind ``hugetlb`` needs 4); yields how many there are."""
    before = int(_HUGE_PAGES.read_text())
    if before < count:
        _HUGE_PAGES.write_text(str(count))
    try:
        yield int(_HUGE_PAGES.read_text())
    finally:
        _HUGE_PAGES.write_text(str(before))
