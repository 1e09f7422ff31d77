"""From rows and runs to intervals, tables and charts: what the claims of both papers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import fmean

from thriftgrad.lab.reproduce.claims import Curve, Table
from thriftgrad.lab.reproduce.evidence import StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.records import Row


def seedwise(
    rows: Iterable[Row], sweep: str, label: str, x: float | None = None, value: str = "relative_variance"
) -> list[float]:
    """Each seed's geometric mean of a value over its snapshots, by seed; 0 where one is 0."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["sweep"] == sweep and row["label"] == label and (x is None or row["x"] == x):
            found.setdefault(row["seed"], []).append(row[value])
    return [_geometric(values) for _, values in sorted(found.items())]


def _geometric(values: Sequence[float]) -> float:
    return exp(fmean(map(log, values))) if min(values) > 0 else 0.0


def variance_ratio(rows: Sequence[Row], sweep: str, a: str, b: str, x: float | None = None) -> Interval:
    """a's relative variance over b's on the same gradients, over seeds."""
    return ratio(seedwise(rows, sweep, a, x), seedwise(rows, sweep, b, x))


def axis(rows: Iterable[Row], sweep: str, label: str) -> list[float]:
    """Where a label was measured in a sweep."""
    return sorted({row["x"] for row in rows if row["sweep"] == sweep and row["label"] == label})


def curve(rows: Sequence[Row], sweep: str, label: str, value: str = "relative_variance") -> Curve:
    """A label's value along a sweep, with its interval over seeds."""
    xs = axis(rows, sweep, label)
    at = [interval(seedwise(rows, sweep, label, x, value)) for x in xs]
    return Curve(
        label,
        tuple(xs),
        tuple(each.mean for each in at),
        tuple(each.low for each in at),
        tuple(each.high for each in at),
    )


def table_of(rows: Sequence[Row], sweep: str, labels: Sequence[str], columns: Mapping[str, str], caption: str) -> Table:
    """A line for each label: mean and interval over seeds of each value; ``columns``: heading by value."""
    lines = tuple(
        (label, *(interval(seedwise(rows, sweep, label, None, value)).text() for value in columns)) for label in labels
    )
    return Table(caption, ("method", *columns.values()), lines)


def sweep_table(rows: Sequence[Row], sweep: str, labels: Sequence[str], caption: str, x: str) -> Table:
    """A line for each place on the axis, a column for each label: relative variance, mean over seeds."""
    xs = sorted({at for label in labels for at in axis(rows, sweep, label)})
    lines = tuple((f"{at:g}", *(_mean_text(seedwise(rows, sweep, label, at)) for label in labels)) for at in xs)
    return Table(caption, (x, *labels), lines)


def _mean_text(values: Sequence[float]) -> str:
    return f"{fmean(values):.3g}" if values else "-"


def percent(measured: Interval) -> str:
    """An accuracy difference in percentage points.

    >>> percent(Interval(0.0123, -0.001, 0.0256, 5))
    '+1.2 [-0.1, +2.6] points'
    """
    return f"{100 * measured.mean:+.1f} [{100 * measured.low:+.1f}, {100 * measured.high:+.1f}] points"


def quality_table(study: StudyRuns, over: str, caption: str) -> Table:
    """Every arm of a study: final quality, its paired difference to one arm, loss, rate, bits, diverged seeds."""
    lines = []
    for label in study.labels:
        up, down = study.bits_per_coordinate(label)
        lines.append(
            (
                label,
                interval(study.finals(label)).text(4),
                "-" if label == over else study.gain(label, over).text(2),
                study.rate(label),
                f"{up:.2f}",
                f"{down:.2f}",
                str(study.diverged(label) or "-"),
            )
        )
    quality = study.configuration.task.quality
    return Table(
        caption,
        ("method", f"final {quality}", f"better than {over} by", "learning rate", "bits up", "bits down", "diverged"),
        tuple(lines),
    )
