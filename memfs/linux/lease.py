"""Who has a file open for writing, asked by a lease (fcntl(2)) that is given back at once."""

import fcntl
import signal

_F_SETLEASE = 1024  # <linux/fcntl.h>
_F_SETSIG = 10


def has_no_writer(fd: int) -> bool:
    """Whether a file is open for writing nowhere, nor mapped so: else the kernel grants no read lease of it.

    False too where a lease is not ours to have: it is the owner's, or for CAP_LEASE.
    """
    # Who opens it for writing in this very moment waits until it is given back, and we get a signal:
    # one that does nothing, instead of SIGIO.
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, _F_SETLEASE, fcntl.F_UNLCK)
    return True
