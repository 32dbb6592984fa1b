"""``memfs mount``: look before, mount, and go into the background once the mount answers."""

import contextlib
import logging
import logging.handlers
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfs.errors import CannotMount, MemfsError

if TYPE_CHECKING:
    from memfs.fuse.options import MountOptions

_SYSLOG = "/dev/log"
_MOUNTED = b"\0"

log = logging.getLogger(__name__)


@click.command("mount")
@click.option("-f", "foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPT[,OPT...]",
    help="splice=auto|on|off, passthrough=auto|off, low_latency=auto|off, log=FILE, "
    "snapshot_copy=SIZE, snapshot_fallback=copy|off, core=full|filtered.",
)
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(foreground: bool, options: tuple[str, ...], mountpoint: Path) -> None:
    """Mount the memory of all processes on MOUNTPOINT, an empty directory."""
    from memfs.cli.mountpoint import check_machine, check_mountpoint
    from memfs.fuse.options import parse_options
    from memfs.linux.mountinfo import resolve

    parsed = parse_options(options)
    check_machine()
    where = Path(resolve(mountpoint))
    check_mountpoint(where)
    if foreground:
        from memfs.fuse.mount import serve

        _log_to(_file_handler(parsed.log_file) if parsed.log_file else logging.StreamHandler(), timed=True)
        serve(where, parsed, lambda: None)
    else:
        _serve_in_background(where, parsed)


def _serve_in_background(mountpoint: Path, options: "MountOptions") -> None:
    """Fork the daemon; returns once the mount answers.

    The daemon tells over a pipe how it went: a NUL byte when it is mounted, or else a sentence.
    """
    handler = _background_handler(options)
    reader, writer = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        os.close(reader)
        os._exit(_be_daemon(mountpoint, options, handler, writer))
    os.close(writer)
    try:
        _await_daemon(reader, mountpoint)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGTERM)
        os.waitpid(daemon, 0)
        raise
    if isinstance(handler, logging.NullHandler):
        click.echo(
            "memfs: there is no syslog here, messages are lost: keep them with '-o log=FILE'", err=True
        )


def _await_daemon(reader: int, mountpoint: Path) -> None:
    with open(reader, "rb") as pipe:
        report = pipe.read(1)
        if report != _MOUNTED:
            sentence = (report + pipe.read()).decode(errors="replace")
            raise CannotMount(sentence or "the daemon ended before it had mounted")
    try:
        os.stat(mountpoint)
    except OSError as error:
        raise CannotMount(
            f"the daemon ended as soon as it had mounted ({error.strerror})", "its log says why"
        ) from error


def _be_daemon(mountpoint: Path, options: "MountOptions", handler: logging.Handler, ready: int) -> int:
    """The life of the daemon; returns its exit status. *ready* is the pipe to the command."""
    os.setsid()
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

    def report(message: bytes) -> None:
        nonlocal ready
        if ready >= 0:
            os.write(ready, message)
            os.close(ready)
            ready = -1

    try:
        from memfs.fuse.mount import serve

        _log_to(handler, timed=options.log_file is not None)
        serve(mountpoint, options, lambda: report(_MOUNTED))
    except Exception as error:
        if not isinstance(error, MemfsError) or ready < 0:
            log.critical("the daemon ends", exc_info=error)
        report(str(error).encode())
        return 1
    finally:
        logging.shutdown()
    return 0


def _background_handler(options: "MountOptions") -> logging.Handler:
    if options.log_file is not None:
        return _file_handler(options.log_file)
    if not os.path.exists(_SYSLOG):
        return logging.NullHandler()
    handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
    handler.ident = "memfs: "
    return handler


def _file_handler(path: Path) -> logging.Handler:
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise CannotMount(
            f"cannot log to {path} ({error.strerror})", "name a file that you may write"
        ) from None


def _log_to(handler: logging.Handler, *, timed: bool) -> None:
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(message)s" if timed else "%(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
