"""Draw a comparison as one HTML file that needs no network: plotly.js, data and style are all inside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from thriftgrad.lab.findings import findings
from thriftgrad.lab.load import Clock, Run
from thriftgrad.lab.summary import MethodSummary, Summary, means, read_summary
from thriftgrad.lab.table import column_groups, human_bytes, notes, quality_text, significant, status_text, target_text
from thriftgrad.lab.whole_file import written_whole


class ReportError(ValueError):
    """The report cannot be written where it was asked for."""


def write_report(directory: Path, path: Path) -> Path:
    """Draw the comparison in ``directory`` into the file ``path``, whole or not at all, and return ``path``.

    Raises RecordsError if the records cannot be read, and ReportError if the file cannot be written.
    """
    text = render(read_summary(directory), (directory / "comparison.json").read_text(encoding="utf-8"))
    try:
        with written_whole(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(
            f"The report cannot be written to {path} ({error.strerror}); choose a file in a folder you can write to."
        ) from error
    return path


def render(summary: Summary, comparison_json: str) -> str:
    """The page as text; ``comparison_json`` is quoted in it in full."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "bytes": human_bytes,
        "bits": _bits_text,
        "number": significant,
        "quality": quality_text,
        "status": status_text,
        "pairs": _pairs,
    }
    drawn = charts(summary)
    template = environment.from_string(files("thriftgrad.lab").joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        summary=summary,
        configuration=summary.configuration,
        target=target_text(summary),
        findings=findings(summary),
        groups=column_groups(summary),
        notes=notes(summary),
        charts=drawn,
        panels=panels(drawn),
        comparison_json=json.dumps(json.loads(comparison_json), indent=2, ensure_ascii=False),
        plotly_js=Markup(get_plotlyjs()),  # a file of the plotly package; nothing else goes unescaped
    )


def charts(summary: Summary) -> dict[str, Any]:
    """What the page's script draws, as plain JSON values; methods keep their order, and so their colour."""
    task, clocks = summary.configuration.task, summary.configuration.clocks
    return {
        "quality": task.quality,
        "target": task.target,
        "higher_is_better": task.higher_is_better,
        "on_sgd": summary.on_sgd,
        "in_lab": summary.in_lab,
        "methods": [
            {
                "label": method.method.label,
                "curve": _curve([run for run in method.runs if run.status == "finished"], clocks),
                "strays": [
                    _curve([run], clocks) | {"seed": run.seed, "status": run.status}
                    for run in method.runs
                    if run.status != "finished"
                ],
                "trend": _trend(method),
                "levels": _levels(method),
            }
            for method in summary.methods
        ],
    }


def _curve(runs: Sequence[Run], clocks: Sequence[Clock]) -> dict[str, Any]:
    """Mean, lowest and highest quality over runs at the steps that all of them evaluated, against every cost."""
    by_step = [{at.step: at for at in run.evaluations if at.quality is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    rows = [[run[step] for run in by_step] for step in steps]
    qualities = [[at.quality for at in row if at.quality is not None] for row in rows]
    return {
        "steps": steps,
        "bytes": [fmean(at.bytes_both for at in row) for row in rows],
        "seconds": {label: [fmean(at.seconds(link) for at in row) for row in rows] for _, label, link in clocks},
        "mean": [fmean(values) for values in qualities],
        "low": [min(values) for values in qualities],
        "high": [max(values) for values in qualities],
    }


def _trend(method: MethodSummary) -> dict[str, Any]:
    """What was measured at each step, mean over the runs that measured it; a bias that may be chance is 0."""
    evaluations = [at for run in method.runs for at in run.evaluations]
    steps = sorted({at.step for at in evaluations})
    rows = [asdict(means([at for at in evaluations if at.step == step])) for step in steps]
    if method.means.bias is not None and not method.means.biased:
        rows = [row | {"bias": row["bias"] and 0.0} for row in rows]
    return {"steps": steps} | {name: [row[name] for row in rows] for name in rows[0]} if rows else {"steps": []}


def _levels(method: MethodSummary) -> dict[str, Any] | None:
    """The levels over time of the first seed that has any."""
    for run in method.runs:
        found = [(at.step, at.levels) for at in run.evaluations if at.levels is not None]
        if found:
            return {
                "seed": run.seed,
                "tensor": found[-1][1].tensor,
                "steps": [step for step, _ in found],
                "versions": [levels.version for _, levels in found],
                "values": [list(levels.values) for _, levels in found],
            }
    return None


PANELS = {
    "relative_error": ("Relative error", "Relative error of the aggregated gradient: |estimate \u2212 mean| / |mean|."),
    "variance": (
        "Normalised variance",
        "Normalised variance of the aggregated gradient: E |estimate \u2212 E estimate|\u00b2 / |mean|\u00b2.",
    ),
    "coordinate_variance": (
        "Variance of a coordinate",
        "The same variance as a mean over coordinates, not normalised: E |estimate \u2212 E estimate|\u00b2 / n.",
    ),
    "bias": (
        "Bias",
        "Bias of the aggregated gradient, free of the draws\u2019 noise: |E estimate \u2212 mean| / |mean|. "
        "With error feedback it counts what the memory adds.",
    ),
    "cosine": ("Cosine", "Cosine of the angle between the aggregated gradient and the mean."),
    "symbol_entropy_bits": (
        "Bits a symbol",
        "Bits a symbol, as worker 0 sends them: entropy (line) and fixed width (dotted).",
    ),
    "bits_per_coordinate": (
        "Bits a coordinate",
        "Bits a step and coordinate that a worker hands in: symbols, scales, indices, headers and what is agreed on, "
        "mean since the evaluation before.",
    ),
}
"""The charts over steps: name and caption of each."""


def panels(drawn: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The charts that some method has data for."""

    def measured(name: str) -> bool:
        return any(value is not None for method in drawn["methods"] for value in method["trend"].get(name, ()))

    return {name: words for name, words in PANELS.items() if measured(name)}


def _bits_text(bits_per_second: float) -> str:
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits_per_second < 999.5:
            return f"{bits_per_second:.3g} {unit}"
        bits_per_second /= 1000
    return f"{bits_per_second:.3g} Tbit/s"


def _pairs(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in mapping.items()]
