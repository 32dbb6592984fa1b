"""Where the daemon logs: a file that nobody else has planted, syslog, or stderr."""

import errno
import logging
import logging.handlers
import os
import stat
from pathlib import Path

from memfs.errors import CannotMount
from memfs.linux.directories import open_trusted

_SYSLOG = "/dev/log"
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_MODE = 0o600
_OF_OURS = "name a file that you may write, in a directory of your own"


def open_log(path: Path) -> logging.Handler:
    """A handler that appends to *path*, an absolute path; a new file is for its owner only.

    A symbolic link is followed as long as nobody but us and root can have made it.

    Raises:
        CannotMount: it cannot be opened; it is neither a regular file nor a character device; or it may
            have been planted.
    """
    try:
        fd = _open(path)
    except OSError as error:
        reason = "it is a FIFO or a socket" if error.errno == errno.ENXIO else error.strerror
        raise CannotMount(f"cannot log to {path} ({reason})", _OF_OURS) from None
    return logging.StreamHandler(open(fd, "a", encoding="utf-8"))


def _open(path: Path) -> int:
    directory, ours = open_trusted(os.fspath(path.parent))
    try:
        fd = os.open(path.name, _FLAGS | (0 if ours else os.O_NOFOLLOW), _NEW_MODE, dir_fd=directory)
    finally:
        os.close(directory)
    reason = _reason_against(os.fstat(fd), ours=ours)
    if reason:
        os.close(fd)
        raise CannotMount(f"cannot log to {path} ({reason})", _OF_OURS)
    return fd


def _reason_against(found: os.stat_result, *, ours: bool) -> str:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        return "it is neither a file nor a character device"
    if not ours and found.st_uid not in (0, os.geteuid()):
        return f"it belongs to uid {found.st_uid}"
    if not ours and found.st_nlink != 1:
        return "it has more than one name"
    return ""


def open_background_log(path: Path | None) -> logging.Handler:
    """The handler of a daemon: *path*, or syslog, or one that loses everything where there is none.

    Raises:
        CannotMount: as :func:`open_log`.
    """
    if path is not None:
        return open_log(path)
    if not os.path.exists(_SYSLOG):
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = "memfs: "
    return handler


def log_to(handler: logging.Handler, *, timed: bool) -> None:
    """Let all of memfs log to *handler*."""
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s" if timed else "%(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
