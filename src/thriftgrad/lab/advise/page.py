"""The advice as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from thriftgrad.lab.advise.advise import Advice
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.lab.advise.ranking import MOST_WORKERS, over_bandwidths, over_workers
from thriftgrad.lab.advise.table import COLUMNS, assumptions, cells
from thriftgrad.lab.whole_file import check_place, written_whole

WORLDS = tuple(2**i for i in range(1, 13))
BANDWIDTHS = tuple(10 ** (6 + i / 4) for i in range(21))
"""1 Mbit/s to 100 Gbit/s."""


def check(path: Path) -> None:
    """Raise ``AdviseError`` where ``write`` would for want of a place; to be asked before all is measured."""
    with _said(path):
        check_place(path)


def write(advice: Advice, path: Path, command: str = "") -> Path:
    """Write the page, whole or not at all, and return ``path``. Raises ``AdviseError`` where it cannot be written."""
    with _said(path), written_whole(path) as file:
        file.write_text(html(advice, command), encoding="utf-8")
    return path


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdviseError(
            f"advise: the page cannot be written to {path} ({error.strerror}); choose another file with --out."
        ) from error


def html(advice: Advice, command: str = "") -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("thriftgrad.lab.advise").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        advice=advice,
        command=command,
        columns=COLUMNS,
        rows=[(cells(row), row.candidate.expression) for row in advice.rows],
        assumptions=assumptions(advice),
        charts=charts(advice),
        most=f"{MOST_WORKERS:,}",
        plotly_js=Markup(get_plotlyjs()),  # a file of the plotly package; nothing else goes unescaped
    )


def charts(advice: Advice) -> dict[str, Any]:
    """What the page's script draws, as plain JSON values; methods keep the order of the table, and so their colour."""
    workers = over_workers(advice.contenders, advice.setting, advice.transport, WORLDS)
    links = over_bandwidths(advice.contenders, advice.setting, advice.transport, advice.workers, BANDWIDTHS)
    return {
        "methods": [row.candidate.label for row in advice.rows],
        "compute": 1e3 * advice.setting.compute.seconds(advice.setting.lanes),
        "step": [1e3 * row.seconds for row in advice.rows],
        "exposed": [1e3 * row.exposed_seconds for row in advice.rows],
        "distortion": [row.distortion if row.candidate.compresses else None for row in advice.rows],
        "worlds": WORLDS,
        "workers": [[1e3 * each for each in workers[row.candidate.label]] for row in advice.rows],
        "bandwidths": [each / 1e6 for each in BANDWIDTHS],
        "links": [[1e3 * each for each in links[row.candidate.label]] for row in advice.rows],
    }
