"""The descriptors of one mm: all opened of the same program, and closed by their last holder."""

import os
import threading

import attrs

from memfs.errors import AccessDenied, TargetExited, TargetReplaced
from memfs.linux.execwatch import ExecWatch
from memfs.linux.stat import Stat
from memfs.target.access import why_denied
from memfs.target.identity import ProcessHandle, path_of

_TRIES = 16


class OpenFiles:
    """The open files of one mm, which several address spaces may hold.

    Attributes:
        process: handle of the process; the last holder closes it as well.
        maps, pagemap, mem: descriptors of the files of that name; -1 where they are not open.
    """

    def __init__(self, process: ProcessHandle) -> None:
        """Take *process* over, and begin with one holder."""
        self.process = process
        self.maps = self.pagemap = self.mem = -1
        self._holders = 1
        self._lock = threading.Lock()

    def open(self, thread: int, *, memory: bool) -> bool:
        """Open the files of *thread*, ``mem`` only with *memory*; returns False where it has ended.

        Raises:
            AccessDenied: the ptrace access check refuses us.
        """
        try:
            self.maps = self._open(thread, "maps")
            self.pagemap = self._open(thread, "pagemap")
            if memory:
                self.mem = self._open(thread, "mem")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def _open(self, thread: int, name: str) -> int:
        pid = self.process.identity.pid
        try:
            return os.open(path_of(pid, thread, name), os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            reason = why_denied(thread)
            raise AccessDenied(f"process {pid} may not be read: {reason.cause}", reason.mend) from None

    def clear(self) -> None:
        """Close the descriptors, but not the handle of the process."""
        opened = (self.maps, self.pagemap, self.mem)
        self.maps = self.pagemap = self.mem = -1
        for fd in opened:
            if fd >= 0:
                os.close(fd)

    def hold(self) -> bool:
        """Add a holder; returns False where the files are closed already."""
        with self._lock:
            if not self._holders:
                return False
            self._holders += 1
            return True

    def let_go(self) -> None:
        """Remove a holder; the last one closes everything."""
        with self._lock:
            self._holders -= 1
            last = not self._holders
        if last:
            self.clear()
            self.process.close()


@attrs.frozen
class Opened:
    """The files of one mm, and the program to which they belong.

    Attributes:
        thread: the tid by which they were opened: the main thread, unless that has ended.
        watch: of that thread; None where it is not watched.
    """

    files: OpenFiles
    thread: int
    stat: Stat
    watch: ExecWatch | None


def open_files(process: ProcessHandle, *, memory: bool, watched: bool, frozen: bool) -> Opened:
    """Open the files of the mm that *process* has now; the caller lets go of them and closes the watch.

    *process* is taken over. A *frozen* one never runs exec.

    Raises:
        TargetExited: the process has ended.
        TargetReplaced: it runs one program after another.
        AccessDenied: the ptrace access check refuses us.
    """
    files = OpenFiles(process)
    watch = None
    try:
        # An exec may come between the opening of two files. Then they would belong to two programs. Or the
        # thread by which they are opened ends, and they show nothing. So both are compared afterwards, and
        # all files are opened again where they differ.
        before = process.ensure_same()
        for _ in range(_TRIES):
            thread = before.thread
            watch = _try_to_watch(thread) if watched else None
            complete = files.open(thread, memory=memory)
            now = process.ensure_same()
            if not complete and not now.has_memory:
                raise TargetExited(f"process {process.identity.pid} is ending")
            same = before.same_program(now) and thread == now.thread
            changed = process.exited if frozen else watch is not None and watch.tripped
            if complete and same and not changed:
                return Opened(files, thread, now, watch)
            before = now
            if watch is not None:
                watch.close()
                watch = None
            files.clear()
        raise TargetReplaced(f"process {process.identity.pid} runs one program after another", "try again")
    except BaseException:
        if watch is not None:
            watch.close()
        files.let_go()
        raise


def _try_to_watch(tid: int) -> ExecWatch | None:
    try:
        return ExecWatch(tid)
    except OSError:
        return None
