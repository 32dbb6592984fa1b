"""Programs in C: as they are, 32 bits wide, and under valgrind, which runs them without a vDSO."""

import re

from programs.lab import Debugger, Lab, build, gdb, need, working

_TEXT = b"the plain text of worker.c is known"


def test_c_with_threads(lab: Lab) -> None:
    need("gdb", "eu-stack")
    program = build("worker")
    with working(program) as worker:
        stacks = Debugger(["eu-stack", "--core", "CORE", "--executable", program], [r"\bwork\b", r"\bmain\b"])
        lab.examine("C, 3 threads", worker.pid, _TEXT, [gdb(worker.pid, r"\bmain\b"), stacks])
        worker.finish()


def test_i386(lab: Lab) -> None:
    need("gdb")
    with working(build("worker", "-m32")) as worker:
        lab.examine("C, i386", worker.pid, _TEXT, [gdb(worker.pid, r"\bmain\b")])
        worker.finish()


def test_valgrind(lab: Lab) -> None:
    need("gdb", "valgrind")
    log = lab.directory / "valgrind.log"
    with working("valgrind", f"--log-file={log}", build("worker")) as worker:
        lab.examine("valgrind", worker.pid, _TEXT, [gdb(worker.pid)])
        worker.finish()
    assert re.search(r"ERROR SUMMARY: 0 errors", log.read_text())
