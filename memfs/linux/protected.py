"""Whether the kernel lets a tracer read what a process keeps from itself: PROT_NONE, write-only, exec-only.

A read of ``/proc/PID/mem`` does so by FOLL_FORCE, which ``proc_mem.force_override=never`` (or ``ptrace``) on
the kernel's command line takes from it (``proc_mem_foll_force`` of fs/proc/base.c, Linux 6.12). Then such a
page gives EIO, as one does that is not there. process_vm_readv(2) never reads it.
"""

import functools
import mmap
import os

from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import address_of


@functools.cache
def shows_protected() -> bool:
    """Whether it does, seen by trying: of a page of our own that may be written only."""
    page = mmap.mmap(-1, PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_WRITE)
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return len(os.pread(memory, 1, address_of(page))) == 1
    except OSError:
        return False
    finally:
        os.close(memory)
