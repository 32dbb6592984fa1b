"""What a snapshot writes down of a process while it is stopped. Values only: this module reads nothing."""

from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.arch import CoreFormat


@attrs.frozen
class ThreadRecord:
    """One thread as it was found.

    Attributes:
        tid: its number, as the daemon sees it.
        number: the same as the process sees it.
        general: the general registers, in the layout of the machine (:mod:`memfs.linux.registers`).
        sets: all others that it has, by ``NT_*``.
        stop_signal: the signal of the group stop that it was in; 0 for none.
        pending, blocked: signal sets, bit 0 for signal 1; *pending* are those of the thread alone.
    """

    tid: int
    number: int
    general: bytes
    sets: ReadOnlyDict[int, bytes]
    stop_signal: int
    pending: int
    blocked: int


@attrs.frozen
class ProcessRecord:
    """What all threads have in common; its numbers, and those of users, are as it sees them itself.

    Attributes:
        uid, gid: the real ones.
        state: its letter in ``/proc/PID/stat``: ``R``, ``S``, ``T`` …
        flags: ``PF_*`` of ``<linux/sched.h>``.
        arguments: ``/proc/PID/cmdline``, each argument ended by a NUL byte.
        auxv: ``/proc/PID/auxv``, pairs of words of the program.
        core_filter: ``/proc/PID/coredump_filter``, core(5).
        core_format: how its core file is written; None where memfs does not know.
        extra_note: what that has besides of all threads: kind, owner and contents; None for nothing.
    """

    pid: int
    parent: int
    group: int
    session: int
    uid: int
    gid: int
    state: bytes
    nice: int
    flags: int
    comm: bytes
    arguments: bytes
    auxv: bytes
    core_filter: int
    core_format: CoreFormat | None = None
    extra_note: tuple[int, bytes, bytes] | None = None
