"""Live progress of a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from thriftgrad.lab.runner import Progress as Sign
from thriftgrad.lab.runner import Report


@contextmanager
def shown_progress() -> Iterator[Report]:
    """Two bars on the error stream: all runs, and the one under way with its last quality."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[quality]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        runs = bars.add_task("runs", total=None, quality="")
        current = bars.add_task("", total=None, quality="")

        def report(sign: Sign) -> None:
            quality = "" if sign.quality is None else f"quality {sign.quality:.4g}"
            bars.update(runs, total=sign.total, completed=sign.done)
            bars.update(current, description=sign.label, total=sign.steps, completed=sign.step, quality=quality)

        yield report
