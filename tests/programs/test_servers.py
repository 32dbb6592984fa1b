"""Servers with clients at work: PostgreSQL, Redis, nginx. The clients know what is right."""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import check, run
from programs.lab import LIMIT_SECONDS, Lab, gdb, need, server, until
from support.outside import children_of


@contextlib.contextmanager
def _load(*argv: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A client that works until it is told to end; its output is no one's business but its own."""
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as client:
        try:
            yield client
        finally:
            client.kill()


# PostgreSQL

_SUMS = """
select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
       (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history),
       (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
"""


def _postgresql(name: str) -> str:
    """A program of the newest PostgreSQL, which Debian keeps out of the PATH."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"{name} is not installed: sh tests/programs/setup.sh")
    return found


_SHARED = "shared memory, which other processes map as well, and more than snapshot_copy allows"
"""Why shared_buffers are live: a process of the server is frozen, and not the server."""


@pytest.mark.parametrize(
    ("lab", "named", "live"),
    [
        ((), "", frozenset((_SHARED,))),
        (("snapshot_copy=512M",), ", all copied", frozenset()),
    ],
    indirect=["lab"],
    ids=["live", "copied"],
)
def test_postgresql(lab: Lab, named: str, live: frozenset[str]) -> None:
    need("gdb", "psql")
    user = pwd.getpwnam("postgres").pw_uid
    data = lab.directory / "data"
    data.mkdir()
    os.chown(data, user, user)
    initdb = run(
        _postgresql("initdb"), "-D", data, "-A", "trust", "-U", "postgres", user=user, timeout=LIMIT_SECONDS
    )
    assert initdb.returncode == 0, initdb
    ways = ("-h", str(data), "-U", "postgres")
    argv = [_postgresql("postgres"), "-D", data, "-k", data, "-h", "", "-c", "shared_buffers=256MB"]
    with (
        (lab.directory / "postgresql.log").open("wb") as log,
        server(*argv, user=user, group=user, extra_groups=[], cwd=data, stdout=log, stderr=log) as postmaster,
    ):
        until(lambda: run("psql", *ways, "-c", "select 1").returncode == 0, "the server")
        assert (
            run(
                _postgresql("pgbench"), *ways, "-i", "-q", "-s", "10", "postgres", timeout=LIMIT_SECONDS
            ).returncode
            == 0
        )
        session = subprocess.Popen(
            ["psql", *ways, "-A", "-t", "-q"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with session, _load(_postgresql("pgbench"), *ways, "-n", "-c", "4", "-T", "100000", "postgres"):
            assert session.stdin is not None
            assert session.stdout is not None

            def ask(command: str) -> str:
                session.stdin.write(command + ";\n")
                session.stdin.flush()
                return session.stdout.readline().strip()

            backend = int(ask("select pg_backend_pid()"))
            ask("create table known as select 'the plain text of a table is ' || 'known' as text; select 1")

            def reads_it() -> None:
                assert ask("select text from known") == "the plain text of a table is known"
                assert ask("select count(*) > 0 from pgbench_accounts where aid <= 100000") == "t"

            until(lambda: int(ask("select count(*) from pgbench_history")) > 0, "the load")
            plaintext = b"the plain text of a table is known"
            lab.examine(f"PostgreSQL, a backend{named}", backend, plaintext, [gdb(backend)], reads_it, live)
            lab.examine(
                f"PostgreSQL, the postmaster{named}",
                postmaster.pid,
                b"shared_buffers",
                [gdb(postmaster.pid)],
                reads_it,
                live,
            )
            session.stdin.close()
        until(lambda: check("psql", *ways, "-A", "-t", "-c", _NO_CLIENTS) == b"0\n", "the end of the load")
        assert check("psql", *ways, "-A", "-t", "-c", _SUMS) == b"t|t|t\n"
    said = (lab.directory / "postgresql.log").read_text()
    assert not re.search(r"\b(PANIC|crash|was terminated)\b", said), said


_NO_CLIENTS = "select count(*) from pg_stat_activity where application_name = 'pgbench'"


# Redis

_FILL = "for i = 1, 500000 do redis.call('set', 'known:' .. i, string.rep(i .. ' ', 30)) end"
_DIGEST = """
local digest = ''
for i = 1, 500000, 5 do digest = redis.sha1hex(digest .. redis.call('get', 'known:' .. i)) end
return digest
"""


def test_redis(lab: Lab) -> None:
    need("gdb", "redis-server", "redis-benchmark", "redis-cli", "redis-check-rdb")
    path, log = lab.directory / "socket", lab.directory / "redis.log"
    argv = ["redis-server", "--port", "0", "--unixsocket", path, "--dir", lab.directory, "--save", ""]
    cli = ("redis-cli", "-s", str(path))
    with log.open("wb") as output, server(*argv, "--maxmemory", "1gb", stdout=output, stderr=output) as redis:
        until(lambda: run(*cli, "ping").stdout == b"PONG\n", "the server")
        assert check(*cli, "eval", _FILL, "0") == b"\n"
        assert check(*cli, "set", "text", "the plain text of a key is known") == b"OK\n"
        digest = check(*cli, "eval", _DIGEST, "0")

        def reads_it() -> None:
            assert check(*cli, "get", "text") == b"the plain text of a key is known\n"

        with _load(
            "redis-benchmark", "-s", path, "-q", "-l", "-r", "100000", "-t", "set,get,lpush,lpop,incr"
        ):
            plaintext = b"the plain text of a key is known"
            lab.examine("Redis", redis.pid, plaintext, [gdb(redis.pid)], reads_it)
        assert check(*cli, "eval", _DIGEST, "0") == digest
        assert check(*cli, "save") == b"OK\n"
        assert b"RDB looks OK" in check("redis-check-rdb", lab.directory / "dump.rdb")
    assert not re.search(r"CRASH|BUG REPORT|signal 11", log.read_text())


# nginx

_NGINX = """
daemon off;
worker_processes 2;
user nobody nogroup;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {directory}/root;
        add_header X-Text "the plain text of a header is known";
    }}
}}
"""


def test_nginx(lab: Lab) -> None:
    need("gdb", "nginx", "ab", "curl")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    root, content = lab.directory / "root", os.urandom(100_000)
    root.mkdir()
    (root / "file").write_bytes(content)
    (lab.directory / "nginx.conf").write_text(_NGINX.format(directory=lab.directory, port=port))
    url = f"http://127.0.0.1:{port}/file"
    argv = ["nginx", "-p", lab.directory, "-c", lab.directory / "nginx.conf"]
    with (lab.directory / "nginx.log").open("wb") as log, server(*argv, stderr=log) as nginx:
        until(lambda: run("curl", "-s", url).returncode == 0, "the server")
        until(lambda: len(children_of(nginx.pid)) == 2, "the workers")
        worker = min(children_of(nginx.pid))

        def reads_it() -> None:
            assert check("curl", "-s", url) == content

        with subprocess.Popen(
            ["ab", "-q", "-n", "200000", "-c", "8", "-k", url], stdout=subprocess.PIPE, text=True
        ) as load:
            plaintext = b"the plain text of a header is known"
            lab.examine("nginx, a worker", worker, plaintext, [gdb(worker)], reads_it)
            report, _ = load.communicate(timeout=LIMIT_SECONDS)
        assert load.returncode == 0
        assert re.search(r"^Complete requests: +200000$", report, re.MULTILINE), report
        assert re.search(r"^Failed requests: +0$", report, re.MULTILINE), report
    assert (lab.directory / "error.log").read_text() == ""
