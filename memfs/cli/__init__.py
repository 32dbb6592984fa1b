"""The command line: one module for each command, each loaded when it is called."""

import sys


def main() -> None:
    """The entry point of ``memfs``; ends the process."""
    try:
        from memfs.cli.main import run

        status = run()
    except KeyboardInterrupt:  # while the modules were being loaded
        status = 130
    sys.exit(status)
