"""Measures how images get out: to a disk, to a socket, and only what changed; memfs and its peers by turns.

    python tests/benchmarks/images_out.py [--size-mib N] [--rounds N] [--directory DIR] [ROW...]

ROW is disk, private, shared, since or rsync; all without. DIR is on the disk that is written to. Each figure
is the median of one run in which all took turns; "times memfs" is how much longer a way took. CPU seconds are
those of the programs and of the daemon; the page cache is how much more there was at most.
"""

import argparse
import compileall
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import machine
from lab import Target
from mounts import MemfsMount, memfs_mount
from target import MIB

import memfs

_HERE = Path(__file__).parent
_MEMFS = Path(sys.executable).with_name("memfs")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = 4096
_VMAS = 100


@attrs.frozen
class Sample:
    """One run: how long it took, the CPU time of all who worked for it, what the page cache grew by."""

    seconds: float
    cpu_seconds: float
    cache_bytes: int


Action = Callable[[], object]


def measure(daemon: int, action: Action) -> Sample:
    """Run *action*, which runs programs and waits for them."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    base = machine.page_cache_bytes()
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, machine.page_cache_bytes() - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, cpu = os.times(), _cpu_seconds(daemon)
    began = time.monotonic()
    action()
    seconds = time.monotonic() - began
    after = os.times()
    ended.set()
    watcher.join()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return Sample(seconds, children + _cpu_seconds(daemon) - cpu, peak)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def by_turns(
    daemon: int,
    contenders: dict[str, Action],
    rounds: int,
    size_bytes: int,
    before: Action = lambda: None,
) -> None:
    """Run all contenders by turns, memfs first, each after *before*, and print a table."""
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before()
            samples[name].append(measure(daemon, contenders[name]))
    ours = statistics.median(sample.seconds for sample in samples[names[0]])
    print("| way | rate | seconds | times memfs | CPU seconds | page cache grew by |")
    print("| --- | ---: | ------: | -------: | ----------: | -----------------: |")
    for name, found in samples.items():
        seconds, cpu, cache = (
            statistics.median(values) for values in zip(*map(attrs.astuple, found), strict=True)
        )
        print(
            f"| {name} | {size_bytes / seconds / 1e9:.2f} GB/s | {seconds:.2f} | {seconds / ours:.2f} "
            f"| {cpu:.2f} | {cache / MIB:.0f} MiB |",
            flush=True,
        )


def call(*argv: object) -> None:
    """Run a program that must succeed."""
    words = [str(word) for word in argv]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def vma_file(directory: Path, start: int) -> Path:
    """The file of the mapping that holds *start*."""
    for path in directory.iterdir():
        first, last = (int(part, 16) for part in path.name.partition("_")[0].split("-"))
        if first <= start < last:
            return path
    raise FileNotFoundError(f"{start:#x} in {directory}")


def to_disk(mount: MemfsMount, size_bytes: int, rounds: int, where: Path) -> None:
    """``memfs copy`` against dd, cp, gcore, and fio, which does nothing but write."""
    with Target("private", size_bytes) as target:
        file = vma_file(mount.path / str(target.pid) / "vmas", target.start())
        out = where / "out"

        contenders: dict[str, Action] = {
            "memfs copy": partial(call, _MEMFS, "copy", file, out),
            "dd oflag=direct bs=1M": partial(
                call, "dd", f"if={file}", f"of={out}", "bs=1M", "iflag=fullblock", "oflag=direct",
                "conv=fsync",
            ),
            "cp, then sync": partial(call, "sh", "-c", f"cp {file} {out} && sync {out}"),
            "gcore": partial(call, "gcore", "-o", out, target.pid),
            "fio, depth 8": partial(
                call, "fio", "--name=w", f"--filename={out}", "--rw=write", "--bs=1M", "--direct=1",
                "--iodepth=8", "--ioengine=libaio", f"--size={size_bytes}", "--end_fsync=1",
            ),
        }  # fmt: skip
        # What is there already is not theirs to remove: to free 2 GiB takes the disk some tenths of a second.
        by_turns(mount.daemon, contenders, rounds, size_bytes, lambda: empty(where))


def empty(directory: Path) -> None:
    """Remove the files in *directory*; what measures syncs after that."""
    for left in directory.iterdir():
        left.unlink()


def to_socket(mount: MemfsMount, kind: str, size_bytes: int, rounds: int) -> None:
    """``memfs copy`` into a TCP connection against nc, fed by the mount and by dd."""
    with Target(kind, size_bytes) as target, socket.create_server(("127.0.0.1", 0)) as server:
        start = target.start()
        file = vma_file(mount.path / str(target.pid) / "vmas", start)
        port = server.getsockname()[1]
        dd = f"dd bs=1M if=/proc/{target.pid}/mem skip={start // MIB} count={size_bytes // MIB}"
        if start % MIB:
            dd = f"dd bs=1M iflag=skip_bytes if=/proc/{target.pid}/mem skip={start} count={size_bytes // MIB}"

        def received(command: Sequence[str] | str, *, connected: bool) -> Action:
            def action() -> None:
                client = socket.create_connection(("127.0.0.1", port)) if connected else None
                with subprocess.Popen(
                    command, shell=isinstance(command, str), stdout=client, stderr=subprocess.DEVNULL
                ) as sender:
                    connection, _ = server.accept()
                    if client is not None:
                        client.close()
                    buffer = bytearray(MIB)
                    total = 0
                    with connection:
                        while got := connection.recv_into(buffer):
                            total += got
                if total != size_bytes or sender.returncode:
                    raise RuntimeError(f"{command}: {total} bytes of {size_bytes}")

            return action

        contenders: dict[str, Action] = {
            "memfs copy": received([str(_MEMFS), "copy", str(file), "-"], connected=True),
            "nc <FILE": received(f"nc -N 127.0.0.1 {port} <{file}", connected=False),
            "dd of /proc/PID/mem, nc": received(f"{dd} | nc -N 127.0.0.1 {port}", connected=False),
        }
        by_turns(mount.daemon, contenders, rounds, size_bytes)


def only_changes(mount: MemfsMount, size_bytes: int, rounds: int, where: Path) -> None:
    """``--since`` after some pages were written against a whole copy."""
    with subprocess.Popen(
        [sys.executable, str(_HERE / "writer.py"), str(size_bytes)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None
        start = int(writer.stdout.readline())
        snapshots = mount.path / str(writer.pid) / "snapshots"
        image = where / "image"
        pages = size_bytes // _PAGE
        print("| changed | pages | --since | whole copy | times as fast | CPU seconds |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        number = 0
        (snapshots / "0").mkdir()
        call(_MEMFS, "copy", vma_file(snapshots / "0/vmas", start), image)
        for label, first, end, step in (
            ("nothing", 0, 0, 1),
            ("0.1 %, together", 0, pages // 1000, 1),
            ("0.1 %, scattered", 0, pages, 1000),
            ("1 %, together", 0, pages // 100, 1),
            ("1 %, scattered", 0, pages, 100),
            ("10 %, together", 0, pages // 10, 1),
            ("10 %, scattered", 0, pages, 10),
            ("100 %", 0, pages, 1),
        ):
            updates: list[Sample] = []
            wholes: list[Sample] = []
            for _ in range(rounds):
                writer.stdin.write(f"{first * _PAGE} {end * _PAGE} {step * _PAGE}\n")
                writer.stdin.flush()
                writer.stdout.readline()
                number += 1
                (snapshots / str(number)).mkdir()
                file = vma_file(snapshots / str(number) / "vmas", start)
                update = [_MEMFS, "copy", "--since", number - 1, file, image]
                updates.append(measure(mount.daemon, lambda argv=update: call(*argv)))
                whole = [_MEMFS, "copy", file, where / "whole"]
                wholes.append(measure(mount.daemon, lambda argv=whole: call(*argv)))
                (snapshots / str(number - 1)).rmdir()
            seconds, full = (
                statistics.median(sample.seconds for sample in found) for found in (updates, wholes)
            )
            cpu = statistics.median(sample.cpu_seconds for sample in updates)
            print(
                f"| {label} | {len(range(first, end, step)):,} | {seconds:.3f} s | {full:.2f} s "
                f"| {full / seconds:.1f} | {cpu:.2f} |",
                flush=True,
            )
        call("cmp", image, where / "whole")
        (snapshots / str(number)).rmdir()
        writer.stdin.close()


def by_rsync(mount: MemfsMount, size_bytes: int, rounds: int, where: Path) -> None:
    """rsync of the next snapshot, one VMA in a hundred having changed, against rsync of all of it."""
    size_bytes -= size_bytes % (_VMAS * _PAGE)
    with subprocess.Popen(
        [sys.executable, str(_HERE / "writer.py"), str(size_bytes), str(_VMAS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        snapshots = mount.path / str(writer.pid) / "snapshots"
        next_times: list[Sample] = []
        all_times: list[Sample] = []
        for number in range(rounds + 1):
            (snapshots / str(number)).mkdir()
            if number:
                next_times.append(_rsync(mount, snapshots / str(number), where / "next"))
            shutil.rmtree(where / "all", ignore_errors=True)
            all_times.append(_rsync(mount, snapshots / str(number), where / "all"))
            if number == 0:
                os.rename(where / "all", where / "next")
            writer.stdin.write(f"0 {_PAGE} {_PAGE}\n")
            writer.stdin.flush()
            writer.stdout.readline()
        for number in range(rounds + 1):
            (snapshots / str(number)).rmdir()
        writer.stdin.close()
        seconds, full = (
            statistics.median(sample.seconds for sample in found) for found in (next_times, all_times)
        )
        print(
            f"rsync -aS of the next snapshot {seconds:.2f} s, of all {full:.2f} s: {full / seconds:.1f} times"
        )


def _rsync(mount: MemfsMount, snapshot: Path, target: Path) -> Sample:
    return measure(mount.daemon, lambda: call("rsync", "-aS", f"{snapshot}/vmas/", target))


def main() -> int:
    """The command; returns its status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("rows", nargs="*", metavar="ROW")
    options = parser.parse_args()
    size_bytes, rounds = options.size_mib * MIB, options.rounds
    # As pip does when it installs: where nothing may write it, each command would compile its modules anew.
    compileall.compile_dir(Path(memfs.__file__).parent, quiet=1)
    with (
        tempfile.TemporaryDirectory(prefix="memfs-bench-", dir=options.directory) as directory,
        memfs_mount(Path(directory)) as mount,
    ):
        where = Path(directory) / "images"
        where.mkdir()
        rows: dict[str, Action] = {
            "disk": lambda: to_disk(mount, size_bytes, rounds, where),
            "private": lambda: to_socket(mount, "private", size_bytes, rounds),
            "shared": lambda: to_socket(mount, "shared", size_bytes, rounds),
            "since": lambda: only_changes(mount, size_bytes, rounds, where),
            "rsync": lambda: by_rsync(mount, size_bytes, rounds, where),
        }
        for name in options.rows or rows:
            print(f"\n## {name}, {options.size_mib} MiB\n")
            rows[name]()
            for left in where.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        for line in mount.complaints():
            print(f"the daemon's log: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
