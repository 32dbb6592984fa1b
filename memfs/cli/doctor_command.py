"""``memfs doctor``: what memfs can use on this machine, what it costs to be without, and how to mend it."""

import json

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
def command(as_json: bool) -> None:
    """Tell what works here, and how to turn on what does not."""
    from memfs.cli.checks import run_checks

    findings = run_checks()
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(finding.as_line())
