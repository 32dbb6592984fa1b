"""A frozen copy of a stopped process: made by an injected fork, and taken back without a trace.

Two clones: one thread of the target makes a helper that shares its memory (so no page table is copied),
and the helper makes the copy. The helper leaves the target's descriptors, its process group and its
rseq area behind first, so the copy has none of them; then it is killed and reaped, before the target
goes on. The copy is the target's child all the same (CLONE_PARENT), for an orphan would go to init or
to a subreaper, which is told of its death; a child with exit signal 0 is shown to no wait(2) without
``__WALL`` or ``__WCLONE``, and sends no SIGCHLD. It never takes a step: its tracer kills it in the end,
and the target, stopped again for the blink of one call, reaps it.
"""

import contextlib
import errno
import itertools
import os
import re
import signal
from collections.abc import Iterator

import attrs

from memfs.errors import CannotFreeze, TargetExited, TargetStuck
from memfs.linux import procfs, ptrace, userfaultfd
from memfs.linux.arch import Architecture, Call
from memfs.linux.ptrace import WAIT_ALL, Option
from memfs.linux.scheduling import has_deadline, may_fork
from memfs.linux.status import read_thread_status
from memfs.linux.syscalls import borrow_descriptor
from memfs.target import withheld
from memfs.target.identity import path_of
from memfs.target.injection import Diverted, Injection
from memfs.target.stopped import StoppedProcess
from memfs.target.tracee import Killed, Tracee
from memfs.target.withheld import Among, Asking, Withheld

_CLONE_VM = 0x100  # <linux/sched.h>
_CLONE_FS = 0x200
_CLONE_FILES = 0x400
_CLONE_PARENT = 0x8000
_HELPER_FLAGS = _CLONE_VM | _CLONE_FS | _CLONE_FILES
_CLOSE_RANGE_UNSHARE = 2
_ALL_DESCRIPTORS = 0xFFFF_FFFF
_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_DUMPABLE = 1
_START = re.compile(rb"^[0-9a-f]+(?=-)", re.MULTILINE)  # of a line of maps

_MENDS = {
    errno.EAGAIN: "raise its limit of processes (ulimit -u, or pids.max of its cgroup)",
    errno.ENOMEM: "free memory, or raise the limit of its cgroup",
    errno.EPERM: "its seccomp filter forbids fork: mount as root, or with -o snapshot_fallback=copy",
    errno.ENOSYS: "its seccomp filter forbids fork: mount as root, or with -o snapshot_fallback=copy",
}


def ensure_possible(pid: int, thread: int) -> None:
    """Make sure that a copy made by *thread* would live where process *pid* lives.

    Raises:
        CannotFreeze: its children go into another pid namespace, as init.
    """
    namespace = path_of(pid, thread, "ns/pid")
    if os.stat(namespace).st_ino != os.stat(f"{namespace}_for_children").st_ino:
        raise CannotFreeze(
            f"the children of process {pid} go into another pid namespace",
            "take the snapshot before it calls unshare, or of its child",
            cause=errno.EOPNOTSUPP,
        )


@attrs.frozen
class Means:
    """What it takes to have a process run calls.

    Attributes:
        thread: of the process, which is to run them, see :func:`choose_thread`.
        call_address: of an instruction of the process that enters the kernel.
        patience_s: how long each of its steps may take.
    """

    thread: int
    call_address: int
    patience_s: float


@attrs.frozen
class Wishes:
    """What a copy is to have, although the process keeps it out of its forks.

    Attributes:
        beginning: tells at which of some addresses a VMA begins now.
        by_fork: find out by a fork which of it is kept out.
    """

    wanted: tuple[Withheld, ...]
    beginning: Among
    by_fork: bool


@attrs.frozen
class Forked:
    """A frozen copy.

    Attributes:
        let_in: memory that the process keeps out of its forks, and that is in this one.
        parent: the thread that it was made by; :meth:`Injection.beside` has the copy itself run calls.
    """

    copy: Tracee
    let_in: tuple[Withheld, ...]
    parent: Injection


