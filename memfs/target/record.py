"""What a snapshot writes down of a process while it is stopped. Values only: this module reads nothing."""

import attrs


@attrs.frozen
class ThreadRecord:
    """One thread as it was found.

    Attributes:
        tid: its number, as the daemon sees it.
        general: ``struct user_regs_struct`` (``<sys/user.h>``), as NT_PRSTATUS gives it.
        floating: ``struct user_fpregs_struct``, as NT_PRFPREG gives it.
        extended: the XSAVE area, as NT_X86_XSTATE gives it; empty where the CPU has none.
        stop_signal: the signal of the group stop that it was in; 0 for none.
        pending, blocked: signal sets, bit 0 for signal 1; *pending* are those of the thread alone.
    """

    tid: int
    general: bytes
    floating: bytes
    extended: bytes
    stop_signal: int
    pending: int
    blocked: int


@attrs.frozen
class ProcessRecord:
    """What all threads have in common.

    Attributes:
        state: its letter in ``/proc/PID/stat``: ``R``, ``S``, ``T`` …
        flags: ``PF_*`` of ``<linux/sched.h>``.
        arguments: ``/proc/PID/cmdline``, each argument ended by a NUL byte.
        auxv: ``/proc/PID/auxv``, pairs of words of the machine.
        core_filter: ``/proc/PID/coredump_filter``, core(5).
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
