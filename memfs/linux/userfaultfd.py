"""A userfaultfd as a record of writes: the kernel notes the first write to each page that was protected.

With UFFD_FEATURE_WP_ASYNC (Linux 6.7, ``Documentation/admin-guide/mm/userfaultfd.rst``) a write to a
protected page is let through by the kernel itself: no one is asked, so no one can be kept waiting. Which
pages these were PAGEMAP_SCAN tells (:func:`memfs.linux.pagemap.take_written`). All of it ends with the last
descriptor.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator

from memfs.linux.span import Span

CREATE_FLAGS = os.O_CLOEXEC | 1
"""For userfaultfd(2): UFFD_USER_MODE_ONLY, which everyone may ask for. It limits what is served, not this."""

_API = 0xAA  # <linux/userfaultfd.h>
_UFFDIO_API = 0xC018_AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_UFFDIO_REGISTER = 0xC020_AA00  # _IOWR(0xAA, 0x00, struct uffdio_register)
_UFFDIO_UNREGISTER = 0x8010_AA01  # _IOR(0xAA, 0x01, struct uffdio_range)
_UFFDIO_WRITEPROTECT = 0xC018_AA06  # _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
_FEATURE_WP_UNPOPULATED = 1 << 13
_FEATURE_WP_ASYNC = 1 << 15
_FEATURES = _FEATURE_WP_HUGETLBFS_SHMEM | _FEATURE_WP_UNPOPULATED | _FEATURE_WP_ASYNC
_REGISTER_MODE_WP = 1 << 1
_WRITEPROTECT_MODE_WP = 1 << 0
_TWO = struct.Struct("=2Q")
_THREE = struct.Struct("=3Q")
_FOUR = struct.Struct("=4Q")

_PIECE_BYTES = 16 << 20
"""So much at once: the kernel holds the lock of the address space for as long as it takes."""


class WriteRecord:
    """It owns the descriptor, and belongs to the address space of the process that made it."""

    def __init__(self, fd: int) -> None:
        """Take over *fd*, a new userfaultfd.

        Raises:
            OSError: EINVAL before Linux 6.7.
        """
        self._fd = fd
        self._registered: list[Span] = []
        try:
            fcntl.ioctl(fd, _UFFDIO_API, _THREE.pack(_API, _FEATURES, 0))
        except BaseException:
            os.close(fd)
            raise

    def register(self, span: Span) -> None:
        """Let *span*, whole VMAs that may be written, be protected.

        Raises:
            OSError: EBUSY where the process has a userfaultfd of its own there; EINVAL, EPERM, ENOMEM.
        """
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, _FOUR.pack(span.start, span.size, _REGISTER_MODE_WP, 0))
        self._registered.append(span)

    def protect(self, span: Span) -> None:
        """Note writes from now on, also to what no page is there for yet.

        Raises:
            OSError: ENOENT where it is not registered (any more), EAGAIN, ESRCH.
        """
        for piece in _pieces(span):
            argument = _THREE.pack(piece.start, piece.size, _WRITEPROTECT_MODE_WP)
            fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, argument)

    def close(self) -> None:
        """Lift all protection, in pieces, which the last descriptor's end would do at once."""
        for span in self._registered:
            for piece in _pieces(span):
                with contextlib.suppress(OSError):  # it was unmapped
                    fcntl.ioctl(self._fd, _UFFDIO_UNREGISTER, _TWO.pack(piece.start, piece.size))
        os.close(self._fd)


def _pieces(span: Span) -> Iterator[Span]:
    for start in range(span.start, span.end, _PIECE_BYTES):
        yield Span(start, min(start + _PIECE_BYTES, span.end))
