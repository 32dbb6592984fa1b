"""The command ``memfs``: finds the subcommand, and turns every failure into one line and a status.

Status 0 is done, 1 it failed, 2 the command line is wrong. The modules of the commands are loaded
when they are needed, so that ``--help`` comes at once.
"""

import importlib
from collections.abc import Sequence

import click

from memfs import __version__
from memfs.errors import BadOption, MemfsError

_FAILED = 1
_USAGE = 2
_INTERRUPTED = 130
_COMMANDS = ("mount", "umount", "snapshot", "copy", "doctor")


class _Commands(click.Group):
    """The commands. The module NAME_command has the command NAME as ``command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"memfs.cli.{cmd_name}_command").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="memfs %(version)s")
def cli() -> None:
    """Mount the memory of every process as files."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, and prints one line where it is not 0."""
    try:
        result = cli.main(args=arguments, prog_name="memfs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return _USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "memfs"
        _complain(f"{error.format_message().rstrip('.')}; see {command} --help")
        return _USAGE
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return _INTERRUPTED
    except MemfsError as error:
        _complain(str(error))
        return _USAGE if isinstance(error, BadOption) else _FAILED
    except OSError as error:
        _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return _FAILED


def _complain(sentence: str) -> None:
    click.echo(f"memfs: {' '.join(sentence.split())}", err=True)
