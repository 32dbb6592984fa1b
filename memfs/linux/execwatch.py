"""Tells whether a process has run exec or ended, by a fact that the process cannot forge.

A perf event that counts nothing (PERF_COUNT_SW_DUMMY) is attached to the main thread with
``remove_on_exec`` (Linux 5.13). An exec ends the event before it lets go of ``exec_update_lock``
(``begin_new_exec`` and ``setup_new_exec``, ``fs/exec.c``), which every access to the memory of another
process takes first (``mm_access``, ``kernel/fork.c``): whoever has read memory of the new program finds
the event ended. The end of the thread ends it too. poll(2) tells, once a ring buffer is mapped.
"""

import ctypes
import errno
import mmap
import os
import select
import struct

from memfs.linux.span import PAGE_BYTES

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
# struct perf_event_attr up to its flags (<linux/perf_event.h>): type size config sample_period
#     sample_type read_format flags
_ATTRIBUTES = struct.Struct("=IIQQQQQ")
_ATTRIBUTES_BYTES = 112  # PERF_ATTR_SIZE_VER5, which Linux 4.1 and later know
_TYPE_SOFTWARE = 1
_COUNT_SW_DUMMY = 9
_DISABLED = 1 << 0
_EXCLUDE_USER = 1 << 4
_EXCLUDE_KERNEL = 1 << 5
_EXCLUDE_HV = 1 << 6
_REMOVE_ON_EXEC = 1 << 36
_FLAG_FD_CLOEXEC = 8
_ANY_CPU = _NO_GROUP = -1

_libc = ctypes.CDLL(None, use_errno=True)


class ExecWatch:
    """A watch over one process, which begins when it is made. The owner closes it."""

    def __init__(self, pid: int) -> None:
        """Watch the process that *pid* is now.

        Raises:
            OSError: the kernel has no perf events, or not for this user (kernel.perf_event_paranoid).
        """
        number = _SYS_PERF_EVENT_OPEN.get(os.uname().machine)
        if number is None:
            raise OSError(errno.ENOSYS, "perf_event_open: not known for this machine")
        flags = _DISABLED | _EXCLUDE_USER | _EXCLUDE_KERNEL | _EXCLUDE_HV | _REMOVE_ON_EXEC
        attributes = ctypes.create_string_buffer(
            _ATTRIBUTES.pack(_TYPE_SOFTWARE, _ATTRIBUTES_BYTES, _COUNT_SW_DUMMY, 0, 0, 0, flags),
            _ATTRIBUTES_BYTES,
        )
        arguments = (ctypes.c_long(value) for value in (pid, _ANY_CPU, _NO_GROUP, _FLAG_FD_CLOEXEC))
        self._fd: int = _libc.syscall(ctypes.c_long(number), attributes, *arguments)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"perf_event_open: {os.strerror(code)}")
        try:
            self._ring = mmap.mmap(self._fd, PAGE_BYTES)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def tripped(self) -> bool:
        """Whether the process has run exec, or its main thread has ended, since the watch was made."""
        poll = select.poll()  # not kept: several threads may ask at once
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """End the watch; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._ring.close()
            os.close(fd)
