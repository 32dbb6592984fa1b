"""Pages that are swapped out, and that are so again once they have been read.

To read them the kernel brings them in, and charges them to the memory cgroup of the process that they belong
to. Where that is full, as it is where something had to be swapped out, other pages of the process must go for
them; and where they do not go fast enough, the kernel kills the process. So what a read has brought in is
reclaimed right after it. Its copy in the swap area is still good as a rule, and nothing is written.

Not everyone may have the memory of another process reclaimed (CAP_SYS_NICE). Who may not reads swapped pages
only where there is room enough for them.
"""

import contextlib
import errno
import logging
from collections.abc import Sequence

from memfs.errors import NoRoom
from memfs.linux.advice import PagingAdvice
from memfs.linux.span import Span
from memfs.target.headroom import free_bytes
from memfs.target.identity import ProcessHandle

log = logging.getLogger(__name__)

_LEAST_FREE_BYTES = 64 << 20
"""So much must be free before a page is swapped in that stays: others go on meanwhile."""


class SwapKeeper:
    """Sees to it that reading leaves the pages of one process where they are."""

    def __init__(self, process: ProcessHandle) -> None:
        """Look after the memory of *process*, whose handle stays open for as long as this is used."""
        self._process = process
        self._may_put_back: bool | None = None
        self._told = False

    def expect(self, spans: Sequence[Span], *, ahead: bool) -> None:
        """Get ready for a read of *spans*, which are swapped out.

        Args:
            ahead: have the kernel bring them in all at once, which one read after the other takes twice as
                long for. Only for private memory: of a mapped file it would read the file.

        Raises:
            NoRoom: they would stay in memory, for which there is no room.
        """
        if self._may_put_back is None:
            self._may_put_back = self._advise(PagingAdvice.PAGEOUT, ())
        if not self._may_put_back:
            self._ensure_room()
        elif ahead:
            self._advise(PagingAdvice.WILLNEED, spans)

    def put_back(self, spans: Sequence[Span]) -> None:
        """Have *spans*, which were swapped out before they were read, swapped out again.

        The process may have begun to use one of them in between: then it waits for it once more.
        """
        if self._may_put_back and not self._advise(PagingAdvice.PAGEOUT, spans):
            self._may_put_back = False

    def _advise(self, advice: PagingAdvice, spans: Sequence[Span]) -> bool:
        try:
            self._process.advise(advice, spans)
        except OSError as error:
            # ENOMEM: a part of it was unmapped just now, and the kernel has gone on behind it.
            return error.errno == errno.ENOMEM
        return True

    def _ensure_room(self) -> None:
        pid = self._process.identity.pid
        free = 0
        with contextlib.suppress(OSError):  # what is not known is no room
            free = free_bytes(pid)
        if free < _LEAST_FREE_BYTES:
            error = NoRoom(
                f"memory of process {pid} is swapped out, and there is no room to read it into",
                "mount memfs as root, which puts such pages back",
            )
            if not self._told:
                self._told = True
                log.warning("%s", error)
            raise error
