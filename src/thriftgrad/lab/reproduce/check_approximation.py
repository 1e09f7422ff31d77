"""Checks of estimates against what they estimate, and of quadratics where all is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from thriftgrad.lab.reproduce.approximation import WHOLE
from thriftgrad.lab.reproduce.claims import Chart, Check, Curve, Finding, HeatMap, Reasons, Table, below, together
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.records import Row


def _values(rows: Iterable[Row], value: str, **where: object) -> list[float]:
    """A value of the rows that meet a condition, by seed."""
    found = [row for row in rows if all(row[name] == wanted for name, wanted in where.items())]
    return [row[value] for row in sorted(found, key=lambda row: row["seed"])]


def lower(measurements: Mapping[str, str], pairs: Sequence[tuple[str, str]], most: float, reasons: Reasons) -> Check:
    """Of each pair, the error over all matrices is below ``most`` times the second's; ``measurements``: name, task."""

    def check(evidence: Evidence) -> Finding:
        verdicts, told = [], []
        for name, task in measurements.items():
            rows = evidence.rows(name)
            ratios = {(a, b): _ratio(rows, a, b) for a, b in pairs}
            verdicts += [below(each, most) for each in ratios.values()]
            told.append(f"{task}: " + ", ".join(f"{a} / {b} {each.text()}" for (a, b), each in ratios.items()))
        verdict = together(verdicts)
        judged = tuple(dict.fromkeys(label for pair in pairs for label in pair))
        ours = f"|D - D'| of the first over that of the second, {'; '.join(told)}."
        return Finding(ours, verdict, reasons.of(verdict), judged)

    return check


def _ratio(rows: Sequence[Row], a: str, b: str) -> Interval:
    return ratio(*(_values(rows, "error", label=label, tensor=WHOLE) for label in (a, b)))


def near_best(measurements: Mapping[str, str], labels: Sequence[str], most: float, reasons: Reasons) -> Check:
    """Each label's error is less than ``most`` times that of the nearest matrices of its rank; tables of all forms."""

    def check(evidence: Evidence) -> Finding:
        verdicts, told, tables, charts = [], [], [], []
        for name, task in measurements.items():
            rows = evidence.rows(name)
            found = {
                label: ratio(
                    _values(rows, "error", label=label, tensor=WHOLE), _values(rows, "best", label=label, tensor=WHOLE)
                )
                for label in labels
            }
            verdicts += [below(each, most) for each in found.values()]
            told.append(f"{task}: " + ", ".join(f"{label} {each.text()}" for label, each in found.items()))
            tables.append(_whole(rows, task))
            charts.append(_by_matrix(rows, labels, task))
        verdict = together(verdicts)
        ours = f"Error over that of the best approximation of the same rank, {'; '.join(told)}."
        return Finding(ours, verdict, reasons.of(verdict), tuple(labels), tuple(tables), tuple(charts))

    return check


def contracts(measurements: Mapping[str, str], labels: Sequence[str], reasons: Reasons) -> Check:
    """Over all looks at all matrices, the least share that a label's estimate keeps is above 0: it is a contraction."""

    def check(evidence: Evidence) -> Finding:
        verdicts, told = [], []
        for name, task in measurements.items():
            rows = evidence.rows(name)
            least = {label: _least(rows, label) for label in labels}
            verdicts += [below(Interval(-x.mean, -x.high, -x.low, x.count), 0.0) for x in least.values()]
            told.append(f"{task}: " + ", ".join(f"{label} {each.text(2)}" for label, each in least.items()))
        verdict = together(verdicts)
        ours = f"Least 1 - |D - D'|^2 / |D|^2 of any matrix at any look, {'; '.join(told)}."
        return Finding(ours, verdict, reasons.of(verdict), tuple(labels))

    return check


def _least(rows: Sequence[Row], label: str) -> Interval:
    """By seed, the least over matrices."""
    found: dict[int, float] = {}
    for row in rows:
        if row["label"] == label and row["tensor"] != WHOLE:
            found[row["seed"]] = min(row["least_kept"], found.get(row["seed"], 1.0))
    return interval([found[seed] for seed in sorted(found)])


def _whole(rows: Sequence[Row], task: str) -> Table:
    labels = dict.fromkeys(row["label"] for row in rows)
    lines = []
    for label in labels:
        cells = [interval(_values(rows, each, label=label, tensor=WHOLE)).text() for each in ("error", "best", "kept")]
        lines.append((label, *cells, _least(rows, label).text(2)))
    columns = ("method", "|D - D'| / |D|", "best of its rank", "kept of |D|^2", "least kept of any matrix")
    return Table(f"{task}: all matrices together, on SGD's path", columns, tuple(lines))


def _by_matrix(rows: Sequence[Row], labels: Sequence[str], task: str) -> HeatMap:
    tensors = tuple(
        tensor
        for tensor in dict.fromkeys(row["tensor"] for row in rows if row["label"] == labels[0])
        if all(_values(rows, "error", label=label, tensor=tensor) for label in labels)
    )
    errors = tuple(
        tuple(interval(_values(rows, "error", label=label, tensor=tensor)).mean for tensor in tensors)
        for label in labels
    )
    return HeatMap(f"{task}: |D - D'| / |D|, matrix by matrix", tensors, tuple(labels), errors)


def below_error(
    measurement: str, cases: Sequence[tuple[str, float, float | None, str, float]], reasons: Reasons, caption: str
) -> Check:
    """Each case of label, rate, noise: the error at the end is "below" or "above" a bound; a table of everything."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(measurement)
        verdicts, told = [], []
        for label, rate, noise, side, bound in cases:
            found = _left(_values(rows, "error", label=label, rate=rate, noise=noise))
            turned = found if side == "below" else Interval(-found.mean, -found.high, -found.low, found.count)
            verdicts.append(below(turned, bound if side == "below" else -bound))
            at = f"rate {rate:g}" if noise is None else f"noise {noise:g}"
            told.append(f"{label} at {at} {found.text(2)} ({side} {bound:g})")
        verdict = together(verdicts)
        judged = tuple(dict.fromkeys(case[0] for case in cases))
        ours = f"Error left, the start's being 1: {'; '.join(told)}."
        return Finding(ours, verdict, reasons.of(verdict), judged, (_cases(rows, caption),), (_curves(rows, caption),))

    return check


def _left(errors: Sequence[float]) -> Interval:
    """The geometric mean: errors span orders of magnitude; what is below 1e-6 is float32's own."""
    return ratio([max(error, 1e-6) for error in errors], [1.0] * len(errors))


def _axis(rows: Sequence[Row]) -> str:
    return "noise" if len({row["noise"] for row in rows}) > 1 else "rate"


def _cases(rows: Sequence[Row], caption: str) -> Table:
    axis = _axis(rows)
    places = sorted({row[axis] for row in rows})
    lines = tuple(
        (label, *(_left(_values(rows, "error", label=label, **{axis: at})).text(2) for at in places))
        for label in dict.fromkeys(row["label"] for row in rows)
    )
    return Table(caption, ("method", *(f"{axis} {at:g}" for at in places)), lines)


def _curves(rows: Sequence[Row], caption: str) -> Chart:
    axis = _axis(rows)
    places = sorted({row[axis] for row in rows})
    curves = []
    for label in dict.fromkeys(row["label"] for row in rows):
        at = [_left(_values(rows, "error", label=label, **{axis: place})) for place in places]
        curves.append(Curve(label, tuple(places), tuple(each.mean for each in at)))
    return Chart(caption, axis, "error left", tuple(curves), log_y=True)
