"""The threads of a mount: one at the device, others in lanes, and a watchdog over them.

One thread answers everything, since a second one would only compete with it for the interpreter's lock; but
where several readers read large pieces at once, two threads copy for them, and seldom need the lock.

A request can last for ever: a page fault in a target (a userfaultfd that no one serves, a file on a dead
server), a look at a process whose memory map is locked. So when the thread at the device has been in one
request for a while, the watchdog has another one take its place there. Until the first comes back, other
requests about that target go to threads of its lane, a few at most, and are kept there as values when these
are stuck as well (:mod:`memfs.files.lanes`). What takes long by its nature goes to such a thread at once.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable

from memfs.files.ahead import LookAhead
from memfs.files.cache import CacheDropper
from memfs.files.handles import Handles
from memfs.files.lanes import Lanes, Ticket
from memfs.files.placement import Placement
from memfs.fuse import messages
from memfs.fuse.desk import Desk
from memfs.fuse.interrupts import Interrupts, Waiting
from memfs.fuse.options import SpliceMode
from memfs.fuse.reading import Reading
from memfs.fuse.server import Server
from memfs.fuse.switch import Switch
from memfs.linux.qos import LatencyRequest

log = logging.getLogger(__name__)

_TICK_S = 0.02
_BUSY_REQUESTS = 8
"""Requests in a tick from which on CPUs are kept awake."""
_BUSY_CHUNKS = 32
"""Chunks read ahead in a tick, 1.7 GB/s, from which on a reader does little else than wait for them.

