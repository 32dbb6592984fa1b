"""``memfs umount``: end the daemon and wait for it; clear away the mount of one that died or is stuck.

The mount is never asked. What is known of it comes from mountinfo, of its daemon from fdinfo.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memfs.errors import CannotMount

if TYPE_CHECKING:
    from memfs.linux.fusefd import DeviceHolder
    from memfs.linux.mountinfo import Mount

_TERM_S = 5.0
"""How long the daemon may take to end by SIGTERM; then it is unmounted without it."""
_ABORTED_S = 1.5
"""How long it may take when its connection is gone; then it gets SIGKILL."""
_KILL_S = 2.0
_LIMIT_S = 9.5
"""How long all of it may take, whatever the system calls wait for."""


@click.command("umount")
@click.argument("mountpoint")
def command(mountpoint: str) -> None:
    """Unmount MOUNTPOINT, in use or not. Returns when the daemon has ended, or after 10 seconds.

    Who still reads from it gets an error.
    """
    from memfs.cli import timelimit

    try:
        timelimit.call(lambda: _unmount(mountpoint), _LIMIT_S)
    except TimeoutError:
        raise CannotMount(
            f"unmounting {mountpoint} does not end", "a directory above it may be on a server that is dead"
        ) from None


def _unmount(name: str) -> None:
    from memfs.cli.mountpoint import our_mount, place_of
    from memfs.fuse.mounting import hold
    from memfs.linux.fusefd import find_servers

    mountpoint = place_of(name)
    mount = our_mount(mountpoint)
    if os.geteuid() not in (0, mount.owner):
        raise CannotMount(
            f"{mountpoint} was mounted by uid {mount.owner}", "unmount it as that user or as root"
        )
    with contextlib.ExitStack() as stack:
        held = hold(mount)  # as long as it is, no other file system can get the number of its device
        stack.callback(os.close, held)
        servers = find_servers(mount.device, os.geteuid() if mount.owner is None else mount.owner)
        for server in servers:
            stack.callback(server.close)
        _end(mountpoint, mount, servers)


def _end(mountpoint: Path, mount: "Mount", servers: "list[DeviceHolder]") -> None:
    """End the daemon, and unmount whether it ends or not.

    Root signals no process of another user: whoever made the mount could have handed its device to any.
    """
    from memfs.fuse.mounting import detach

    told = [server for server in servers if server.verified] if os.geteuid() == mount.owner else []
    _signal(told, signal.SIGTERM)
    _wait(told, _TERM_S)
    # The daemon unmounts when it ends; one that was killed could not. Where none can be seen it is dead, or
    # in another pid namespace, where the file system may be mounted too: then it is not aborted.
    with contextlib.suppress(FileNotFoundError):
        detach(mount, abort=bool(servers))
    servers = [server for server in servers if server.is_of_aborted]
    _wait(servers, _ABORTED_S)
    _signal(told, signal.SIGKILL)
    left = _wait(servers, _KILL_S)
    if left:
        raise CannotMount(
            f"{mountpoint} is unmounted, but process {left[0].pid}, which served it, does not end",
            "see what it waits for in /proc/PID/stack",
        )


def _signal(servers: "Sequence[DeviceHolder]", number: signal.Signals) -> None:
    for server in servers:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(server.process, number)


def _wait(servers: "Sequence[DeviceHolder]", limit_s: float) -> "list[DeviceHolder]":
    """Wait until all have ended; returns those that have not."""
    left = list(servers)
    deadline = time.monotonic() + limit_s
    while left:
        ended = select.select(
            [server.process for server in left], [], [], max(0, deadline - time.monotonic())
        )[0]
        if not ended:
            break
        left = [server for server in left if server.process not in ended]
    return left
