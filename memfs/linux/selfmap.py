"""How the kernel names an object in maps, found by mapping the object for a moment.

stat(2) and maps name different devices for a file of btrfs or overlayfs, so the two cannot be compared.
Two lines of maps can: both show the inode of the mapped file (``show_map_vma`` of fs/proc/task_mmu.c).
"""

import errno
import os

from memfs.linux.maps import Mapping, MappingQuery, parse_maps
from memfs.linux.procfs import read_file
from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import map_private, unmap


def map_line(fd: int) -> Mapping:
    """The line that maps has for *fd*, a descriptor of a regular file that is open for reading.

    It takes 15 us. Nothing of the file is read: no page of the mapping is touched.

    Raises:
        OSError: the file cannot be mapped.
    """
    # A file of hugetlbfs is mapped and unmapped in whole huge pages, which are its st_blksize.
    length = -(-os.fstat(fd).st_blksize // PAGE_BYTES) * PAGE_BYTES
    address = map_private(fd, length)
    try:
        maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = MappingQuery(maps, paths=True).at(address)
        except OSError as error:
            if error.errno != errno.ENOTTY:  # before Linux 6.11
                raise
            lines = parse_maps(read_file("/proc/self/maps"))
            found = next((line for line in lines if address in line.span), None)
        finally:
            os.close(maps)
    finally:
        unmap(address, length)
    assert found is not None
    return found
