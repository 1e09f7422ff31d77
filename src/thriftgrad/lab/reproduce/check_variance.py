"""Checks of quantisers on the gradients of plain SGD's path, without training by them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log

from thriftgrad.lab.reproduce.claims import Chart, Check, Finding, Reasons, Verdict, below, named, together, within
from thriftgrad.lab.reproduce.comparing import axis, curve, seedwise, sweep_table, table_of, variance_ratio
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio

# For an unbiased method, and claims about variance name no other, the mean squared error is its variance.
VALUES = {
    "relative_variance": "squared error / |g|^2",
    "in_sampling": "squared error / the minibatch's variance",
    "bits": "bits packed",
    "entropy_bits": "entropy of single symbols, bits",
    "zeros": "share of zeros",
}


def less(gradients: str, sweep: str, pairs: Sequence[tuple[str, str]], reasons: Reasons, shown: Sequence[str]) -> Check:
    """Of each pair, the first has less variance than the second; ``shown``: the rows of the table."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        ratios = {f"{a} / {b}": variance_ratio(rows, sweep, a, b) for a, b in pairs}
        verdict = together([below(each, 1.0) for each in ratios.values()])
        return Finding(
            f"Variances: {_listed(ratios)}.",
            verdict,
            reasons.of(verdict),
            named(pairs),
            (table_of(rows, sweep, shown, VALUES, f"{sweep}; mean over seeds with 95 % interval"),),
        )

    return check


def alike(gradients: str, sweep: str, a: str, b: str, reasons: Reasons, margin: float = 1.25) -> Check:
    """Their variances agree to within a factor ``margin``."""

    def check(evidence: Evidence) -> Finding:
        found = variance_ratio(evidence.rows(gradients), sweep, a, b)
        verdict = within(found, 1 / margin, margin)
        ours = f"{a}'s variance is {found.text()} times {b}'s; a match is {1 / margin:.3g} to {margin:.3g}."
        return Finding(ours, verdict, reasons.of(verdict), (a, b))

    return check


def total(gradients: str, sweep: str, label: str, most: float, reasons: Reasons, shown: Sequence[str]) -> Check:
    """The whole variance of a step, minibatch and rounding, is at most ``most`` times full precision's.

    Both fall as 1 / M, so their ratio does not depend on the number of workers.
    """

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        found = {each: interval([1 + v for v in seedwise(rows, sweep, each, value="in_sampling")]) for each in shown}
        verdict = below(found[label], most)
        ours = f"In units of full precision's: {_listed(found)}."
        return Finding(ours, verdict, reasons.of(verdict), (label, "full precision"))

    return check


def less_along(
    gradients: str, sweep: str, a: str, b: str, reasons: Reasons, shown: Sequence[str], unit: str, least: float
) -> Check:
    """a has less variance than b at every place of the axis from ``least`` on."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        ratios = {f"{x:g}": variance_ratio(rows, sweep, a, b, x) for x in axis(rows, sweep, a) if x >= least}
        verdict = together([below(each, 1.0) for each in ratios.values()])
        return Finding(
            f"{a} / {b} by {unit}: {_listed(ratios)}.",
            verdict,
            reasons.of(verdict),
            (a, b),
            (sweep_table(rows, sweep, shown, f"Variance / |g|^2 by {unit}, mean over seeds", unit),),
            (
                Chart(
                    f"Variance on SGD's path by {unit}, mean over seeds with 95 % interval.",
                    unit,
                    "variance / |g|^2",
                    tuple(curve(rows, sweep, label) for label in shown),
                    log_x=unit == "bucket",
                    log_y=True,
                ),
            ),
        )

    return check


def falls(gradients: str, sweep: str, labels: Sequence[str], reasons: Reasons, unit: str) -> Check:
    """Each label's variance falls from every place of the axis to the next."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        verdicts = {
            label: together([below(step, 1.0) for step in _steps(rows, sweep, label, falling=True)]) for label in labels
        }
        verdict = together(list(verdicts.values()))
        return Finding(
            f"Falling throughout: {_verdicts(verdicts)}.",
            verdict,
            reasons.of(verdict),
            tuple(labels),
            (sweep_table(rows, sweep, labels, f"Variance / |g|^2 by {unit}, mean over seeds", unit),),
        )

    return check


def grows_from_exact(gradients: str, sweep: str, labels: Sequence[str], reasons: Reasons) -> Check:
    """A bucket of one coordinate is exact for each label, and variance grows from every bucket to the next."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        exact = {label: max(seedwise(rows, sweep, label, 1.0)) for label in labels}
        grown = {label: together([below(step, 1.0) for step in _steps(rows, sweep, label)]) for label in labels}
        is_exact = Verdict.HOLDS if max(exact.values()) == 0 else Verdict.CONTRADICTED
        verdict = together([is_exact, *grown.values()])
        drawn = [row for row in rows if row["x"] > 1]
        return Finding(
            f"Largest error at bucket 1: {max(exact.values()):g}. Growing throughout: {_verdicts(grown)}.",
            verdict,
            reasons.of(verdict),
            tuple(labels),
            (sweep_table(rows, sweep, labels, "Variance / |g|^2 by bucket, mean over seeds", "bucket"),),
            (
                Chart(
                    "Variance on SGD's path by bucket; bucket 1, exact, is off the logarithmic axis.",
                    "bucket",
                    "variance / |g|^2",
                    tuple(curve(drawn, sweep, label) for label in labels),
                    log_x=True,
                    log_y=True,
                ),
            ),
        )

    return check


def power_of_bucket(gradients: str, sweep: str, label: str, low: float, high: float, reasons: Reasons) -> Check:
    """The exponent e in variance ~ bucket^e over the three largest buckets lies between low and high."""

    def check(evidence: Evidence) -> Finding:
        rows = evidence.rows(gradients)
        a, *_, b = axis(rows, sweep, label)[-3:]
        small, large = (seedwise(rows, sweep, label, x) for x in (a, b))
        found = interval([log(y / x) / log(b / a) for x, y in zip(small, large, strict=True)])
        verdict = within(found, low, high)
        ours = f"From bucket {a:g} to {b:g} the exponent is {found.text(2)}; counted as agreement: {low} to {high}."
        return Finding(ours, verdict, reasons.of(verdict), (label,))

    return check


def _steps(rows: Sequence[dict[str, float]], sweep: str, label: str, falling: bool = False) -> list[Interval]:
    """The ratio of variance between neighbours on the axis above 1: below 1 where it goes the claimed way."""
    xs = [x for x in axis(rows, sweep, label) if x > 1]
    pairs = [(seedwise(rows, sweep, label, x), seedwise(rows, sweep, label, y)) for x, y in pairwise(xs)]
    return [ratio(second, first) if falling else ratio(first, second) for first, second in pairs]


def _listed(ratios: dict[str, Interval]) -> str:
    return ", ".join(f"{name} {found.text()}" for name, found in ratios.items())


def _verdicts(verdicts: dict[str, Verdict]) -> str:
    return ", ".join(f"{label} {verdict.value}" for label, verdict in verdicts.items())
