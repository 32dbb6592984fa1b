"""One mount, from its options to its end: puts the planes together and takes them apart again."""

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from memfs.errors import CannotMount
from memfs.fuse.backing import Backings
from memfs.fuse.contents import attribute_names
from memfs.fuse.handles import Handles
from memfs.fuse.operations import Operations
from memfs.fuse.options import MountOptions, SpliceMode
from memfs.fuse.reader import DataPlane
from memfs.fuse.switch import Switch
from memfs.fuse.tree import Tree
from memfs.image.source import MAX_READ_BYTES
from memfs.linux.mountinfo import mount_on
from memfs.linux.qos import LatencyRequest
from memfs.linux.syscalls import vmsplice_shares_pages
from memfs.snapshot.forkserver import ForkServer
from memfs.snapshot.registry import Snapshots
from memfs.target.origins import Device

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 4096
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(mountpoint: Path, options: MountOptions, mounted: Callable[[], None]) -> None:
    """Mount on *mountpoint* and serve until it is unmounted or a signal ends us.

    *mounted* is called once the kernel has the mount; the first answer may still take a moment.

    Raises:
        CannotMount: the kernel or fusermount3 refuses.
    """
    _allow_many_files()
    _defer_end()
    server = ForkServer()  # first of all: nothing is open yet, and there is one thread
    try:
        snapshots = Snapshots(
            server.connect, copy_bytes=options.snapshot_copy_bytes, fall_back=options.snapshot_fallback
        )
        _mount_and_serve(mountpoint, options, mounted, snapshots)
    finally:
        server.close()


def _mount_and_serve(
    mountpoint: Path, options: MountOptions, mounted: Callable[[], None], snapshots: Snapshots
) -> None:
    handles = Handles()
    tree = Tree(snapshots, full_cores=options.full_cores)
    backings = Backings(wanted=options.passthrough)
    _mount(Operations(tree, handles, backings), mountpoint)
    unmount = True
    try:
        mount = mount_on(mountpoint)
        if mount is None:
            raise CannotMount(f"{mountpoint} was unmounted at once")
        tree.contents.own_device = snapshots.own_device = mount.device
        mounted()
        unmount = trio.run(_serve_planes, mount.device, handles, backings, options)
    finally:
        # Without a mount libfuse must not look for one: someone else's may be in its place.
        pyfuse3.close(unmount=unmount)
        handles.drop_all()
        snapshots.close()
    log.info("unmounted %r", os.fspath(mountpoint))


def _mount(operations: Operations, mountpoint: Path) -> None:
    """Let libfuse mount. It tells on stderr what went wrong: that is caught, and told in one sentence."""
    kept = os.dup(2)
    caught = os.memfd_create("memfs-stderr", os.MFD_CLOEXEC)
    os.dup2(caught, 2)
    try:
        pyfuse3.init(operations, os.fspath(mountpoint), {"fsname=memfs", "subtype=memfs"})
    except RuntimeError as error:
        lines = os.pread(caught, _MESSAGE_BYTES, 0).decode(errors="replace").splitlines()
        said = lines[0] if lines else str(error)
        raise CannotMount(
            f"cannot mount on {mountpoint} ({said})", "'memfs doctor' says what is missing"
        ) from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(caught)


async def _serve_planes(device: Device, handles: Handles, backings: Backings, options: MountOptions) -> bool:
    """Run both planes; returns whether the mount still stands."""
    token = trio.lowlevel.current_trio_token()
    unmounted = False

    def note_unmounted() -> None:
        # libfuse reads a socket now and does not see the end of the device.
        nonlocal unmounted
        unmounted = True
        pyfuse3.terminate()

    def end_from_thread() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(note_unmounted)

    latency = LatencyRequest() if options.low_latency else None
    with contextlib.ExitStack() as stack:
        if latency is not None:
            stack.callback(latency.release)
        switch = Switch(backings, on_ready=lambda: _raise_readahead(device))
        plane = DataPlane(
            switch,
            handles,
            splice=_usable(options.splice),
            latency=latency,
            attribute_names=attribute_names,
            on_end=end_from_thread,
        )
        switch.start()
        plane.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
    return not unmounted


def _raise_readahead(device: Device) -> None:
    """Let the kernel read ahead as much as one READ can carry; it begins with 128 KiB."""
    try:
        Path(f"/sys/class/bdi/{device[0]}:{device[1]}/read_ahead_kb").write_text(f"{MAX_READ_BYTES >> 10}\n")
    except OSError as error:
        log.debug("readahead stays as it is: %s", error)


def _defer_end() -> None:
    """Have a signal to end wait until there is something that can be ended.

    And what comes when we are at it changes nothing: then the receiver has been closed again.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    for number in _END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(*_END_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            pyfuse3.terminate()


def _usable(mode: SpliceMode) -> SpliceMode:
    """AUTO means no pipe where the kernel copies what is given to it."""
    return SpliceMode.OFF if mode is SpliceMode.AUTO and not vmsplice_shares_pages() else mode


def _allow_many_files() -> None:
    """Each open file of the mount costs us four descriptors and more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