A slower one works on what it reads, and the kernel knows best where.
"""
_QUIET_TICKS = 8
"""Ticks without that many, after which they may sleep again: 160 ms."""
_SPARE_THREADS = 8


class Service:
    """Answers the requests of one mount, from :meth:`start` until the file system is unmounted.

    Attributes:
        switch: the device.
        handles: the open files.
        lanes: those of the targets, for requests about names.
        read_lanes: the same for READ and LSEEK, so that names can be looked up where reads are stuck.
        desk: what answers about names; there is one from :meth:`start` on.
        interrupts: the requests whose callers got a signal.
        dropper: has the kernel drop cached pages.
        watch_sleeps: whether no request has come for a while.
    """

    desk: Desk

    def __init__(
        self,
        switch: Switch,
        handles: Handles,
        *,
        splice: SpliceMode,
        latency: LatencyRequest | None,
        on_end: Callable[[], None],
    ) -> None:
        """Serve the files of *handles* over *switch*.

        Args:
            splice: whether replies are put together in a pipe. A pipe full of copies is slower than
                the buffer that they lie in, so AUTO takes it for sources with cached pages.
            latency: held while requests flow; None to leave the CPUs alone.
            on_end: called from a thread when the file system has been unmounted.
        """
        self.switch = switch
        self.handles = handles
        self.lanes = Lanes()
        self.read_lanes = Lanes()
        self.watch_sleeps = True
        self.dropper = CacheDropper(switch.drop_pages)
        self.interrupts = Interrupts(self._find_caller, self._interrupt)
        self._splice = splice
        self._on_end = on_end
        self._latency = latency
        self._lock = threading.Lock()
        self._servers: list[Server] = []
        self._spare: list[Server] = []
        self._traffic = threading.Event()
        self._ahead = LookAhead()
        self._leader = self._add_server()
        self._second: Server | None = None
        self._placement = Placement()
        self._placed_chunks = 0

    def start(self, desk: Desk) -> None:
        """Begin to serve; *desk* answers about names."""
        self.desk = desk
        self.dropper.start()
        self._ahead.start()
        threading.Thread(target=self._watch, name="memfs-watch", daemon=True).start()
        self._leader.start()

    def is_at_device(self, server: Server) -> bool:
        """Whether *server* is to take requests from the device."""
        return self._leader is server or self._second is server

    def note_end(self) -> None:
        """The file system has been unmounted."""
        self._on_end()

    def wake_watch(self) -> None:
        """Requests flow again."""
        self.watch_sleeps = False
        self._traffic.set()

    def delegate(self, ticket: Ticket) -> None:
        """Have a request served by a thread of its lane, now or later."""
        if ticket.lane.lanes.enter(ticket):
            self._take_server().start(ticket)

    def _find_caller(self, unique: int) -> Waiting | None:
        """Who waits for a request; None where none does."""
        ticket = self.lanes.find(unique) or self.read_lanes.find(unique)
        if ticket is not None:
            return Waiting(ticket.caller, ticket.reads)
        for server in list(self._servers):
            if server.unique == unique:
                return Waiting(server.caller, server.reads)
        return None

    def _interrupt(self, unique: int) -> None:
        """Answer a request with EINTR, wherever it is."""
        stuck = any(server.give_up(unique) for server in list(self._servers))
        if stuck or self.lanes.withdraw(unique) or self.read_lanes.withdraw(unique):
            self.switch.reply(messages.error_reply(unique, errno.EINTR))

    def park(self, server: Server) -> bool:
        """Keep *server* for later; False where there are enough and it should end."""
        with self._lock:
            if len(self._spare) < _SPARE_THREADS:
                self._spare.append(server)
                return True
            self._servers.remove(server)
            return False

    def _add_server(self) -> Server:
        reading = Reading(self.switch, self._splice, self._ahead, self.dropper)
        server = Server(self, len(self._servers), reading)
        self._servers.append(server)
        return server

    def _watch(self) -> None:
        quiet_ticks = total = 0
        while True:
            if self.watch_sleeps:
                self._traffic.wait()
                self._traffic.clear()
            time.sleep(_TICK_S)
            keeps = True
            try:
                keeps = self._look_after()
            except Exception:
                # Without the watchdog one stuck thread would stop the mount.
                log.exception("the watchdog failed for no known reason, and goes on")
            leader = self._leader
            requests = leader.requests
            before, total = total, sum(server.requests for server in list(self._servers))
            if total - before >= _BUSY_REQUESTS:
                quiet_ticks = 0
                self._keep_awake()
                continue
            quiet_ticks += 1
            if quiet_ticks >= _QUIET_TICKS and not self.interrupts.pending and not keeps:
                quiet_ticks = 0
                if self._latency is not None:
                    self._latency.release()
                self.watch_sleeps = True
                # A request may have come while this was being decided: then no one will wake us for it.
                if leader.busy or leader is not self._leader or leader.requests != requests:
                    self.watch_sleeps = False

    def _look_after(self) -> bool:
        """What the watchdog does at each tick; returns whether something is kept for a moment still."""
        self._replace_stuck()
        self._arrange_second()
        self._place(self._leader)
        self.interrupts.look()
        return self.desk.tidy()

    def _place(self, leader: Server) -> None:
        """Give who answers a direct reader and who reads ahead for it a CPU each, while both are busy."""
        before, self._placed_chunks = self._placed_chunks, self._ahead.chunks
        if leader.reading.reader and self._placed_chunks - before >= _BUSY_CHUNKS:
            self._placement.arrange(leader.reading.reader, leader.thread, self._ahead.thread)
        else:
            self._placement.undo()

    def _keep_awake(self) -> None:
        if self._latency is not None:
            try:
                self._latency.hold()
            except OSError as error:
                log.info("CPUs are not kept awake while reads flow: %s", error)
                self._latency = None

    def _arrange_second(self) -> None:
        """Let another thread serve beside the leader as long as that pays."""
        if not self._ahead.serves_bulk:
            if self._second is not None and not self._second.busy:
                self._second = None
        elif self._second is None:
            self._second = self._take_server()
            self._second.start()

    def _take_server(self) -> Server:
        with self._lock:
            return self._spare.pop() if self._spare else self._add_server()

    def _replace_stuck(self) -> None:
        """Where a thread at the device has been in one request since the last look, leave it to its lane."""
        leader, second = self._leader, self._second
        if second is not None and second.is_stuck():
            self._second = None
            second.leave_device()
        if leader.is_stuck():
            self._leader = self._take_server()
            log.debug("request %d takes long: %s takes over", leader.unique, self._leader.name)
            leader.leave_device()
            self._leader.start()
