"""The numbers by which a process is known inside its own namespaces: those that its core file has.

The kernel writes a core in the pid and user namespaces of the process (``fill_prstatus`` and
``fill_psinfo``, fs/binfmt_elf.c). ``/proc/PID/status`` tells the pids of each namespace from ours inwards;
``uid_map`` tells what ours are called there.
"""

import contextlib
import os
import re

import attrs

from memfs.linux.procfs import read_file, thread_ids

_OVERFLOW_ID = 65534  # DEFAULT_OVERFLOWUID, <linux/highuid.h>
_LINE = re.compile(rb"^(NSpid|NSpgid|NSsid|Uid|Gid|PPid):\t(.*)$", re.MULTILINE)


@attrs.frozen
class Inside:
    """One process.

    Attributes:
        parent: 0 where that is outside.
        group, session: the same.
        uid, gid: the real ones.
    """

    pid: int
    parent: int
    group: int
    session: int
    uid: int
    gid: int


def _fields(text: bytes) -> dict[bytes, list[int]]:
    return {name: [int(word) for word in values.split()] for name, values in _LINE.findall(text)}


def read_inside(pid: int) -> Inside:
    """The numbers of process *pid*.

    Raises:
        FileNotFoundError, ProcessLookupError: there is none.
        PermissionError: ptrace access is denied.
    """
    found = _fields(read_file(f"/proc/{pid}/status"))
    numbers = found[b"NSpid"]
    (outer_parent,) = found[b"PPid"]
    parent = outer_parent
    if len(numbers) > 1:
        parent = _parent_inside(outer_parent, len(numbers))
    return Inside(
        pid=numbers[-1],
        parent=parent,
        group=found[b"NSpgid"][-1],
        session=found[b"NSsid"][-1],
        uid=_to_inside(pid, "uid_map", found[b"Uid"][0]),
        gid=_to_inside(pid, "gid_map", found[b"Gid"][0]),
    )


def _parent_inside(parent: int, depth: int) -> int:
    """The number of *parent* in the namespace of its child, which is so deep; 0 where it has none there.

    A parent is in the namespace of its child, or further out (pid_namespaces(7)).
    """
    try:
        numbers = _fields(read_file(f"/proc/{parent}/status"))[b"NSpid"]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return numbers[-1] if len(numbers) == depth else 0


def _to_inside(pid: int, map_name: str, id_: int) -> int:
    if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
        return id_
    for line in read_file(f"/proc/{pid}/{map_name}").splitlines():
        inner, outer, count = map(int, line.split())
        if outer <= id_ < outer + count:
            return inner + id_ - outer
    return _OVERFLOW_ID


class ThreadNumbers:
    """By which number each thread of a process is known inside.

    Most are read beforehand: it takes 20 us for each, for which the process need not stand still.
    """

    def __init__(self, pid: int) -> None:
        """Read those of process *pid*, where they are not ours.

        Raises:
            FileNotFoundError, ProcessLookupError: there is no such process.
        """
        self._pid = pid
        self._known: dict[int, int] = {}
        self._nested = self._read(pid)[1]
        for tid in thread_ids(pid) if self._nested else ():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                self._known[tid], _ = self._read(tid)

    def get(self, tid: int) -> int:
        """The number of thread *tid*, one that was started meanwhile too.

        Raises:
            FileNotFoundError, ProcessLookupError: there is no such thread.
        """
        if not self._nested:
            return tid
        return self._known.get(tid) or self._read(tid)[0]

    def _read(self, tid: int) -> tuple[int, bool]:
        """The number of a thread inside, and whether that is another namespace than ours."""
        numbers = _fields(read_file(f"/proc/{self._pid}/task/{tid}/status"))[b"NSpid"]
        return numbers[-1], len(numbers) > 1
