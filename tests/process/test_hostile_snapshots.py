"""Targets that are hostile to a snapshot, or to the copy that was made of them."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.freezing import snapshots
from support.compiled import build
from support.outside import children_of, thread_states

from memfs.errors import MemfsError, TargetBusy
from memfs.snapshot.registry import Snapshots
from memfs.snapshot.snapshot import Snapshot
from memfs.target.identity import Identity, identify

USER = 65533
MANY = 100
HANG_S = 60


@contextmanager
def _program(source: str, *arguments: str, user: int | None = USER) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program that has written a line; it is killed in the end."""
    with _running("/usr/bin/python3", "-c", source, *arguments, user=user) as program:
        yield program


@contextmanager
def _running(*argv: str | Path, user: int | None = USER) -> Iterator[subprocess.Popen[bytes]]:
    """The same for any program."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=user) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline()
            yield program
        finally:
            program.kill()


def _answers(program: subprocess.Popen[bytes]) -> bytes:
    """What it says when it is sent a line."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(b"\n")
    program.stdin.flush()
    return program.stdout.readline()


_ANSWERS = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print("here", flush=True)
"""


def _take(registry: Snapshots, pid: int, name: bytes = b"one") -> Snapshot:
    return registry.get(registry.make(identify(pid), name))


def _is_there(pidfd: int) -> bool:
    """Whether a process is there, be it as a zombie."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


# The copy belongs to memfs

_ATTACKS_COPY = """
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
memory = ctypes.create_string_buffer(b"as it was", 4096)
print(ctypes.addressof(memory), flush=True)
copy = int(sys.stdin.readline())
failed = []

def attempt(name, action):
    try:
        action()
    except OSError as error:
        failed.append(name)

def write():
    new = ctypes.create_string_buffer(b"forged")
    vectors = (ctypes.c_uint64 * 4)(ctypes.addressof(new), 6, ctypes.addressof(memory), 6)
    base = ctypes.addressof(vectors)
    if libc.process_vm_writev(copy, ctypes.c_void_p(base), 1, ctypes.c_void_p(base + 16), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_writev")

def trace():
    if libc.ptrace(0x4206, copy, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "PTRACE_SEIZE")

attempt("write", write)
attempt("mem", lambda: os.close(os.open(f"/proc/{copy}/mem", os.O_RDWR)))
attempt("maps", lambda: open(f"/proc/{copy}/maps").read())
attempt("trace", trace)
print(*failed, flush=True)
sys.stdin.read()
"""


