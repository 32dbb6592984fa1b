"""Times of files whose content never stands still."""

import os
import time

from mount.mounted import Mount, opened
from support.target import Target


def test_no_time_moves_between_a_look_before_the_open_and_one_after_the_read(
    memfs: Mount, holder: Target
) -> None:
    """tar 1.34 compares ctime, tar 1.35 mtime: it calls a file changed, with status 1, if one has moved."""
    file = memfs.vma(holder.pid, holder.mapping("private-full"))
    before = os.stat(file)
    with opened(file) as descriptor:
        while os.read(descriptor, 1 << 16):
            pass
        after = os.fstat(descriptor)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_the_times_of_directories_and_links_never_move(memfs: Mount, holder: Target) -> None:
    process = memfs.process(holder.pid)
    for path in (process, process / "vmas", process / "stack"):
        one, other = os.lstat(path), os.lstat(path)
        assert one.st_mtime_ns == other.st_mtime_ns == one.st_ctime_ns


def test_the_time_of_a_file_that_is_not_open_is_now(memfs: Mount, holder: Target) -> None:
    earliest = time.time_ns()
    file = memfs.vma(holder.pid, holder.mapping("private-full"))
    assert earliest <= os.stat(file).st_mtime_ns <= time.time_ns()