def fork_copy(
    stopped: StoppedProcess,
    means: Means,
    wishes: Wishes,
    *,
    hide: bool,
) -> Forked:
    """Make a frozen copy of *stopped*. We are its tracer, and it ends when we do.

    Args:
        wishes: what is to be in it, too, although the process keeps it out of its forks.
        hide: have the copy closed to its own user: no one without CAP_SYS_PTRACE can read, write or
            trace it then (PR_SET_DUMPABLE, ptrace(2)). The process itself must be dumpable.

    Raises:
        CannotFreeze: the kernel refuses, or the process did something else than it was told.
        TargetStuck: a step of it takes too long.
        TargetExited: it was killed meanwhile.
    """
    with (
        explained(stopped.pid),
        _running(stopped, means, Option.EXIT_KILL) as injection,
        may_fork(means.thread),
    ):
        if hide:
            _close_to_others(injection)
        helper = Tracee(injection.clone(_HELPER_FLAGS))
        try:
            stopped.hurry(helper.pid)
            helper.await_birth(means.patience_s)
            return _copy_by(helper, injection, stopped, means.patience_s, wishes)
        finally:
            injection.give_up(helper)


@contextlib.contextmanager
def explained(pid: int) -> Iterator[None]:
    """Say in a sentence why process *pid*, or a copy of it, does not run the calls of a snapshot.

    Raises:
        CannotFreeze, TargetStuck, TargetExited: instead of what is raised in it.
    """
    try:
        yield
    except Killed:
        raise TargetExited(f"process {pid} was killed meanwhile") from None
    except Diverted:
        raise CannotFreeze(
            f"process {pid} did something else than the system calls of a snapshot, and was not let do it",
            "someone changes its code meanwhile, as an attack would: see what runs there",
            cause=errno.EIO,
        ) from None
    except TimeoutError:
        raise TargetStuck(
            f"a fork of process {pid} does not come to its end",
            "its userfaultfd asks to be told of forks, and no one listens: try again later",
        ) from None
    except OSError as error:
        number = error.errno or errno.EIO
        raise CannotFreeze(
            f"process {pid} cannot be forked ({error.strerror})", _MENDS.get(number, ""), cause=number
        ) from None


def make_userfaultfd(stopped: StoppedProcess, means: Means) -> int:
    """Have *stopped* make a userfaultfd of its address space; returns a descriptor of ours.

    It has no descriptor of it itself, not for a moment: a helper makes it that has left its descriptors.

    Raises:
        OSError, Killed, Diverted, TimeoutError: it could not.
    """
    with _running(stopped, means, Option.EXIT_KILL) as injection:
        helper = Tracee(injection.clone(_HELPER_FLAGS))
        try:
            stopped.hurry(helper.pid)
            helper.await_birth(means.patience_s)
            beside = injection.beside(helper.pid, extra=Option.EXIT_KILL)
            beside.call(Call.CLOSE_RANGE, 0, _ALL_DESCRIPTORS, _CLOSE_RANGE_UNSHARE)
            return borrow_descriptor(helper.pid, beside.call(Call.USERFAULTFD, userfaultfd.CREATE_FLAGS))
        finally:
            injection.give_up(helper)


def _close_to_others(injection: Injection) -> None:
    """Make the process undumpable until it goes on: the copy is born so, and stays so.

    Were it done to the copy after its birth, its user could have opened its memory before.
    """
    injection.defer(Call.PRCTL, _PR_SET_DUMPABLE, _DUMPABLE, 0, 0, 0)
    injection.call(Call.PRCTL, _PR_SET_DUMPABLE, 0, 0, 0, 0)


