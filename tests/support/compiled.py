"""Programs in C, built when a test needs them: what a Python program does has the interpreter in between."""

import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_HERE = Path(__file__).resolve().parent
_built = TemporaryDirectory()  # for the time of the test run


@cache
def build(name: str) -> Path:
    """The program of ``NAME.c`` in this directory; everybody may execute it."""
    directory = Path(_built.name)
    directory.chmod(0o755)
    program = directory / name
    # Nothing is optimised: a debugger has to find every variable.
    flags = ("-O0", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
    subprocess.run(["gcc", *flags, "-o", program, _HERE / f"{name}.c"], check=True)
    return program
