"""The checks of ``memfs doctor``: each tries a thing once, by doing it."""

import contextlib
import errno
import mmap
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from memfs.errors import MemfsError
from memfs.image.source import MAX_READ_BYTES
from memfs.linux import procfs, ptrace
from memfs.linux.fusefd import knows_backing
from memfs.linux.maps import MappingQuery, parse_maps
from memfs.linux.pagemap import Scanner
from memfs.linux.pipe import Pipe
from memfs.linux.protected import shows_protected
from memfs.linux.qos import LatencyRequest
from memfs.linux.span import PAGE_BYTES, Span
from memfs.linux.syscalls import address_of, read_process, vmsplice_shares_pages
from memfs.snapshot.forkserver import ForkServer
from memfs.snapshot.registry import Snapshots
from memfs.target.access import effective_capabilities, may_trace_all, yama_scope
from memfs.target.identity import identify

_CAP_SYS_ADMIN = 21


@attrs.frozen
class Finding:
    """What came of one check.

    Attributes:
        needed: whether memfs cannot mount without.
        detail: what was seen, or why it does not work.
        cost: what it costs to be without; empty where it works.
        mend: the command or the step that would turn it on; empty where it works.
    """

    name: str
    works: bool
    detail: str
    cost: str = ""
    mend: str = ""
    needed: bool = False

    def as_line(self) -> str:
        """One line for people."""
        line = f"{'ok' if self.works else 'no':3} {self.name}: {self.detail}"
        return line if self.works else f"{line}; without it {self.cost}; to mend: {self.mend}"

    def as_dict(self) -> dict[str, object]:
        """The same for programs."""
        return attrs.asdict(self)


@attrs.frozen
class _Check:
    """A feature: how to try it, and what to say where it is missing.

    Attributes:
        attempt: returns what was seen; raises OSError with the reason where it does not work.
    """

    name: str
    attempt: Callable[[], str]
    cost: str
    mend: str
    needed: bool = False

    def run(self) -> Finding:
        """Try it."""
        try:
            detail = self.attempt()
        except OSError as error:
            reason = error.strerror or str(error)
            return Finding(self.name, False, reason, self.cost, self.mend, self.needed)
        return Finding(self.name, True, detail, needed=self.needed)


def run_checks() -> list[Finding]:
    """All checks, in the order in which they matter."""
    return [check.run() for check in _CHECKS]


def _missing(reason: str) -> OSError:
    return OSError(errno.ENOENT, reason)


@contextlib.contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_device() -> str:
    with _opened("/dev/fuse", os.O_RDWR):
        return "/dev/fuse opens"


def _try_fusermount() -> str:
    path = shutil.which("fusermount3")
    if path is None:
        raise _missing("not found in PATH")
    if not os.stat(path).st_mode & 0o4000:
        raise _missing(f"{path} is not set-uid root")
    return path


def _try_trace() -> str:
    if may_trace_all():
        return "CAP_SYS_PTRACE is held: the memory of every process can be read"
    if yama_scope():
        raise _missing(f"no CAP_SYS_PTRACE, and kernel.yama.ptrace_scope is {yama_scope()}")
    raise _missing("no CAP_SYS_PTRACE: only processes of the same user can be read")


def _try_scan() -> str:
    scanner = Scanner()
    with _opened("/proc/self/pagemap") as pagemap:
        list(scanner.runs(pagemap, Span(0, PAGE_BYTES)))
    if not scanner.uses_scan:
        raise _missing("the kernel has no PAGEMAP_SCAN (Linux 6.7)")
    return "PAGEMAP_SCAN answers" + (", with guard regions" if scanner.knows_guards else "")


def _try_query() -> str:
    with _opened("/proc/self/maps") as maps:
        MappingQuery(maps, paths=False).at(0)
    return "PROCMAP_QUERY answers"


def _try_protected() -> str:
    if not shows_protected():
        raise _missing("/proc/PID/mem gives no pages that the process itself may not read")
    return "/proc/PID/mem gives what PROT_NONE hides"


def _try_vm_readv() -> str:
    page = mmap.mmap(-1, PAGE_BYTES)
    read_process(os.getpid(), (address_of(page), memoryview(bytearray(1))))
    return "process_vm_readv reads"


def _try_map_files() -> str:
    text = procfs.read_file("/proc/self/maps")
    mapped = next(m for m in parse_maps(text) if m.path == os.fsencode(os.path.realpath(sys.executable)))
    with _opened(f"/proc/self/map_files/{mapped.span}"):
        return "/proc/PID/map_files opens"


def _try_vmsplice() -> str:
    if not vmsplice_shares_pages():
        raise _missing("vmsplice copies the pages that it is given")
    return "vmsplice shares its pages"


def _try_pipe() -> str:
    pipe = Pipe(2 * MAX_READ_BYTES)
    pipe.close()
    if pipe.slots <= MAX_READ_BYTES // PAGE_BYTES:
        raise _missing(f"a pipe holds {pipe.slots * PAGE_BYTES >> 10} KiB at most")
    return f"a pipe holds {pipe.slots * PAGE_BYTES >> 10} KiB"


