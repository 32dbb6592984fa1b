"""The command line: one module for each command, each loaded when it is called."""

import contextlib
import gc
import os
import sys


def main() -> None:
    """The entry point of ``memfs``; ends the process."""
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
