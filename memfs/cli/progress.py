"""How far a copy is, on stderr: a bar on a terminal, a line a second elsewhere if wished."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from memfs.copy.meter import Meter

CHOICES = ("auto", "plain", "off")
_PERIOD_S = 1.0
_BAR_PERIOD_S = 0.1
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@contextlib.contextmanager
def shown(meter: "Meter", how: str) -> Iterator[None]:
    """Show *meter* for as long as the block runs, in one of the ways of `CHOICES`."""
    show = {"plain": _show_lines, "off": None}.get(how, _show_bar if sys.stderr.isatty() else None)
    if show is None:
        yield
        return
    ended = threading.Event()
    display = threading.Thread(target=show, args=(meter, ended), daemon=True)
    display.start()
    try:
        yield
    finally:
        ended.set()
        display.join()


def size_text(size: float) -> str:
    """A size for people."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """A time for people: h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def line_of(meter: "Meter", elapsed_s: float) -> str:
    """One line that says it all."""
    done, all_of_it = meter.done_bytes, meter.data_bytes
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    left = f", {time_text((all_of_it - done) / rate)} left" if rate else ""
    return (
        f"{meter.doing}: {100 * done / all_of_it if all_of_it else 0:.0f}%, "
        f"{size_text(done)} of {size_text(all_of_it)} of data, {size_text(meter.hole_bytes)} of holes, "
        f"{size_text(rate)}/s{left}"
    )


def _show_lines(meter: "Meter", ended: threading.Event) -> None:
    began = time.monotonic()
    last = False
    while not last:
        last = ended.wait(_PERIOD_S)
        click.echo(line_of(meter, time.monotonic() - began), err=True)


def _show_bar(meter: "Meter", ended: threading.Event) -> None:
    # It takes a tenth of a second to import: a copy that is done by then has no bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: tuple[ProgressColumn, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("+ {task.fields[holes]} of holes"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(meter.doing, total=None, holes="")
        while not ended.wait(_BAR_PERIOD_S):
            bar.update(
                task,
                description=meter.doing,
                total=meter.data_bytes or None,
                completed=meter.done_bytes,
                holes=size_text(meter.hole_bytes),
            )
