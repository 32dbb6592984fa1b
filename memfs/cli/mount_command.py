"""``memfs mount``: look before, mount, and go into the background once the mount answers."""

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfs.errors import CannotMount, MemfsError

if TYPE_CHECKING:
    from memfs.fuse.options import MountOptions

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
    "snapshot_copy=SIZE, snapshot_memory=SIZE, snapshot_fallback=copy|off, core=full|filtered.",
)
@click.argument("mountpoint")
def command(foreground: bool, options: tuple[str, ...], mountpoint: str) -> None:
    """Mount the memory of all processes on MOUNTPOINT, an empty directory."""
    from memfs.cli.logfile import log_to, open_log
    from memfs.cli.mountpoint import check_machine, open_mountpoint, place_of
    from memfs.fuse.options import parse_options

    parsed = parse_options(options)
    check_machine()
    where = place_of(mountpoint)
    directory = open_mountpoint(where)
    if foreground:
        from memfs.fuse.mount import serve

        log_to(open_log(parsed.log_file) if parsed.log_file else logging.StreamHandler(), timed=True)
        serve(directory, where, parsed, lambda: None)
    else:
        _serve_in_background(directory, where, parsed)


def _serve_in_background(directory: int, mountpoint: Path, options: "MountOptions") -> None:
    """Fork the daemon, which mounts on *directory*; returns once the mount answers.

    The daemon tells over a pipe how it went: a NUL byte when the mount answers, or else a sentence.
    """
    from memfs.cli.logfile import open_background_log

    handler = open_background_log(options.log_file)
    reader, writer = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        os.close(reader)
        os._exit(_be_daemon(directory, mountpoint, options, handler, writer))
    os.close(writer)
    try:
        _await_daemon(reader)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGTERM)
        os.waitpid(daemon, 0)
        raise
    if isinstance(handler, logging.NullHandler):
        click.echo(
            "memfs: there is no syslog here, messages are lost: keep them with '-o log=FILE'", err=True
        )


def _await_daemon(reader: int) -> None:
    with open(reader, "rb") as pipe:
        report = pipe.read(1)
        if report != _MOUNTED:
            sentence = (report + pipe.read()).decode(errors="replace")
            raise CannotMount(sentence or "the daemon ended before it had mounted")


def _be_daemon(
    directory: int, mountpoint: Path, options: "MountOptions", handler: logging.Handler, ready: int
) -> int:
    """The life of the daemon; returns its exit status. *ready* is the pipe to the command."""
    from memfs.cli.logfile import log_to

    os.setsid()
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)

    def report(message: bytes) -> None:
        nonlocal ready
        if ready >= 0:
            with contextlib.suppress(BrokenPipeError):  # the command was killed
                os.write(ready, message)
            os.close(ready)
            ready = -1

    try:
        from memfs.fuse.mount import serve

        log_to(handler, timed=options.log_file is not None)
        serve(directory, mountpoint, options, lambda: report(_MOUNTED))
    except Exception as error:
        if not isinstance(error, MemfsError) or ready < 0:
            log.critical("the daemon ends", exc_info=error)
        report(str(error).encode())
        return 1
    finally:
        logging.shutdown()
    return 0
