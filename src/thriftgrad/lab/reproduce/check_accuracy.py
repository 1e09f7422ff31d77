"""Checks of trained models: accuracy seed by seed, and the bits that training moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, below, named, together, within
from thriftgrad.lab.reproduce.comparing import percent, quality_table
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval

MARGIN = 0.01
"""Two accuracies match if they differ by less than this."""


def matches(study: str, pairs: Sequence[tuple[str, str]], reasons: Reasons, margin: float = MARGIN) -> Check:
    """Of each pair, the final qualities differ by less than ``margin``."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        gains = {pair: runs.gain(*pair) for pair in pairs}
        verdict = together([within(gain, -margin, margin) for gain in gains.values()])
        ours = f"{_listed(runs, gains)}; a match is a difference below {margin:g}."
        return Finding(ours, verdict, reasons.of(verdict), named(pairs), (_table(runs, pairs[0][1]),))

    return check


def better(study: str, pairs: Sequence[tuple[str, str]], reasons: Reasons, by: float = 0.0) -> Check:
    """Of each pair, the first has the better final quality, by more than ``by``."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        gains = {pair: runs.gain(*pair) for pair in pairs}
        verdict = together([below(_negated(gain), -by) for gain in gains.values()])
        return Finding(
            f"{_listed(runs, gains)}.", verdict, reasons.of(verdict), named(pairs), (_table(runs, pairs[0][1]),)
        )

    return check


def gap(one: tuple[str, str], others: Sequence[tuple[str, str]], reasons: Reasons) -> Check:
    """A method of one study has the better final quality than those of other studies; pairs of study and label."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(one[0])
        mine = runs.finals(one[1])
        sign = 1 if runs.configuration.task.higher_is_better else -1
        gains, lines = {}, [(f"{one[0]}: {one[1]}", interval(mine).text(4), "-", f"{_samples(runs, one[1]):,}")]
        for study, label in others:
            there = evidence.study(study)
            gain = interval([sign * (a - b) for a, b in zip(mine, there.finals(label), strict=True)])
            gains[f"{study}: {label}"] = gain
            cells = (interval(there.finals(label)).text(4), _text(runs, gain), f"{_samples(there, label):,}")
            lines.append((f"{study}: {label}", *cells))
        verdict = together([below(_negated(gain), 0.0) for gain in gains.values()])
        listed = "; ".join(f"{name} {_text(runs, gain)}" for name, gain in gains.items())
        table = Table("Each at its tuned learning rate", ("study: method", "final", "lead", "samples"), tuple(lines))
        judged = (one[1], *dict.fromkeys(label for _, label in others))
        return Finding(f"{one[1]} against {listed}.", verdict, reasons.of(verdict), judged, (table,))

    return check


def _samples(runs: StudyRuns, label: str) -> int:
    return runs.of(label)[0].evaluations[-1].samples


def total_bits(study: str, label: str, bits: float, reasons: Reasons) -> Check:
    """A worker sends, and receives, so many bits a coordinate, to 5 %."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        up, down = runs.bits_per_coordinate(label)
        others = runs.configuration.workers - 1
        each = [Interval(value, value, value, 1) for value in (up / others, up, down)]
        verdict = together([within(value, 0.95 * bits, 1.05 * bits) for value in each])
        ours = (
            f"A message is {up / others:.3f} bits a coordinate, scales and header included; all-gathered between "
            f"{others + 1} workers, each moves {up:.2f} up and {down:.2f} down."
        )
        return Finding(ours, verdict, reasons.of(verdict), (label,))

    return check


def _listed(runs: StudyRuns, gains: Mapping[tuple[str, str], Interval]) -> str:
    return "; ".join(f"{a} against {b} {_text(runs, gain)}" for (a, b), gain in gains.items())


def _text(runs: StudyRuns, gain: Interval) -> str:
    quality = runs.configuration.task.quality
    return percent(gain) if "accuracy" in quality else f"{gain.text(2)} {quality} better"


def _negated(gain: Interval) -> Interval:
    return Interval(-gain.mean, -gain.high, -gain.low, gain.count)


def _table(runs: StudyRuns, over: str) -> Table:
    c = runs.configuration
    return quality_table(
        runs, over, f"{c.task.name}, {c.workers} workers, {c.steps} steps of batch {c.batch_size}, {len(c.seeds)} seeds"
    )
