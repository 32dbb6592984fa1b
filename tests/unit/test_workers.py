"""Turns of the workers of a mount at a process; the workers here are sockets that the test answers."""

import os
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from memfs.errors import TargetBusy
from memfs.linux import wire
from memfs.snapshot.values import Frozen, Request
from memfs.snapshot.workers import Hold, Workers
from memfs.target.identity import identify

_PATIENCE_S = 60.0


class Made:
    """Channels to workers, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """A new worker; the test has its end."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(_PATIENCE_S)
        self.ends.append(theirs)
        return ours

    def taking(self, pool: ThreadPoolExecutor, workers: Workers) -> Future[tuple[Frozen, list[int], Hold]]:
        """Begin to take a snapshot; returns when one more worker was asked for."""
        before = len(self.ends)
        request = _values(Request, identity=identify(os.getpid()))
        found = pool.submit(workers.take, request, _PATIENCE_S)
        while len(self.ends) == before:
            assert not found.done()
        return found


def _values(kind: type[Any], **known: object) -> Any:
    """One of *kind*, with nothing in it but what is *known*."""
    return kind(**{field.name: known.get(field.name) for field in attrs.fields(kind)})


def _answer(worker: socket.socket) -> None:
    """Say that a snapshot was taken."""
    wire.receive(worker)
    wire.send(worker, _values(Frozen, copy_number=7), [worker.fileno()])


def _is_told_to_end(worker: socket.socket) -> bool:
    worker.setblocking(False)
    try:
        return not worker.recv(1)
    except BlockingIOError:
        return False
    finally:
        worker.settimeout(_PATIENCE_S)


def _end(workers: Workers, worker: socket.socket, hold: Hold) -> None:
    """Let go of a copy, and be the worker that ends for that."""
    workers.let_go(hold)
    worker.close()
    workers.let_go(hold, wait=True)


def test_a_copy_is_taken_back_after_the_snapshot_that_is_being_taken() -> None:
    made = Made()
    workers = Workers(made.connect)
    with ThreadPoolExecutor() as pool:
        taking = made.taking(pool, workers)
        _answer(made.ends[0])
        _, (aside,), first = taking.result()
        os.close(aside)
        taking = made.taking(pool, workers)
        workers.let_go(first)
        assert not _is_told_to_end(made.ends[0]), "the second worker may be stopping the process just now"
        _answer(made.ends[1])
        _, (aside,), second = taking.result()
        os.close(aside)
        assert made.ends[0].recv(1) == b""
        for worker, hold in zip(made.ends, (first, second), strict=True):
            _end(workers, worker, hold)
    assert first.channel.fileno() == second.channel.fileno() == -1


def test_a_copy_that_is_let_go_after_its_worker_was_killed_leaves_the_turn_to_others() -> None:
    made = Made()
    workers = Workers(made.connect)
    with ThreadPoolExecutor() as pool:
        taking = made.taking(pool, workers)
        _answer(made.ends[0])
        _, (aside,), first = taking.result()
        os.close(aside)
        taking = made.taking(pool, workers)
        workers.let_go(first)
        made.ends[0].close()
        while len(made.ends) < 3:  # who has the copy's end reaped
            assert not taking.done()
        made.ends[2].close()
        wire.receive(made.ends[1])
        wire.send(made.ends[1], TargetBusy("it is traced", "wait"))
        with pytest.raises(TargetBusy, match="it is traced"):
            taking.result()
        made.ends[1].close()
        taking = made.taking(pool, workers)
        _answer(made.ends[3])
        _, (aside,), last = taking.result()
        os.close(aside)
        _end(workers, made.ends[3], last)
