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
import os
import signal
import time
from collections.abc import Iterator

from memfs.errors import CannotFreeze, TargetExited, TargetStuck
from memfs.linux import procfs, ptrace
from memfs.linux.arch import Architecture, Call
from memfs.linux.ptrace import Option
from memfs.linux.span import PAGE_BYTES
from memfs.linux.syscalls import read_process
from memfs.target.injection import Injection, Killed
from memfs.target.stopped import StoppedProcess

_CLONE_VM = 0x100  # <linux/sched.h>
_CLONE_FS = 0x200
_CLONE_FILES = 0x400
_CLONE_PARENT = 0x8000
_HELPER_FLAGS = _CLONE_VM | _CLONE_FS | _CLONE_FILES
_CLOSE_RANGE_UNSHARE = 2
_ALL_DESCRIPTORS = 0xFFFF_FFFF
_WALL = 0x4000_0000
_FIRST_TO_BE_KILLED = b"1000"
_AT_SYSINFO_EHDR = 33  # <linux/auxvec.h>: where the vDSO begins
_VDSO_BYTES = 2 * PAGE_BYTES
_ELF_MAGIC = b"\x7fELF"

_MENDS = {
    errno.EAGAIN: "raise its limit of processes (ulimit -u, or pids.max of its cgroup)",
    errno.ENOMEM: "free memory, or raise the limit of its cgroup",
    errno.EPERM: "its seccomp filter forbids fork: mount as root, or with -o snapshot_fallback=copy",
    errno.ENOSYS: "its seccomp filter forbids fork: mount as root, or with -o snapshot_fallback=copy",
}


def ensure_possible(pid: int) -> None:
    """Make sure that a copy would live where the process lives.

    Raises:
        CannotFreeze: its children go into another pid namespace, as init.
    """
    namespace = f"/proc/{pid}/ns/pid"
    if os.stat(namespace).st_ino != os.stat(f"{namespace}_for_children").st_ino:
        raise CannotFreeze(
            f"the children of process {pid} go into another pid namespace",
            "take the snapshot before it calls unshare, or of its child",
            cause=errno.EOPNOTSUPP,
        )


def fork_copy(stopped: StoppedProcess, patience_s: float) -> int:
    """Make a frozen copy of *stopped*; returns its pid. We are its tracer, and it ends when we do.

    Raises:
        CannotFreeze: the kernel refuses.
        TargetStuck: a step of it takes longer than *patience_s*.
        TargetExited: it was killed meanwhile.
    """
    pid = stopped.pid
    try:
        with _running(stopped, patience_s, Option.EXIT_KILL) as injection:
            helper = injection.clone(_HELPER_FLAGS)
            try:
                return _copy_by(helper, injection, patience_s)
            finally:
                end(helper)
                injection.call(Call.WAIT4, injection.finish_clone(), 0, _WALL, 0)
    except Killed:
        raise TargetExited(f"process {pid} was killed meanwhile") from None
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


def reap_copy(stopped: StoppedProcess, patience_s: float, number: int) -> None:
    """Have *stopped*, the parent of a copy that has ended, take its status; *number* is how it sees it.

    Raises:
        OSError, Killed, TimeoutError: it could not.
    """
    with _running(stopped, patience_s, Option.NONE) as injection:
        injection.call(Call.WAIT4, number, 0, os.WNOHANG | _WALL, 0)


@contextlib.contextmanager
def _running(stopped: StoppedProcess, patience_s: float, extra: Option) -> Iterator[Injection]:
    """One thread of *stopped*, to run calls for us."""
    thread = _choose_thread(stopped)
    address = _find_call_address(stopped.pid, stopped.architecture)
    injection = Injection(
        thread, stopped.registers[thread], stopped.architecture, address, patience_s, extra=extra
    )
    try:
        # A filter may answer a call that it does not like with the death of the process: do not try.
        if not injection.seccomp_suspended and procfs.read_thread_status(stopped.pid, thread).seccomp:
            raise OSError(errno.EPERM, "a seccomp filter is in the way and cannot be suspended")
        yield injection
    finally:
        injection.restore(stopped.pid)


def _find_call_address(pid: int, architecture: Architecture) -> int:
    """Where *pid* has an instruction that enters the kernel: in its vDSO.

    Raises:
        CannotFreeze: it has none.
    """
    begin = procfs.read_auxv(pid).get(_AT_SYSINFO_EHDR, 0)
    code = bytearray(_VDSO_BYTES)
    with contextlib.suppress(OSError):
        length = read_process(pid, (begin, memoryview(code)))
        found = code.find(architecture.call_instruction, 0, length)
        if code.startswith(_ELF_MAGIC) and found >= 0:
            return begin + found
    raise CannotFreeze(
        f"process {pid} has no vDSO with a system call in it",
        "boot without vdso=0, or mount with -o snapshot_fallback=copy",
        cause=errno.EOPNOTSUPP,
    )


def _choose_thread(stopped: StoppedProcess) -> int:
    """The thread to run our calls: best one that waits in a call of its own."""
    architecture = stopped.architecture
    native = [tid for tid, found in stopped.registers.items() if architecture.is_native(found)]
    if not native:
        raise CannotFreeze(
            f"process {stopped.pid} runs in 32-bit mode",
            "mount with -o snapshot_fallback=copy",
            cause=errno.EOPNOTSUPP,
        )
    waiting = (tid for tid in native if architecture.call_number(stopped.registers[tid]) >= 0)
    return next(waiting, native[0])


def _copy_by(helper: int, parent: Injection, patience_s: float) -> int:
    _await_birth(helper, patience_s)
    injection = parent.beside(helper, extra=Option.EXIT_KILL)
    injection.call(Call.CLOSE_RANGE, 0, _ALL_DESCRIPTORS, _CLOSE_RANGE_UNSHARE)
    injection.call(Call.SETSID)
    copy = injection.clone(_CLONE_PARENT)
    _await_birth(copy, patience_s)
    return copy


def _await_birth(tid: int, patience_s: float) -> None:
    if not ptrace.wait(tid, time.monotonic() + patience_s).alive:
        raise Killed


def end(pid: int) -> None:
    """Kill a tracee of ours and wait until it has ended; what is left is for its parent to reap."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, _WALL)[1]):
            pass


def settle(copy: int) -> None:
    """What is to be done of a copy once the target goes on: memory short, it goes before anyone else."""
    with contextlib.suppress(OSError), open(f"/proc/{copy}/oom_score_adj", "wb") as file:
        file.write(_FIRST_TO_BE_KILLED)
