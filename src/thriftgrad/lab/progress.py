"""Live progress of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from thriftgrad.lab.runner import Progress as Sign
from thriftgrad.lab.runner import Report


@contextmanager
def shown_progress() -> Iterator[Report]:
    """Two bars on the error stream: all runs, and the one under way with its last quality. None where it is a file."""
    console = Console(stderr=True)
    columns = (
        # A long name gives way, not the bar.
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[quality]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as bars:
        runs = bars.add_task("all runs", total=None, quality="")
        current = bars.add_task("", total=None, quality="")

        def report(sign: Sign) -> None:
            if bars.tasks[current].description != sign.label:
                bars.reset(current)
            quality = "" if sign.quality is None else f"quality {sign.quality:.4g}"
            bars.update(runs, total=sign.total, completed=sign.done)
            bars.update(current, description=sign.label, total=sign.steps, completed=sign.step, quality=quality)

        yield report
