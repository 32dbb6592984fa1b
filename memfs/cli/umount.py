"""``memfs umount``: end the daemon and wait for it; clear away the mount of one that died."""

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfs.errors import CannotMount

_PATIENCE_S = 10

if TYPE_CHECKING:
    from memfs.linux.mountinfo import Mount


@click.command("umount")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, in use or not. Returns when the daemon has ended.

    Who still reads from it gets an error.
    """
    from memfs.cli.mountpoint import detach, our_mount
    from memfs.linux.mountinfo import mount_on, resolve

    mountpoint = Path(resolve(mountpoint))
    mount = our_mount(mountpoint)
    if os.geteuid() not in (0, mount.owner):
        raise CannotMount(
            f"{mountpoint} was mounted by uid {mount.owner}", "unmount it as that user or as root"
        )
    daemon = _find_daemon(mount, mountpoint)
    if daemon is not None:
        _end(daemon)
    # The daemon unmounts when it ends; one that was killed could not.
    left = mount_on(mountpoint)
    if left is not None and left.device == mount.device:
        detach(mountpoint)


def _find_daemon(mount: "Mount", mountpoint: Path) -> int | None:
    """The pid of who serves *mount*; None where it is dead."""
    from memfs.cli.mountpoint import is_answered
    from memfs.fuse.names import DAEMON_XATTR
    from memfs.linux.fusefd import find_server

    found = find_server(mount.device)
    if found is None and is_answered(mountpoint):
        with contextlib.suppress(OSError):
            found = int(os.getxattr(mountpoint, DAEMON_XATTR))
    return found


def _end(pid: int) -> None:
    """Let *pid* end by itself; if it does not, end it. Returns when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if select.select([process], [], [], _PATIENCE_S)[0]:
                    return
        finally:
            os.close(process)
