"""Programs that bring a heap of their own: Node, the JVM with two collectors, Go, Python with numpy."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from mount.mounted import check, run
from programs.lab import HERE, Debugger, Lab, gdb, need, working


def test_node(lab: Lab) -> None:
    need("gdb", "node")
    with working("node", "--max-old-space-size=512", HERE / "worker.js") as worker:
        lab.examine("Node", worker.pid, b"the plain text of worker.js is known", [gdb(worker.pid)])
        worker.finish()


@pytest.mark.parametrize("collector", ["G1", "Z"])
def test_jvm(lab: Lab, collector: str) -> None:
    need("gdb", "java", "javac", "jhsdb")
    check("javac", "-d", lab.directory, HERE / "Worker.java")
    argv = ["java", f"-XX:+Use{collector}GC", "-Xms512m", "-Xmx512m", "-cp", lab.directory, "Worker"]
    with working(*argv) as worker:
        java = os.readlink(f"/proc/{worker.pid}/exe")
        jhsdb = Debugger(
            ["jhsdb", "jstack", "--exe", java, "--core", "CORE"], [r"Worker\.main\(", r"hashUntilDone\("]
        )
        plaintext = b"the plain text of Worker.java is known"
        lab.examine(f"Java, {collector}GC", worker.pid, plaintext, [gdb(worker.pid), jhsdb])
        worker.finish()


def test_go(lab: Lab) -> None:
    need("go", "gdb", "dlv")
    program = lab.directory / "worker"
    built = run(
        "go",
        "build",
        "-o",
        program,
        HERE / "worker.go",
        env=os.environ | {"GOCACHE": str(lab.directory / "go")},
    )
    assert not built.returncode, built
    with working(program) as worker:
        commands = lab.directory / "commands"
        commands.write_text("goroutines -t\nexit\n")
        argv = ["dlv", "core", program, "CORE", "--allow-non-terminal-interactive=true", "--init", commands]
        dlv = Debugger(argv, [r"main\.main", r"main\.hashUntilDone"])
        lab.examine("Go", worker.pid, b"the plain text of worker.go is known", [gdb(worker.pid), dlv])
        worker.finish()


def test_numpy(lab: Lab) -> None:
    need("gdb")
    python = "/usr/bin/python3"
    if run(python, "-c", "import numpy").returncode:
        pytest.skip("numpy is not installed: sh tests/programs/setup.sh")
    with working(python, HERE / "worker_numpy.py") as worker:
        pystack = shutil.which("pystack") or Path(sys.executable).with_name("pystack")
        stacks = Debugger(
            [pystack, "core", "CORE", os.readlink(f"/proc/{worker.pid}/exe")], [r"\bwork\b", r"\bwait\b"]
        )
        plaintext = b"the plain text of worker_numpy.py is known"
        lab.examine("Python, numpy", worker.pid, plaintext, [gdb(worker.pid), stacks])
        worker.finish()