def test_its_own_user_can_neither_write_to_a_copy_nor_read_nor_trace_it() -> None:
    with (
        snapshots() as registry,
        subprocess.Popen(
            ["/usr/bin/python3", "-c", _ATTACKS_COPY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=USER,
        ) as program,
    ):
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            address = int(program.stdout.readline())
            snapshot = _take(registry, program.pid)
            assert snapshot.frozen.copy is not None
            program.stdin.write(b"%d\n" % snapshot.frozen.copy.pid)
            program.stdin.flush()
            assert program.stdout.readline() == b"write mem maps trace\n"
            with snapshot.open() as space:
                assert os.pread(space.mem, 9, address) == b"as it was"
        finally:
            program.kill()


def test_the_process_itself_stays_dumpable() -> None:
    with snapshots() as registry, _program(_ANSWERS) as program:
        owner = os.stat(f"/proc/{program.pid}/mem").st_uid
        assert owner == USER
        _take(registry, program.pid)
        assert os.stat(f"/proc/{program.pid}/mem").st_uid == USER


def test_a_copy_is_reaped_though_its_worker_was_killed() -> None:
    with snapshots() as registry, _program(_ANSWERS) as program:
        snapshot = _take(registry, program.pid)
        assert snapshot.frozen.copy is not None
        ((_, worker),) = thread_states(snapshot.frozen.copy.pid).values()
        copy = os.pidfd_open(snapshot.frozen.copy.pid)
        os.kill(worker, signal.SIGKILL)
        for _ in range(MANY):  # who takes a snapshot waits for its turn, after whoever reaps
            registry.remove(registry.make(identify(program.pid), b"two").identity, b"two")
            if not _is_there(copy):
                break
        assert not _is_there(copy), "the copy is a zombie"
        os.close(copy)
        assert _answers(program) == b"here\n"


# No one waits for another's turn in vain


def test_cores_one_after_another_never_find_the_process_busy() -> None:
    with snapshots() as registry, _program(_ANSWERS) as program:
        identity = identify(program.pid)
        for _ in range(MANY):
            registry.share(identity).drop()


def test_snapshots_at_once_of_one_process_take_turns() -> None:
    failed: list[BaseException] = []

    def take(registry: Snapshots, identity: Identity, name: bytes) -> None:
        try:
            for _ in range(5):
                registry.make(identity, name)
                registry.remove(identity, name)
        except BaseException as error:  # noqa: BLE001 - the test fails by it
            failed.append(error)

    with snapshots() as registry, _program(_ANSWERS) as program:
        identity = identify(program.pid)
        threads = [threading.Thread(target=take, args=(registry, identity, b"%d" % n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        assert failed == []


# What the process is at when it is stopped

_DIES = """
import os, signal, sys, threading
def spin():
    while True:
        pass
for _ in range(3):
    threading.Thread(target=spin, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[1] == "exit":
    os._exit(0)
if sys.argv[1] == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.read()"])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["exit", "exec", "kill"])
def test_a_process_that_goes_while_it_is_frozen_is_a_snapshot_or_an_error(how: str) -> None:
    """It is told to go at once, and goes before, in or after the stop."""
    for _ in range(10):
        with snapshots() as registry, _program(_DIES, how) as program:
            identity = identify(program.pid)
            assert program.stdin is not None
            if how == "kill":
                threading.Thread(target=program.kill).start()
            else:
                program.stdin.write(b"\n")
                program.stdin.flush()
            with contextlib.suppress(MemfsError):
                snapshot = registry.get(registry.make(identity, b"one"))
                assert snapshot.frozen.copy is not None
            if how == "exec":
                assert {tracer for _, tracer in thread_states(program.pid).values()} == {0}
            else:
                program.wait(HANG_S)


_COUNTS_ITS_CHILDREN = """
import os, signal, sys
told = []
if len(sys.argv) == 2:
    print("ready", flush=True)
    sys.stdin.readline()
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1], sys.argv[1], "again"])
signal.signal(signal.SIGCHLD, lambda *_: told.append(1))
print("execed", flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    print(len(told), flush=True)
"""


@pytest.mark.parametrize("copies", [1, 3])
def test_a_program_that_was_execed_since_hears_nothing_of_the_end_of_the_copies(copies: int) -> None:
    """The kernel makes a SIGCHLD of it then, whatever exit signal the copy has."""
    with _program(_COUNTS_ITS_CHILDREN, _COUNTS_ITS_CHILDREN) as program:
        children = children_of(program.pid)
        with snapshots() as registry:
            for number in range(copies):
                _take(registry, program.pid, b"%d" % number)
            assert _answers(program) == b"execed\n"
            for number in range(copies):
                registry.remove(identify(program.pid), b"%d" % number)
            assert _answers(program) == b"0\n"
        assert program.stdin is not None
        program.stdin.write(b"fork")
        assert _answers(program) == b"1\n"  # its own children it hears of
        assert children_of(program.pid) == children


_SECCOMP = """
import ctypes, struct, sys
# What a snapshot calls gets ACTION, all else is allowed (<linux/filter.h>, <linux/seccomp.h>).
action = int(sys.argv[1], 16)
calls = (56, 435, 61, 157, 436, 112)
rules = [(0x20, 0, 0, 0)]
rules += [(0x15, len(calls) - number, 0, call) for number, call in enumerate(calls)]
rules += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, action)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
program = struct.pack("=H6xQ", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
NEW_LISTENER = 8
if action == 0x7FC00000:
    assert libc.syscall(317, 1, NEW_LISTENER, ctypes.c_char_p(program)) >= 0
else:
    assert libc.prctl(22, 2, ctypes.c_char_p(program)) == 0
print("ready", flush=True)
for line in sys.stdin:
    print("here", flush=True)
"""
_ACTIONS = {"trace": 0x7FF00000, "notify": 0x7FC00000, "kill thread": 0, "kill process": 0x80000000}


@pytest.mark.parametrize("action", _ACTIONS)
def test_no_kind_of_seccomp_filter_sees_the_calls(action: str) -> None:
    with snapshots() as registry, _program(_SECCOMP, f"{_ACTIONS[action]:x}") as program:
        snapshot = _take(registry, program.pid)
        assert snapshot.frozen.copy is not None
        registry.remove(snapshot.id.identity, b"one")
        assert _answers(program) == b"here\n"
        assert children_of(program.pid) == set()


_DISPATCHES = """
import ctypes, sys
libc = ctypes.CDLL(None)
print("ready", flush=True)
# PR_SET_SYSCALL_USER_DISPATCH: calls from anywhere but the code of libc become SIGSYS.
code = [line.split() for line in open("/proc/self/maps") if "libc.so" in line and "r-xp" in line][0][0]
start, end = (int(part, 16) for part in code.split("-"))
selector = ctypes.create_string_buffer(b"\\x01", 1)
libc.prctl(59, 1, ctypes.c_ulong(start), ctypes.c_ulong(end - start), selector)
for line in sys.stdin:
    print("here", flush=True)
"""


def test_the_dispatch_of_system_calls_to_the_process_itself_is_left_as_it_was() -> None:
    with snapshots() as registry, _program(_DISPATCHES) as program:
        assert _answers(program) == b"here\n"
        for _ in range(3):
            snapshot = _take(registry, program.pid)
            registry.remove(snapshot.id.identity, b"one")
            assert _answers(program) == b"here\n"


@pytest.mark.parametrize("how", ["waits", "spins"])
def test_a_process_without_a_vdso_is_frozen_by_another_instruction_of_its_own(how: str) -> None:
    with snapshots() as registry, _running(build("novdso"), how) as program:
        for _ in range(3):
            snapshot = _take(registry, program.pid)
            assert snapshot.frozen.copy is not None
            registry.remove(snapshot.id.identity, b"one")
        if how == "waits":
            assert _answers(program) == b"here\n"


_TRACED_BY_CHILD = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER_ANY, where Yama asks for it
ready, told = os.pipe()
if os.fork() == 0:
    assert libc.ptrace(0x4206, os.getppid(), 0, 0) == 0
    os.write(told, b"x")
    sys.stdin.read()
    os._exit(0)
os.read(ready, 1)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_traced_by_its_own_child_is_busy_and_goes_on() -> None:
    with snapshots() as registry, _program(_TRACED_BY_CHILD) as program:
        with pytest.raises(TargetBusy) as error:
            _take(registry, program.pid)
        assert "traced by process" in str(error.value)
        assert thread_states(program.pid)[program.pid][0] in "SR"


_FORK_EVENTS = """
import ctypes, fcntl, mmap, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
uffd = libc.syscall(323, 0)
assert uffd >= 0
fcntl.ioctl(uffd, 0xC018AA3F, bytearray(struct.pack("=QQQ", 0xAA, 1 << 1, 0)))  # UFFD_FEATURE_EVENT_FORK
memory = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(uffd, 0xC020AA00, bytearray(struct.pack("=QQQQ", address, 1 << 16, 1, 0)))  # UFFDIO_REGISTER
print("ready", flush=True)
for line in sys.stdin:
    print("here", flush=True)
"""


def test_a_process_whose_userfaultfd_is_not_told_of_a_fork_goes_on_as_it_was() -> None:
    with _program(_FORK_EVENTS, user=None) as program:
        with snapshots() as registry:
            with pytest.raises(TargetBusy) as error:
                _take(registry, program.pid)
            assert "does not come to its end" in str(error.value)
            assert _answers(program) == b"here\n"
        assert {tracer for _, tracer in thread_states(program.pid).values()} == {0}
        assert children_of(program.pid) == set()
