"""Looks into a process that end in time, whatever the process or a file server does.

A read of mapped memory may wait for a server that never answers, in a state in which no signal ends it; so
may the opening of a mapped file. A tracer that waited there would leave its target stopped. So a thread of
its own looks, and who needs the answer waits for it only so long.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from memfs.errors import TargetBusy
from memfs.linux.syscalls import read_process

T = TypeVar("T")


class BoundedLooks:
    """The thread that looks. Once it has been late it is of no use any more."""

    def __init__(self, pid: int) -> None:
        """Look into process *pid*."""
        self._pid = pid
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._thread.submit(int).result()  # so that it is there when time matters
        self._late = False

    def run(self, look: Callable[[], T], patience_s: float) -> T:
        """What *look* returns or raises.

        Raises:
            TargetBusy: it takes longer than *patience_s*.
        """
        if not self._late:
            answer = self._thread.submit(look)
            if wait([answer], patience_s).done:
                return answer.result()
            self._late = True
        raise TargetBusy(
            f"memory of process {self._pid} does not come in time",
            "a server of files that it has mapped does not answer: mend that, and try again",
        )

    def peek(self, address: int, size_bytes: int, patience_s: float) -> bytes:
        """So many bytes of its memory.

        Raises:
            OSError: they cannot be read.
            TargetBusy: as :meth:`run`.
        """
        return self.run(lambda: read_memory(self._pid, address, size_bytes), patience_s)


def read_memory(pid: int, address: int, size_bytes: int) -> bytes:
    """So many bytes of *pid*, fewer where the next page cannot be read. It may wait without end.

    Raises:
        OSError: not even the first page can be read.
    """
    content = bytearray(size_bytes)
    return bytes(content[: read_process(pid, (address, memoryview(content)))])
