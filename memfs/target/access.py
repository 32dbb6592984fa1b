"""Why the kernel refuses to let us read a process, and what would mend it.

The rules are in ptrace(2), "Ptrace access mode checking". The kernel only says EACCES or EPERM:
this module asks the same questions again to name the one that was answered with no.
"""

import os

import attrs

from memfs.linux import procfs
from memfs.linux.status import read_status

_CAP_SYS_PTRACE = 19
_YAMA_SCOPE = "/proc/sys/kernel/yama/ptrace_scope"


@attrs.frozen
class Denial:
    """A cause, and the mend, each half a sentence."""

    cause: str
    mend: str


def may_trace_all() -> bool:
    """Whether we hold CAP_SYS_PTRACE."""
    return bool(effective_capabilities() >> _CAP_SYS_PTRACE & 1)


def effective_capabilities() -> int:
    """The bits of our effective capability set (``<linux/capability.h>``)."""
    for line in procfs.read_file("/proc/self/status").splitlines():
        name, _, value = line.partition(b":")
        if name == b"CapEff":
            return int(value, 16)
    return 0


def yama_scope() -> int:
    """Yama's ptrace_scope: 0 where Yama is not built in or allows what ptrace(2) allows."""
    try:
        with open(_YAMA_SCOPE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def why_denied(pid: int) -> Denial:
    """The likely reason why *pid* may not be read by this process."""
    try:
        owner = read_status(pid).uid
        # The kernel gives the files of a process that is not dumpable to root; the directory stays its own.
        shown_owner = os.stat(f"/proc/{pid}/stat").st_uid
    except OSError:
        return Denial("it cannot be looked at", "see whether it still runs")
    scope = yama_scope()
    if scope == 3:
        return Denial("Yama forbids all tracing (kernel.yama.ptrace_scope is 3)", "reboot to lower it")
    if may_trace_all():
        return Denial(
            "a security module or another user namespace forbids it",
            "mount memfs from inside the container, or look into the audit log",
        )
    if owner != os.geteuid():
        return Denial(f"it belongs to uid {owner}", "mount memfs as that user or as root")
    if shown_owner != owner:
        return Denial("it is not dumpable (set-uid, or prctl PR_SET_DUMPABLE 0)", "mount memfs as root")
    if scope:
        return Denial(
            f"Yama allows tracing of one's own children only (kernel.yama.ptrace_scope is {scope})",
            "mount memfs as root, or set it to 0 with sysctl",
        )
    return Denial("it has capabilities that we lack", "mount memfs as root")
