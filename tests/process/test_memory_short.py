"""Memory short, the snapshot of a process goes and the process stays."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.freezing import snapshots

from memfs.linux.cgroups import Cgroups
from memfs.linux.procfs import read_file
from memfs.target.identity import identify

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_LIMIT_BYTES = 64 << 20
_WRITES = """
import os, sys
with open(sys.argv[1], "w") as members:
    members.write(str(os.getpid()))
memory = bytearray(40 << 20)
for value in (1, 2):
    for at in range(0, len(memory), 4096):
        memory[at] = value
    print(flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _limited_group() -> Iterator[Path]:
    """A cgroup whose processes have 64 MiB, and no swap."""
    name = f"memfs-test-{os.getpid()}"
    if (_V1 / "memory.limit_in_bytes").exists():
        directory, limits = _V1 / name, {"memory.swappiness": 0, "memory.limit_in_bytes": _LIMIT_BYTES}
    elif "memory" in _read(_V2 / "cgroup.subtree_control").split():
        directory, limits = _V2 / name, {"memory.swap.max": 0, "memory.max": _LIMIT_BYTES}
    else:
        pytest.skip("there is no cgroup with a memory controller to be had here")
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        for file, value in limits.items():
            if (directory / file).exists():
                (directory / file).write_text(str(value))
        yield directory
    finally:
        directory.rmdir()


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def test_where_its_cgroup_has_no_more_the_snapshot_is_killed_and_the_process_goes_on() -> None:
    """All that it writes is copied, and counts for its own cgroup, wherever the snapshot is."""
    with snapshots() as registry, _limited_group() as group:
        argv = [sys.executable, "-c", _WRITES, group / "cgroup.procs"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
            try:
                assert target.stdin is not None
                assert target.stdout is not None
                assert target.stdout.readline()
                id_ = registry.make(identify(target.pid), b"one")
                copy = registry.get(id_).frozen.copy
                assert copy is not None
                target.stdin.write(b"\n")
                target.stdin.flush()
                assert target.stdout.readline()
                assert target.poll() is None
                assert not Path(f"/proc/{copy.pid}/maps").read_bytes()  # it has ended
                registry.remove(id_.identity, b"one")
            finally:
                target.kill()


def test_a_copy_can_be_moved_to_where_we_are() -> None:
    ours = read_file("/proc/self/cgroup")
    groups = Cgroups(read_file("/proc/self/mountinfo"))
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        )
        stack.callback(target.kill)
        try:
            groups.adopt(target.pid, ours)
        except OSError as error:
            pytest.skip(f"cgroup v2 is not to be had here: {error}")
        assert b"0::" in ours
        assert read_file(f"/proc/{target.pid}/cgroup").splitlines()[-1] == ours.splitlines()[-1]
