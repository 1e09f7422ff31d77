"""Live progress of a reproduction on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from thriftgrad.lab.reproduce.pool import Sign


@contextmanager
def shown_progress() -> Iterator[Callable[[str, Sign], None]]:
    """A bar for each stage on the error stream, with what ended last; none where that is a file."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[jobs]}", markup=False),
        TextColumn(
            "{task.fields[last]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as bars:
        stages: dict[str, int] = {}

        def show(stage: str, sign: Sign) -> None:
            if stage not in stages:
                stages[stage] = int(bars.add_task(stage, total=sign.seconds, jobs="", last=""))
            bars.update(
                stages[stage],  # type: ignore[arg-type]  # rich's own name for an int
                completed=sign.seconds_done,
                jobs=f"{sign.jobs_done} of {sign.jobs}",
                last=sign.label,
            )

        yield show
