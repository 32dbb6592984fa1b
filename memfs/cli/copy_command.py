"""``memfs copy``: copy an image out of the mount, whole or not at all."""

import gc
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

import click

from memfs.cli.progress import CHOICES, shown, size_text

if TYPE_CHECKING:
    from memfs.copy.job import CopiedFile

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@click.command("copy")
@click.option(
    "--since", metavar="NAME", help="Write only what changed since that snapshot into its image, DESTINATION."
)
@click.option("--verify", is_flag=True, help="Read the destination back, and compare.")
@click.option("--checksum", is_flag=True, help="Print the BLAKE2b of the content, as b2sum(1) does.")
@click.option(
    "--progress",
    type=click.Choice(CHOICES),
    default="auto",
    help="A bar on a terminal (auto), one line a second (plain), or nothing (off).",
)
@click.option("-v", "--verbose", is_flag=True, help="Say what was done, and how.")
@click.argument("source")
@click.argument("destination")
def command(
    since: str | None,
    verify: bool,
    checksum: bool,
    progress: str,
    verbose: bool,
    source: str,
    destination: str,
) -> None:
    """Copy SOURCE, a file or a directory of the mount, to DESTINATION.

    SOURCE may leave the mount point out: 4711, or 4711/snapshots/NAME. DESTINATION is a file, a
    directory, a pipe, a socket, or - for stdout.
    """
    # A copy makes an object for each page that changed, and ends: nothing of it is worth looking for.
    gc.disable()
    from memfs.copy.files import Checks
    from memfs.copy.job import CopyRequest, run
    from memfs.copy.meter import Meter

    for number in _ENDING:
        signal.signal(number, _interrupt)
    to_stdout = destination == "-"

    def note(copied: "CopiedFile") -> None:
        if copied.digest:
            click.echo(f"{copied.digest}  {copied.name}", err=to_stdout)
        if verbose:
            how = f"through the page cache, for {copied.buffered}" if copied.buffered else "directly"
            click.echo(f"memfs: wrote {copied.name} {how}", err=True)

    meter = Meter()
    try:
        with shown(meter, progress):
            request = CopyRequest(source, destination, since, Checks(verify=verify, checksum=checksum))
            lacks = run(request, meter, note)
    except KeyboardInterrupt:
        raise click.Abort from None
    for reason, size_bytes in lacks.items():
        click.echo(f"memfs: {source} lacks {size_text(size_bytes)}: {reason}", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as by Ctrl-C: what was begun is undone."""
    del number, frame
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
