"""Programs in C, built when a test needs them: what a Python program does has the interpreter in between."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_HERE = Path(__file__).resolve().parent
_built = TemporaryDirectory()  # for the time of the test run


@cache
def build(name: str, *, bits: int = 64) -> Path:
    """The program of ``NAME.c`` in this directory; everybody may execute it.

    With 32 *bits* one for i386, see :func:`why_no_32_bits`.
    """
    directory = Path(_built.name)
    directory.chmod(0o755)
    program = directory / (name if bits == 64 else f"{name}-{bits}")
    # Nothing is optimised: a debugger has to find every variable.
    flags = ["-O0", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", *["-m32", "-msse2"] * (bits == 32)]
    subprocess.run(["gcc", *flags, "-o", program, _HERE / f"{name}.c"], check=True)
    return program


@cache
def why_no_32_bits() -> str | None:
    """Why no program for i386 can be built and run; None where one can."""
    if platform.machine() != "x86_64":
        return "there is no i386 here"
    program = Path(_built.name) / "empty-32"
    compiler = ["gcc", "-m32", "-pthread", "-x", "c", "-o", program, "-"]
    source = b"#include <pthread.h>\nint main(void) { return 0; }"
    if subprocess.run(compiler, input=source, capture_output=True).returncode:
        return "gcc cannot build for i386: install gcc-multilib"
    try:
        subprocess.run([program], check=True)
    except (OSError, subprocess.CalledProcessError):
        return "the kernel runs no program for i386 (CONFIG_IA32_EMULATION)"
    return None
