"""sched(7): what the policy of a thread means for a fork of it."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

_DEADLINE = 6  # SCHED_DEADLINE, <linux/sched.h>
_RESET_ON_FORK = 1  # SCHED_FLAG_RESET_ON_FORK

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_SYS_SETATTR, _SYS_GETATTR = {"x86_64": (314, 315), "aarch64": (274, 275)}.get(os.uname().machine, (-1, -1))


class _Attributes(ctypes.Structure):
    """``struct sched_attr`` (``<linux/sched/types.h>``)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


def has_deadline(tid: int) -> bool:
    """Whether a thread runs under SCHED_DEADLINE: only so long in each period, and it may not fork."""
    try:
        return os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK == _DEADLINE
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def may_fork(tid: int) -> Iterator[None]:
    """For a time a thread may fork though it has a deadline, which its children do not inherit then.

    Without SCHED_FLAG_RESET_ON_FORK the kernel answers with EAGAIN (``sched_fork``, kernel/sched/core.c).
    """
    found = _Attributes()
    changed = has_deadline(tid) and _get(tid, found) and not found.flags & _RESET_ON_FORK
    if changed:
        found.flags |= _RESET_ON_FORK
        _set(tid, found)
    try:
        yield
    finally:
        if changed:
            found.flags &= ~_RESET_ON_FORK
            _set(tid, found)


def _get(tid: int, into: _Attributes) -> bool:
    size = ctypes.sizeof(into)
    return bool(_libc.syscall(_SYS_GETATTR, tid, ctypes.byref(into), size, 0) == 0)


def _set(tid: int, attributes: _Attributes) -> None:
    _libc.syscall(_SYS_SETATTR, tid, ctypes.byref(attributes), 0)