def _try_passthrough() -> str:
    if not effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        raise _missing("no CAP_SYS_ADMIN")
    with _opened("/dev/fuse", os.O_RDWR) as device:
        if not knows_backing(device):
            raise _missing("the kernel has no FUSE_PASSTHROUGH (Linux 6.9)")
    return "the kernel reads large shared memory by itself"


def _try_latency() -> str:
    request = LatencyRequest()
    request.hold()
    request.release()
    return "/dev/cpu_dma_latency takes a request"


def _try_readahead() -> str:
    if not os.access("/sys/class/bdi", os.W_OK):
        raise PermissionError(errno.EACCES, "/sys/class/bdi may not be written")
    return "/sys/class/bdi can be written"


@contextlib.contextmanager
def _child() -> Iterator[int]:
    """A process that waits; it is killed in the end."""
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _try_snapshot() -> str:
    server = ForkServer()
    snapshots = Snapshots(server.connect, copy_bytes=0, fall_back=False)
    try:
        with _child() as child:
            found = snapshots.share(identify(child))
            found.drop(wait=True)
    except MemfsError as error:
        raise _missing(error.sentence) from None
    finally:
        server.close()
    return f"a process was frozen, and stood still for {found.frozen.phases.pause} us"


def _try_seccomp() -> str:
    with _child() as child:
        ptrace.seize(child, ptrace.Option.SUSPEND_SECCOMP)
    return "seccomp filters can be suspended"


def _try_priority() -> str:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return "real-time scheduling is granted"


def _try_syslog() -> str:
    if not Path("/dev/log").exists():
        raise _missing("there is no /dev/log")
    return "/dev/log is there"


_CHECKS = (
    _Check(
        "fuse device",
        _try_device,
        "nothing can be mounted",
        "modprobe fuse; chmod 0666 /dev/fuse",
        needed=True,
    ),
    _Check(
        "fusermount3",
        _try_fusermount,
        "only root can mount",
        "apt-get install fuse3",
        needed=os.geteuid() != 0,
    ),
    _Check(
        "ptrace",
        _try_trace,
        "other processes give EACCES",
        "mount as root, or sysctl kernel.yama.ptrace_scope=0",
    ),
    _Check(
        "protected pages",
        _try_protected,
        "pages that are PROT_NONE, write-only or exec-only give EACCES",
        "boot without proc_mem.force_override=never",
    ),
    _Check(
        "pagemap scan",
        _try_scan,
        "8 bytes are read for each page to find holes, pages of zeros that were only read are data, memory "
        "that is unmapped and mapped again during a read may read as zeros, and large shared memory that is "
        "being written is not in snapshots",
        "run Linux 6.7 or later",
    ),
    _Check(
        "mapping query",
        _try_query,
        "each look at one mapping reads the whole maps text, and a hole that has just been unmapped may be "
        "told as a hole for 20 ms",
        "run Linux 6.11 or later",
    ),
    _Check(
        "process_vm_readv",
        _try_vm_readv,
        "large reads are copied once more, and what a userfaultfd or another file system has yet to supply "
        "gives EIO",
        "allow it in the container's seccomp profile, or run a kernel with CONFIG_CROSS_MEMORY_ATTACH",
    ),
    _Check(
        "map_files",
        _try_map_files,
        "shared memory is read through its process, whose page tables grow",
        "mount as root, or with CAP_CHECKPOINT_RESTORE",
    ),
    _Check(
        "vmsplice",
        _try_vmsplice,
        "replies are copied once more",
        "none is needed: -o splice=off says the same",
    ),
    _Check(
        "pipe size",
        _try_pipe,
        "replies of 1 MiB are copied, smaller ones are not",
        f"sysctl fs.pipe-max-size={2 * MAX_READ_BYTES}",
    ),
    _Check(
        "passthrough",
        _try_passthrough,
        "shared memory goes through the daemon",
        "mount as root, on Linux 6.9 or later",
    ),
    _Check(
        "snapshot",
        _try_snapshot,
        "there are no snapshots and no core files",
        "mount as root, or sysctl kernel.yama.ptrace_scope=0; x86-64 is needed",
    ),
    _Check(
        "seccomp suspension",
        _try_seccomp,
        "a process with a seccomp filter is frozen by copying it, or not at all",
        "mount as root, or with -o snapshot_fallback=copy",
    ),
    _Check(
        "real-time priority",
        _try_priority,
        "a process stands still for longer where CPUs are busy",
        "mount as root, or with CAP_SYS_NICE",
    ),
    _Check("cpu latency", _try_latency, "each read waits for a CPU to wake up", "mount as root"),
    _Check(
        "readahead", _try_readahead, "small reads are read ahead by 128 KiB, not by 1 MiB", "mount as root"
    ),
    _Check("syslog", _try_syslog, "messages in the background are lost", "memfs mount -o log=FILE"),
)