def reap_child(stopped: StoppedProcess, means: Means, number: int) -> None:
    """Have *stopped* take the status of its child that has ended; *number* is how it sees it.

    Where it has run exec since the child was born, the kernel has sent it a SIGCHLD, whatever the child was
    to send (``do_notify_parent``, kernel/signal.c). If all threads stood still then, no one is told of it.

    Raises:
        OSError, Killed, Diverted, TimeoutError: it could not.
    """
    with _running(stopped, means, Option.NONE) as injection:
        if number in ptrace.read_pending_children(means.thread):
            injection.swallow(signal.SIGCHLD)
        injection.call(Call.WAIT4, number, 0, os.WNOHANG | WAIT_ALL, 0)


@contextlib.contextmanager
def _running(stopped: StoppedProcess, means: Means, extra: Option) -> Iterator[Injection]:
    """One thread of *stopped*, to run calls for us."""
    thread = means.thread
    registers = stopped.registers[thread]
    stopped.hurry(thread)
    injection = Injection(
        thread,
        registers,
        architecture_of(stopped, thread),
        means.call_address,
        means.patience_s,
        extra=extra,
    )
    try:
        # A filter may answer a call that it does not like with the death of the process: do not try.
        if not injection.seccomp_suspended and read_thread_status(stopped.pid, thread).seccomp:
            raise OSError(errno.EPERM, "a seccomp filter is in the way and cannot be suspended")
        yield injection
    finally:
        try:
            injection.restore(stopped.pid)
        except TimeoutError:
            stopped.keep(thread, injection.restore)
        stopped.unreaped += [arguments[0] for call, arguments in injection.undone if call is Call.WAIT4]


def choose_thread(stopped: StoppedProcess) -> int:
    """The thread to run our calls: best one that waits in a call of its own, and has no deadline.

    Raises:
        CannotFreeze: the processor runs all in a mode that memfs does not know.
    """
    for architecture in stopped.machine.architectures:
        able = [tid for tid, found in stopped.registers.items() if architecture.is_mode_of(found)]
        waiting = (tid for tid in able if architecture.call_number(stopped.registers[tid]) >= 0)
        best = (tid for tid in itertools.chain(waiting, able) if not has_deadline(tid))
        if able:
            return next(best, able[0])
    raise CannotFreeze(
        f"process {stopped.pid} runs in a mode of the processor that memfs does not know",
        "mount with -o snapshot_fallback=copy",
        cause=errno.EOPNOTSUPP,
    )


def architecture_of(stopped: StoppedProcess, thread: int) -> Architecture:
    """The mode of a thread that :func:`choose_thread` gave."""
    architecture = stopped.architecture_of(thread)
    assert architecture is not None
    return architecture


def _copy_by(
    helper: Tracee, parent: Injection, stopped: StoppedProcess, patience_s: float, wishes: Wishes
) -> Forked:
    injection = parent.beside(helper.pid, extra=Option.EXIT_KILL)
    injection.call(Call.CLOSE_RANGE, 0, _ALL_DESCRIPTORS, _CLOSE_RANGE_UNSHARE)
    injection.call(Call.SETSID)
    with contextlib.ExitStack() as ending:

        def fork() -> Tracee:
            copy = Tracee(injection.clone(_CLONE_PARENT))
            try:
                stopped.hurry(copy.pid)
                copy.await_birth(patience_s)
            except BaseException:
                parent.give_up(copy)
                raise
            return copy

        def lacking(addresses: list[int]) -> frozenset[int]:
            probe = fork()
            ending.callback(parent.give_up, probe)  # its memory is freed while the copy is made
            starts = _START.findall(procfs.read_file(f"/proc/{probe.pid}/maps"))
            probe.hasten()
            probe.kill()
            injection.leave_clone()
            return frozenset(addresses).difference(int(start, 16) for start in starts)

        asking = Asking(wishes.beginning, lacking if wishes.by_fork else None)
        let_in = withheld.let_in(injection, parent, wishes.wanted, asking)
        try:
            copy = fork()
        except OSError as error:
            if error.errno != errno.ENOMEM or not let_in:
                raise
            # More memory is promised than there may be (vm.overcommit_memory): the process may count on that.
            withheld.keep_out(injection, let_in)
            let_in = []
            copy = fork()
        return Forked(copy, tuple(let_in), parent)
