"""``memfs umount``: end the daemon and wait for it; clear away the mount of one that died."""

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfs.errors import CannotMount

if TYPE_CHECKING:
    from memfs.linux.mountinfo import Mount


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, in use or not. Returns when the daemon has ended.

    Who still reads from it gets an error.
    """
    from memfs.cli.mountpoint import detach, is_answered, our_mount
    from memfs.linux.mountinfo import resolve

    mountpoint = Path(resolve(mountpoint))
    mount = our_mount(mountpoint)
    if os.geteuid() not in (0, mount.owner):
        raise CannotMount(
            f"{mountpoint} was mounted by uid {mount.owner}", "unmount it as that user or as root"
        )
    if is_answered(mountpoint):
        _end_daemon(mount, mountpoint)
    # The daemon unmounts when it ends; one that was killed could not.
    with contextlib.suppress(CannotMount):
        our_mount(mountpoint)
        detach(mountpoint)


def _end_daemon(mount: "Mount", mountpoint: Path) -> None:
    from memfs.fuse.names import DAEMON_XATTR
    from memfs.linux.fusefd import find_server

    try:
        pid: int | None = int(os.getxattr(mountpoint, DAEMON_XATTR))
    except OSError:  # it is another user's: root may unmount it, and not look into it
        pid = find_server(mount.device)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        daemon = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            select.select([daemon], [], [])
        finally:
            os.close(daemon)
