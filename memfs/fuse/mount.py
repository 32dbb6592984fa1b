"""One mount, from its options to its end: puts the parts together and takes them apart again."""

import contextlib
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from memfs.errors import CannotMount, MemfsError
from memfs.files.backing import Backings
from memfs.files.handles import Handles
from memfs.files.openings import Openings
from memfs.fuse.desk import Desk
from memfs.fuse.mounting import attach, detach
from memfs.fuse.operations import Operations
from memfs.fuse.options import MountOptions, SpliceMode
from memfs.fuse.service import Service
from memfs.fuse.switch import Switch
from memfs.image.source import MAX_READ_BYTES
from memfs.linux.arenas import use_one_arena
from memfs.linux.mountinfo import Mount
from memfs.linux.qos import LatencyRequest
from memfs.linux.syscalls import vmsplice_shares_pages
from memfs.snapshot.forkserver import ForkServer
from memfs.snapshot.registry import Snapshots
from memfs.target.origins import Device, origins
from memfs.tree.tree import Tree

log = logging.getLogger(__name__)

_GRACE_S = 0.5
"""How long the threads may take to end; then the process ends without them."""
_LET_GO_S = 4.0
"""How long that process may take to let its snapshots go, which happens anyway when it has ended."""
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(directory: int, mountpoint: Path, options: MountOptions, answering: Callable[[], None]) -> None:
    """Mount on *directory*, an O_PATH descriptor, and serve until it is unmounted or a signal ends us.

    *mountpoint* is the path, without symbolic links, by which the directory was opened.
    *answering* is called, in a thread, as soon as the mount answers. On SIGTERM or SIGINT the mount is gone
    within a second, whatever the threads of this process wait for. What then is still stuck ends with the
    process: this function may not return, but exit.

    Raises:
        CannotMount: the kernel or fusermount3 refuses.
    """
    _allow_many_files()
    use_one_arena()
    threading.excepthook = _log_end
    _defer_end()
    server = ForkServer()  # first of all: nothing is open yet, and there is one thread
    try:
        snapshots = Snapshots(
            server.connect,
            copy_bytes=options.snapshot_copy_bytes,
            memory_bytes=options.snapshot_memory_bytes,
            fall_back=options.snapshot_fallback,
        )
        _mount_and_serve(directory, mountpoint, options, answering, snapshots, server)
    finally:
        server.close()


def _mount_and_serve(
    directory: int,
    mountpoint: Path,
    options: MountOptions,
    answering: Callable[[], None],
    snapshots: Snapshots,
    server: ForkServer,
) -> None:
    origins()  # learns what kernel and mounts have, before anybody asks
    handles = Handles()
    tree = Tree(snapshots, full_cores=options.full_cores)
    backings = Backings(wanted=options.passthrough)
    device, mount = attach(directory, mountpoint)
    os.close(directory)
    ending = _Ending(mount, snapshots, server)
    has_answered = False

    def note_answering() -> None:
        nonlocal has_answered
        _raise_readahead(mount.device)
        has_answered = True
        answering()

    tree.contents.own_device = snapshots.own_device = mount.device
    with contextlib.ExitStack() as stack:
        stack.callback(ending.done)
        stack.callback(snapshots.close)
        stack.callback(handles.drop_all)
        stack.callback(ending.unmount)
        # libfuse 3.3 and later takes the device of a file system that is mounted for a mount point.
        pyfuse3.init(Operations(), f"/dev/fd/{device}", set())
        stack.callback(pyfuse3.close, unmount=False)
        stack.callback(ending.unmount)  # before pyfuse3 closes, and no request is left without a reply
        trio.run(_serve, ending, tree, handles, backings, options, note_answering)
    log.info("unmounted %r", os.fspath(mountpoint))
    if ending.was_unmounted and not has_answered:
        raise CannotMount(f"{mountpoint} was unmounted at once", "mount again")


def _log_end(ended: threading.ExceptHookArgs) -> None:
    """Say that a thread has ended which was not to: there is no stderr in the background."""
    found = (ended.exc_type, ended.exc_value or ended.exc_type(), ended.exc_traceback)
    log.error("thread %s ended", ended.thread.name if ended.thread else "?", exc_info=found)


class _Ending:
    """How the daemon ends: in order, or, where a thread is stuck, without it.

    Attributes:
        mount: the mount of this daemon.
        device: the descriptor that serves the mount, once the mount is served.
        was_unmounted: whether someone else has unmounted it.
    """

    def __init__(self, mount: Mount, snapshots: Snapshots, server: ForkServer) -> None:
        self.device: int | None = None
        self.was_unmounted = False
        self.mount = mount
        self._snapshots = snapshots
        self._server = server
        self._lock = threading.Lock()
        self._unmounted = False
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._end_anyway, name="memfs-ending", daemon=True)

    def begin(self, *, unmounted: bool) -> None:
        """End pyfuse3's main loop, which may wait for a thread; *unmounted* says that the mount is gone."""
        self.was_unmounted = self.was_unmounted or unmounted
        pyfuse3.terminate()
        if self._watch.ident is None:
            self._watch.start()

    def unmount(self) -> None:
        """Unmount, unless someone has. Someone else's mount may be in its place."""
        with self._lock:
            if self.was_unmounted or self._unmounted:
                return
            self._unmounted = True
            try:
                detach(self.mount, self.device, abort=True)
            except FileNotFoundError:
                pass
            except (MemfsError, OSError) as error:
                log.warning("the mount is left behind: %s", error)

    def done(self) -> None:
        """Say that nothing was stuck."""
        self._done.set()

    def _end_anyway(self) -> None:
        if self._done.wait(_GRACE_S):
            return
        self.unmount()
        log.info("ending without threads that wait for what does not come")
        closing = threading.Thread(target=self._let_go, daemon=True)
        closing.start()
        closing.join(_LET_GO_S)
        logging.shutdown()
        os._exit(0)

    def _let_go(self) -> None:
        """Let the snapshots go; a worker that is stuck ends when it no longer is."""
        self._snapshots.close()
        self._server.close()


async def _serve(
    ending: _Ending,
    tree: Tree,
    handles: Handles,
    backings: Backings,
    options: MountOptions,
    answering: Callable[[], None],
) -> None:
    """Answer requests until the mount ends, or is to end."""
    token = trio.lowlevel.current_trio_token()

    def note_unmounted() -> None:
        # libfuse reads a socket now and does not see the end of the device.
        ending.begin(unmounted=True)

    def end_from_thread() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(note_unmounted)

    latency = LatencyRequest() if options.low_latency else None
    with contextlib.ExitStack() as stack:
        if latency is not None:
            stack.callback(latency.release)
        switch = Switch(on_ready=answering, on_passthrough=backings.accept)
        ending.device = switch.device
        service = Service(
            switch, handles, splice=_usable(options.splice), latency=latency, on_end=end_from_thread
        )
        openings = Openings(
            tree,
            handles,
            backings,
            service.read_lanes,
            forget_attributes=switch.forget_attributes,
            drop_pages=service.dropper.drop,
        )
        switch.start()
        service.start(Desk(tree, openings))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, ending)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()


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


async def _end_on_signal(ending: _Ending) -> None:
    with trio.open_signal_receiver(*_END_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            ending.begin(unmounted=False)


def _usable(mode: SpliceMode) -> SpliceMode:
    """AUTO means no pipe where the kernel copies what is given to it."""
    return SpliceMode.OFF if mode is SpliceMode.AUTO and not vmsplice_shares_pages() else mode


def _allow_many_files() -> None:
    """Each open file of the mount costs us four descriptors and more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
