"""Tools that carry images away, from live files and from snapshots: what arrives is what was in memory."""

import hashlib
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounted import LIMIT_SECONDS, MEMFS, Mount, check, mounted, opened, wrong
from support.target import Target


@pytest.fixture(scope="module")
def memfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount, from which all tools read, one after the other."""
    with mounted(tmp_path_factory.mktemp("tools"), limit_seconds=4 * LIMIT_SECONDS) as mount:
        yield mount


@pytest.fixture(scope="module", params=["live", "snapshot"])
def vmas(request: pytest.FixtureRequest, memfs: Mount, holder: Target) -> Iterator[Path]:
    """The directory with the files of all kinds of mapping."""
    if request.param == "live":
        yield memfs.process(holder.pid) / "vmas"
        return
    snapshot = memfs.process(holder.pid) / "snapshots/out"
    snapshot.mkdir()
    yield snapshot / "vmas"
    snapshot.rmdir()


@pytest.fixture(scope="module")
def files(vmas: Path, holder: Target) -> dict[str, Path]:
    """Those files, by the kind of the mapping that each shows."""
    names = {int(name.partition("-")[0], 16): name for name in os.listdir(vmas)}
    return {mapping.kind: vmas / names[mapping.start] for mapping in holder.mappings}


def all_right(holder: Target, received: Callable[[str], bytes]) -> None:
    """Assert that what *received* gives for each kind is every byte of that mapping."""
    for mapping in holder.mappings:
        assert wrong(mapping, received(mapping.kind)) is None


@pytest.mark.parametrize(
    "size",
    [("bs=1M",), ("bs=64K",), ("bs=12K", "count=7"), ("bs=4K", "skip=3", "count=5")],
    ids=lambda size: "-".join(size),
)
def test_dd_writes_directly_what_it_reads_directly(
    files: dict[str, Path], holder: Target, tmp_path: Path, size: tuple[str, ...]
) -> None:
    block = int(size[0][3:-1]) * (1 << (20 if size[0].endswith("M") else 10))
    numbers = dict(part.split("=") for part in size[1:])
    for mapping in holder.mappings:
        copy = tmp_path / "copy"
        copy.unlink(missing_ok=True)
        check(
            "dd", f"if={files[mapping.kind]}", f"of={copy}", "iflag=direct,fullblock", "oflag=direct",
            "status=none", *size,
        )  # fmt: skip
        start = min(mapping.length, int(numbers.get("skip", "0")) * block)
        length = min(mapping.length - start, int(numbers.get("count", mapping.length)) * block)
        if not length:
            assert copy.stat().st_size == 0
            continue
        content = copy.read_bytes()
        assert (len(content), mapping.mismatch(start, content)) == (length, None)


def test_dd_reads_directly_what_is_aligned_to_nothing(files: dict[str, Path], holder: Target) -> None:
    for mapping in holder.mappings:
        got = check(
            "dd", f"if={files[mapping.kind]}", "iflag=direct,skip_bytes,count_bytes", "status=none",
            "bs=5001", "skip=777", "count=30011",
        )  # fmt: skip
        assert (len(got), mapping.mismatch(777, got)) == (min(30011, mapping.length - 777), None)


@contextmanager
def received_from_one_client() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A port on loopback, and what the next client there sends."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def receive() -> bytes:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                return stream.read()

        yield server.getsockname()[1], receive


@pytest.mark.parametrize("block", ["8192", "1048576"])
def test_socat_sends_the_right_bytes(files: dict[str, Path], holder: Target, block: str) -> None:
    with received_from_one_client() as (port, receive):

        def send(kind: str) -> bytes:
            with subprocess.Popen(
                ["socat", "-u", "-b", block, f"OPEN:{files[kind]},rdonly", f"TCP:127.0.0.1:{port}"]
            ) as sender:
                content = receive()
            assert sender.returncode == 0
            return content

        all_right(holder, send)


@pytest.mark.parametrize("way", ["sendfile", "splice"])
def test_python_sends_by_sendfile_and_by_splice(files: dict[str, Path], holder: Target, way: str) -> None:
    with received_from_one_client() as (port, receive):

        def send(kind: str) -> bytes:
            content: list[bytes] = []
            receiver = threading.Thread(target=lambda: content.append(receive()))
            receiver.start()
            with socket.create_connection(("127.0.0.1", port)) as out, opened(files[kind]) as source:
                if way == "sendfile":
                    at = 0
                    while moved := os.sendfile(out.fileno(), source, at, 1 << 20):
                        at += moved
                else:
                    reader, writer = os.pipe()
                    while moved := os.splice(source, writer, 1 << 16):
                        while moved:
                            moved -= os.splice(reader, out.fileno(), moved)
                    os.close(reader)
                    os.close(writer)
            receiver.join()
            return content[0]

        all_right(holder, send)


class _Upload(http.server.BaseHTTPRequestHandler):
    """Takes a PUT, as a store for objects does."""

    received: dict[str, bytes]

    def do_PUT(self) -> None:
        """Keep what is sent under the path that it is sent to."""
        self.received[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - its name in the base class
        """Say nothing."""


def test_curl_uploads_the_right_bytes(files: dict[str, Path], holder: Target) -> None:
    handler = type("Handler", (_Upload,), {"received": {}})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:

            def upload(kind: str) -> bytes:
                url = f"http://127.0.0.1:{server.server_port}/{kind}"
                check("curl", "-sS", "-H", "Expect:", "-T", files[kind], url)
                return bytes(handler.received.pop(f"/{kind}"))

            all_right(holder, upload)
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.parametrize("pipe", ["cat | zstd -q | zstd -qd", "zstd -q -c | zstd -qd | cat"])
def test_a_pipe_through_a_compressor_carries_the_right_bytes(
    files: dict[str, Path], holder: Target, pipe: str
) -> None:
    all_right(holder, lambda kind: check("sh", "-c", f"<'{files[kind]}' {pipe}"))


def test_split_cuts_the_right_bytes(files: dict[str, Path], holder: Target, tmp_path: Path) -> None:
    def cut(kind: str) -> bytes:
        for old in tmp_path.glob("part-*"):
            old.unlink()
        check("split", "-b", "100000", "-a", "4", files[kind], tmp_path / "part-")
        return b"".join(part.read_bytes() for part in sorted(tmp_path.glob("part-*")))

    all_right(holder, cut)


def test_b3sum_and_sha256sum_agree_on_the_copy_and_the_memory(
    files: dict[str, Path], holder: Target, tmp_path: Path
) -> None:
    for mapping in holder.mappings:
        content = mapping.expected(0, mapping.length)
        (tmp_path / "memory").write_bytes(content)
        digests = [check("b3sum", "--no-names", path) for path in (files[mapping.kind], tmp_path / "memory")]
        assert digests[0] == digests[1]
        assert (
            check("sha256sum", files[mapping.kind]).split()[0].decode() == hashlib.sha256(content).hexdigest()
        )


def test_a_sparse_archive_has_the_bytes_and_no_more_than_the_memory(
    vmas: Path, files: dict[str, Path], holder: Target, tmp_path: Path
) -> None:
    archive = tmp_path / "vmas.tar"
    check("tar", "-cSf", archive, "-C", vmas, *(path.name for path in files.values()))
    check("tar", "-xSf", archive, "-C", tmp_path)
    all_right(holder, lambda kind: (tmp_path / files[kind].name).read_bytes())
    held = sum(span.length for mapping in holder.mappings for span in mapping.data)
    assert archive.stat().st_size < held + (1 << 20)


@contextmanager
def rsync_daemon(directory: Path, inside: tuple[str, ...] = ()) -> Iterator[None]:
    """An rsync daemon, a process for each client, for files in *directory*; on port 8730."""
    directory.mkdir()
    settings = directory.with_name("rsyncd.conf")
    settings.write_text(f"use chroot = no\nuid = 0\ngid = 0\n[images]\npath = {directory}\nread only = no\n")
    server = subprocess.Popen(
        [*inside, "socat", "TCP-LISTEN:8730,reuseaddr,fork", f"EXEC:rsync --daemon --config={settings}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        check(*inside, "sh", "-c", "until grep -q ':221A 00000000:0000 0A' /proc/net/tcp*; do :; done")
        yield
    finally:
        server.terminate()
        server.wait()


def test_two_hosts_rsync_to_a_daemon_sends_only_what_changed(memfs: Mount, tmp_path: Path) -> None:
    with (
        Target("private-full", "private-runs", "shared-anon", directory=tmp_path) as target,
        two_hosts() as (here, there, address),
        rsync_daemon(tmp_path / "images", there),
    ):
        snapshots = memfs.process(target.pid) / "snapshots"
        sent = []
        for name in ("one", "two"):
            (snapshots / name).mkdir()
            said = check(
                *here, "rsync", "-aS", "--stats", "--chmod=Du+w", "--port=8730", f"{snapshots / name}/vmas/",
                f"{address}::images/vmas",
            )  # fmt: skip
            sent.append(int(said.decode().partition("Total bytes sent: ")[2].split()[0].replace(",", "")))
            for mapping in target.mappings:
                (copy,) = (tmp_path / "images/vmas").glob(f"{mapping.start:012x}-*")
                assert wrong(mapping, copy.read_bytes()) is None
            target.write(target.mapping("private-runs").start, 4096, seed=9)
        assert sent[1] < sent[0] / 4


@contextmanager
def two_hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Two network namespaces and a wire: how to run a program in either, and the second one's address."""
    names = f"memfs-a-{os.getpid()}", f"memfs-b-{os.getpid()}"
    for name in names:
        check("ip", "netns", "add", name)
    try:
        check(
            "ip",
            "-n",
            names[0],
            "link",
            "add",
            "wire",
            "type",
            "veth",
            "peer",
            "name",
            "wire",
            "netns",
            names[1],
        )
        for name, address in zip(names, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            check("ip", "-n", name, "addr", "add", address, "dev", "wire")
            check("ip", "-n", name, "link", "set", "wire", "up")
        here, there = (("ip", "netns", "exec", name) for name in names)
        yield here, there, "10.77.0.2"
    finally:
        for name in names:
            check("ip", "netns", "del", name)


def test_two_hosts_memfs_copy_and_nc_carry_a_core_file(memfs: Mount, holder: Target, tmp_path: Path) -> None:
    snapshot = memfs.process(holder.pid) / "snapshots/wire"
    snapshot.mkdir()
    with two_hosts() as (here, there, address), (tmp_path / "core").open("wb") as received:
        receiver = subprocess.Popen([*there, "nc", "-l", "7000"], stdout=received)
        check(*there, "sh", "-c", "until grep -q ':1B58 00000000:0000 0A' /proc/net/tcp*; do :; done")
        check(*here, "sh", "-c", f"{MEMFS} copy {snapshot}/core - | nc -N {address} 7000")
        assert receiver.wait() == 0
    check("cmp", snapshot / "core", tmp_path / "core")
    snapshot.rmdir()
