"""What a question costs in reads, as the kernel counts them: seconds differ from run to run, these do not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs


@attrs.define
class Reads:
    """What a thread has read by system calls, files of /proc included: known when the context has ended."""

    calls: int = 0
    size_bytes: int = 0


@contextmanager
def counted() -> Iterator[Reads]:
    """Count what this thread reads in the context, see ``rchar`` and ``syscr`` in proc_pid_io(5)."""
    reads = Reads()
    first, second = _read_counters(), _read_counters()
    yield reads
    calls, size_bytes = _read_counters()
    # Two readings before tell what a reading itself adds.
    reads.calls = calls - second[0] - (second[0] - first[0])
    reads.size_bytes = size_bytes - second[1] - (second[1] - first[1])


def _read_counters() -> tuple[int, int]:
    """How often this thread has called read and the like, and what came."""
    text = Path(f"/proc/self/task/{threading.get_native_id()}/io").read_text()
    fields = dict(line.split(": ") for line in text.splitlines())
    return int(fields["syscr"]), int(fields["rchar"])
