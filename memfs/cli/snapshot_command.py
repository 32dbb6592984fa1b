"""``memfs snapshot``: mkdir in ``PID/snapshots``, with a name and a mount found where none is given."""

import errno
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import click

from memfs.cli.progress import size_text
from memfs.errors import CannotFreeze

_LOG = "the daemon's log says why"
_REASONS = {
    errno.EEXIST: ("there is a snapshot of that name", "choose another name, or let that one go with rmdir"),
    errno.EBUSY: ("it cannot be stopped now", f"{_LOG}; try again later"),
    errno.EACCES: ("it may not be traced", _LOG),
    errno.ENOSPC: ("there are as many snapshots as there may be", "let one go with rmdir"),
    errno.EROFS: ("the mount does not take snapshots of it", "name a process that runs"),
    errno.ENAMETOOLONG: ("the name is too long", "choose one of at most 255 bytes"),
    errno.ENOENT: ("it has ended", "see whether it runs"),
}


@click.command("snapshot")
@click.option(
    "--mount",
    "mountpoint",
    metavar="MOUNTPOINT",
    help="The mount to use; else the newest in which the process is.",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.argument("name", required=False)
def command(mountpoint: str | None, pid: int, name: str | None) -> None:
    """Freeze a copy of process PID as it is now, under NAME, and print its directory.

    The process stops for some milliseconds. rmdir of the directory lets the copy go.
    """
    if name is not None and (not name or "/" in name or name in (".", "..")):
        raise click.UsageError(f"{name!r} is no name for a directory.")
    snapshots = _find(pid, mountpoint)
    made = _make_named(pid, snapshots / name) if name is not None else _make(pid, snapshots)
    click.echo(os.fspath(made))
    for missing in _missing(made):
        size = size_text(missing["bytes"])
        click.echo(f"memfs: the snapshot lacks {size}: {missing['reason']}; see its info.json", err=True)


def _find(pid: int, mountpoint: str | None) -> Path:
    """The directory ``PID/snapshots``, in *mountpoint* or in the newest mount that has it.

    Mounts of other users are left alone, and each is asked for a limited time: it may never answer.

    Raises:
        CannotFreeze: there is none.
        CannotMount: *mountpoint* is no mount of memfs.
    """
    from memfs.cli import timelimit
    from memfs.cli.mountpoint import ANSWER_S, our_mount, place_of
    from memfs.linux.mountinfo import mounts_of_type
    from memfs.tree.names import FS_TYPE

    mounts = mounts_of_type(FS_TYPE) if mountpoint is None else [our_mount(place_of(mountpoint))]
    if mountpoint is not None and mounts[0].owner not in (0, os.geteuid()):
        raise CannotFreeze(f"{mountpoint} was mounted by uid {mounts[0].owner}", "name a mount of your own")
    candidates = [os.fsdecode(mount.mountpoint) for mount in mounts if mount.owner in (0, os.geteuid())]
    if not candidates:
        raise CannotFreeze("memfs is not mounted", "mount it with 'memfs mount MOUNTPOINT'")
    silent = []
    for candidate in candidates:
        found = Path(candidate, str(pid), "snapshots")
        try:
            if timelimit.call(functools.partial(os.path.isdir, found), ANSWER_S):
                return found
        except TimeoutError:
            silent.append(candidate)
    if silent:
        raise CannotFreeze(
            f"the memfs on {silent[0]} does not answer", f"'memfs umount {silent[0]}', and mount again"
        )
    raise CannotFreeze(
        f"there is no process {pid} in {', '.join(candidates)}", "see whether it runs, and has memory"
    )


def _missing(snapshot: Path) -> list[dict[str, Any]]:
    """What info.json says is missing; nothing where the snapshot has been let go already."""
    try:
        found: list[dict[str, Any]] = json.loads((snapshot / "info.json").read_bytes())["missing"]
    except OSError:
        return []
    return found


def _make(pid: int, snapshots: Path) -> Path:
    """A snapshot named by the time, with a number behind it where that name is taken."""
    now = time.strftime("%Y%m%dT%H%M%S")
    number = 1
    while os.path.lexists(directory := snapshots / (now if number == 1 else f"{now}-{number}")):
        number += 1
    return _make_named(pid, directory)


def _make_named(pid: int, directory: Path) -> Path:
    try:
        directory.mkdir()
    except OSError as error:
        reason, mend = _REASONS.get(error.errno or errno.EIO, (error.strerror or str(error), _LOG))
        raise CannotFreeze(f"no snapshot of process {pid}: {reason}", mend) from None
    return directory
