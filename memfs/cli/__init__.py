"""The command line: one module for each command, each loaded when it is called."""

import contextlib
import gc
import os
import sys


def main() -> None:
    """The entry point of ``memfs``; ends the process."""
    _open_standard_descriptors()
    # Modules are for good: to look for garbage while they are loaded takes a tenth of the time.
    gc.disable()
    try:
        from memfs.cli.main import run

        gc.enable()
        status = run()
    except KeyboardInterrupt:  # while the modules were being loaded
        status = 130
    with contextlib.suppress(OSError):
        # Whatever was open has been closed by now, and threads that still live wait for what never comes.
        # To take the interpreter apart takes 10 ms, as long as some copies.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _open_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, so that no other file gets their numbers.

    They are opened the wrong way round, as ``stdopen`` of gnulib does: a program that reads or writes them
    gets EBADF, as if they were closed. What Python itself prints goes nowhere.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - these three are for good
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
