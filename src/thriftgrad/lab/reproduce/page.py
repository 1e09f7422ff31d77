"""The result of a reproduction: a table for the terminal, Markdown, JSON, and one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table as Drawn
from rich.text import Text

from thriftgrad.lab.reproduce.claims import Bars, Chart, HeatMap, Verdict
from thriftgrad.lab.reproduce.records import ReproductionError
from thriftgrad.lab.reproduce.reproduction import Result, as_json
from thriftgrad.lab.whole_file import written_whole

COLOURS = {
    Verdict.HOLDS: "green",
    Verdict.IN_PART: "yellow",
    Verdict.CONTRADICTED: "red",
    Verdict.NOT_MEASURABLE: "dim",
}


def table(result: Result) -> Group:
    """Claim, paper, ours and verdict, with the reason under it, for a terminal of 100 columns or more."""
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name, share in (("claim", 3), ("paper", 3), ("ours", 4), ("verdict", 3)):
        drawn.add_column(name, ratio=share, overflow="fold")
    for answer in result.answers:
        finding = answer.finding
        drawn.add_row(
            Text(answer.claim.statement),
            Text(answer.claim.paper),
            Text(finding.ours),
            Text.assemble((finding.verdict.value, f"bold {COLOURS[finding.verdict]}"), f"\n{finding.why}"),
        )
    return Group(drawn, Text(tally(result), style="dim"))


def tally(result: Result) -> str:
    """How many claims met which verdict."""
    counts = [(verdict.value, sum(each.finding.verdict is verdict for each in result.answers)) for verdict in Verdict]
    return f"{len(result.answers)} claims: " + ", ".join(f"{count} {name}" for name, count in counts if count) + "."


def markdown(result: Result) -> str:
    """The same table, the tables behind it and the methods, in GitHub's Markdown."""
    lines = [f"# {result.paper}", ""]
    lines += [f"`{result.command}`", ""] if result.command else []
    lines += [", ".join(f"{name}: {value}" for name, value in result.setting.items()), "", tally(result), ""]
    rows = [
        (a.claim.statement, a.claim.paper, a.finding.ours, f"**{a.finding.verdict.value}**: {a.finding.why}")
        for a in result.answers
    ]
    lines += _markdown_table(("claim", "paper", "ours", "verdict"), rows)
    for answer in result.answers:
        for each in answer.finding.tables:
            lines += ["", f"**{each.caption}**", "", *_markdown_table(each.columns, each.rows)]
    lines += ["", "**Methods and learning rates**", ""]
    lines += _markdown_table(("study: method", "expression", "learning rate"), result.methods)
    return "\n".join(lines) + "\n"


def _markdown_table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    every = [columns, ("---",) * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in every]


def html(result: Result) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("thriftgrad.lab.reproduce").joinpath("page.html.j2").read_text(encoding="utf-8")
    charts = [drawing(chart) for answer in result.answers for chart in answer.finding.charts]
    return environment.from_string(source).render(
        result=result,
        tally=tally(result),
        charts=charts,
        plotly_js=Markup(get_plotlyjs()),  # a file of the plotly package; nothing else goes unescaped
    )


def drawing(chart: Chart | HeatMap | Bars) -> dict[str, Any]:
    """What the page's script draws, as plain JSON values."""
    if isinstance(chart, HeatMap):
        return {"x": {}, "y": {}, "curves": [], "heat": {"x": chart.columns, "y": chart.rows, "z": chart.values}}
    if isinstance(chart, Bars):
        bars = [{"name": name, "x": chart.bars, "y": heights} for name, heights in chart.parts]
        return {"x": {}, "y": {"title": {"text": chart.y}}, "curves": [], "bars": bars}
    return {
        "x": {"title": {"text": chart.x}, "type": "log" if chart.log_x else "linear"},
        "y": {"title": {"text": chart.y}, "type": "log" if chart.log_y else "linear"},
        "curves": [
            {
                "name": curve.label,
                "mode": "markers" if curve.dots else "lines+markers",
                "x": list(curve.x),
                "y": list(curve.y),
                "above": [_finite(high - y) for high, y in zip(curve.high, curve.y, strict=False)],
                "below": [_finite(y - low) for low, y in zip(curve.low, curve.y, strict=False)],
            }
            for curve in chart.curves
        ],
    }


def _finite(value: float) -> float:
    return value if isfinite(value) else 0.0


def write(result: Result, folder: Path) -> Path:
    """Write report.html, results.md and results.json into the folder; return the report's path."""
    pages = {
        "results.json": json.dumps(as_json(result), indent=1, ensure_ascii=False),
        "results.md": markdown(result),
        "report.html": html(result),
    }
    try:
        for name, text in pages.items():
            with written_whole(folder / name) as file:
                file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReproductionError(
            f"reproduce: the report cannot be written to {folder} ({error.strerror}); choose another folder with --out."
        ) from error
    return folder / "report.html"
