"""Checks of the factorial grid: what each factor does, what is best for its bits, and what k and s are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, log

import numpy as np
from numpy.typing import NDArray

from thriftgrad.lab.load import Run
from thriftgrad.lab.reproduce.claims import (
    Chart,
    Check,
    Curve,
    Finding,
    HeatMap,
    Reasons,
    Table,
    Verdict,
    below,
    together,
)
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.halving import Halving, pareto_fronts
from thriftgrad.lab.reproduce.intervals import Interval, interval
from thriftgrad.lab.reproduce.labels import Setting, read_label
from thriftgrad.lab.reproduce.records import Row

Twin = Callable[[Setting], Setting]


def without_memory(setting: Setting) -> Setting:
    """The same without a memory."""
    return replace(setting, memory=False)


def unscaled(setting: Setting) -> Setting:
    """The same without the factor 1 / (1 + beta)."""
    return replace(setting, scaled=False) if setting.s is not None else setting


def random_support(setting: Setting) -> Setting:
    """The same on random coordinates."""
    return replace(setting, op=setting.op.replace("Top", "Rand"))


def factor(study: Halving, twin: Twin, what: str, reasons: Reasons, only: Callable[[Setting], bool]) -> Check:
    """A cell has a lower tuned training loss than its twin, on average over the pairs of the whole grid."""

    def check(evidence: Evidence) -> Finding:
        tried = {read_label(label): loss for label, (_, loss) in study.tried(evidence.folder).items()}
        pairs = [(mine, other) for mine in tried if (other := twin(mine)) != mine and other in tried and only(mine)]
        lines, verdict, ours = [], Verdict.NOT_MEASURABLE, ""
        for op in ("all", *dict.fromkeys(mine.op for mine, _ in pairs)):
            here = [(tried[a], tried[b]) for a, b in pairs if op in ("all", a.op)]
            both = [log(b / a) for a, b in here if isfinite(a) and isfinite(b)]
            gain = interval(both) if both else Interval(0.0, -1.0, 1.0, 0)
            wins = sum(a < b for a, b in here)
            lost = len(here) - len(both)
            lines.append((op, f"{len(here)}", gain.text(2), f"{wins}", f"{lost or '-'}"))
            if op == "all":
                verdict = below(Interval(-gain.mean, -gain.high, -gain.low, gain.count), 0.0)
                ours = (
                    f"Over {len(here)} pairs of cells that differ in nothing else the log of the training loss is "
                    f"lower by {gain.text(2)} with {what}; lower in {wins}."
                )
        columns = ("operator", "pairs", "log loss lower by", "lower in", "a run of the pair diverged at every rate")
        table = Table(
            f"The grid's tuning runs, each at its best rate: with {what} against without", columns, tuple(lines)
        )
        return Finding(ours, verdict, reasons.of(verdict), tuple(a.label for a, _ in pairs), (table,))

    return check


def front(study: Halving, baseline: str, tolerance: float, reasons: Reasons) -> Check:
    """The fewest bits with at most a ``tolerance`` of quality lost belong to what sparsifies, quantises and waits."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study.name)
        points = {label: _bits_and_quality(runs, label) for label in runs.labels}
        best = set(pareto_fronts({label: (bits, -quality) for label, (bits, quality) in points.items()})[0])
        close = [label for label in runs.labels if runs.gain(label, baseline).low > -tolerance or label == baseline]
        label = min(close, key=lambda each: points[each][0])
        cheapest = read_label(label)
        parts = {
            "sparsifies": cheapest.support != "dense",
            "quantises": cheapest.values != "fp32",
            "takes local steps": cheapest.h > 1,
        }
        verdict = Verdict.HOLDS if all(parts.values()) else Verdict.CONTRADICTED
        verdict = Verdict.IN_PART if verdict is Verdict.CONTRADICTED and sum(parts.values()) == 2 else verdict
        times = points[baseline][0] / points[label][0]
        ours = (
            f"Of {len(runs.labels)} trained cells {len(close)} surely lose less than {100 * tolerance:g} points; the "
            f"cheapest is {label}, {times:.3g} times fewer uplink bits than {baseline} with headers: it "
            f"{', '.join(name for name, has in parts.items() if has) or 'does none of it'}. {len(best)} cells are on "
            "the front."
        )
        return Finding(
            ours,
            verdict,
            reasons.of(verdict),
            (label, baseline),
            (_cells(runs, points, best, baseline),),
            (_chart(runs, points, best),),
        )

    return check


def _bits_and_quality(runs: StudyRuns, label: str) -> tuple[float, float]:
    sent = [8 * run.evaluations[-1].payload_up_bytes for run in runs.of(label) if run.status == "finished"]
    return (interval(sent).mean if sent else float("inf"), interval(runs.finals(label)).mean)


def _cells(runs: StudyRuns, points: dict[str, tuple[float, float]], best: set[str], baseline: str) -> Table:
    lines = [
        (
            label,
            f"{points[label][0] / 1000:.4g}",
            interval(runs.finals(label)).text(4),
            "-" if label == baseline else runs.gain(label, baseline).text(2),
            "front" if label in best else "",
            runs.rate(label),
            str(runs.diverged(label) or "-"),
        )
        for label in sorted(runs.labels, key=lambda each: points[each][0])
    ]
    c = runs.configuration
    caption = (
        f"The cells that were kept: {c.task.name}, {c.workers} workers, {c.steps} steps of batch {c.batch_size}, "
        f"{len(c.seeds)} seeds, by uplink kilobits of a worker in the whole run; front: none is better in both"
    )
    columns = ("cell", "kilobits", f"final {c.task.quality}", f"better than {baseline} by", "", "rate", "diverged")
    return Table(caption, columns, tuple(lines))


def _chart(runs: StudyRuns, points: dict[str, tuple[float, float]], best: set[str]) -> Chart:
    groups: dict[str, list[tuple[float, float]]] = {}
    for label, point in sorted(points.items(), key=lambda each: each[1]):
        if label in best:
            groups.setdefault("Pareto front", []).append(point)
    for label, point in sorted(points.items(), key=lambda each: each[1]):
        groups.setdefault(read_label(label).op, []).append(point)
    curves = tuple(
        Curve(name, tuple(x / 1000 for x, _ in found), tuple(y for _, y in found), dots=name != "Pareto front")
        for name, found in groups.items()
    )
    quality = runs.configuration.task.quality
    return Chart(
        "Every trained cell of the grid", "uplink kilobits of a worker", f"final {quality}", curves, log_x=True
    )


def grid(study: Halving, forbidden: Sequence[Setting], nominal: int) -> Check:
    """All cells were tuned alike; says which were cut, which are forbidden and how many do not exist."""

    def check(evidence: Evidence) -> Finding:
        tried = study.tried(evidence.folder)
        kept = study.kept(evidence.folder)
        cut = [label for label in tried if label not in kept]
        missing = nominal - len(tried) - len(forbidden)
        ours = (
            f"{len(tried)} cells tuned on {len(study.grid)} rates for {study.tuning_steps} steps, {len(kept)} kept and "
            f"trained for {study.steps} steps on {study.seeds} seeds, {len(cut)} cut; of {nominal} {len(forbidden)} "
            f"are forbidden and {missing} do not exist."
        )
        lines = tuple((label, f"{tried[label][0] / 1000:.4g}", f"{tried[label][1]:.4g}") for label in cut)
        tables = (
            Table(
                "Cut: cells that were not trained on all seeds, by the Pareto fronts of uplink kilobits and training "
                "loss in the tuning run",
                ("cell", "kilobits", "loss at its best rate"),
                lines,
            ),
            Table(
                "Forbidden: unscaled with beta >= 1 and a memory, which could grow without bound; refused when made",
                ("cell",),
                tuple((setting.label,) for setting in forbidden),
            ),
            Table(
                "Do not exist",
                ("what", "why"),
                (
                    ("a memory of dense fp32", "nothing is lost, so it is always zero"),
                    ("fp32 or Sign unscaled", "1 / (1 + beta) belongs to rounding at random"),
                ),
            ),
        )
        return Finding(ours, Verdict.HOLDS, "Every cell is in one of the tables.", tuple(tried), tables)

    return check


def worth_of_a_bit(measurement: str, study: str, reasons: Reasons, least: float = 0.5) -> Check:
    """What is kept per bit, measured and by the closed form, ranks (k, s) as the loss at equal bits does."""

    def check(evidence: Evidence) -> Finding:
        rows, runs = evidence.rows(measurement), evidence.study(study)
        seeds = sorted({row["seed"] for row in rows})
        equal = {label: _losses_at_equal_bits(runs, label) for label in runs.labels}
        measures: dict[str, Callable[[Row], float]] = {
            "kept, measured": lambda row: row["kept"],
            "kept, closed form": lambda row: row["bound"],
            "kept per bit, measured": lambda row: row["kept"] / row["bits"],
            "kept per bit, closed form": lambda row: row["bound"] / row["bits"],
        }
        lines, found = [], {}
        for name, value in measures.items():
            at_bits, at_steps = [], []
            for number, seed in enumerate(seeds):
                mine = {row["label"]: value(row) for row in rows if row["seed"] == seed}
                order = [mine[label] for label in runs.labels]
                at_bits.append(_rank_correlation(order, [-equal[label][number] for label in runs.labels]))
                at_steps.append(
                    _rank_correlation(order, [-_last_loss(runs.of(label)[number]) for label in runs.labels])
                )
            found[name] = interval(at_bits)
            lines.append((name, found[name].text(2), interval(at_steps).text(2)))
        judged = [found["kept per bit, measured"], found["kept per bit, closed form"]]
        verdict = together([below(Interval(-each.mean, -each.high, -each.low, each.count), -least) for each in judged])
        ours = (
            f"Rank correlation with the loss at equal bits (1: the more kept per bit, the lower): measured "
            f"{judged[0].text(2)}, closed form {judged[1].text(2)}; a good guide is above {least:g}."
        )
        ranks = Table(
            "Rank correlation (Spearman) over all (k, s) with minus the training loss, mean over seeds",
            ("what ranks them", "loss at equal uplink bits", "loss at equal steps"),
            tuple(lines),
        )
        losses = {
            label: (interval(equal[label]).text(), interval([_last_loss(run) for run in runs.of(label)]).text())
            for label in runs.labels
        }
        table = Table(
            "Each (k, s): training loss, mean over seeds",
            ("method", "loss at equal uplink bits", "loss at equal steps"),
            tuple((label, *cells) for label, cells in losses.items()),
        )
        return Finding(ours, verdict, reasons.of(verdict), tuple(runs.labels), (ranks, table))

    return check


def heat_map(measurements: Mapping[str, str], reasons: Reasons) -> Check:
    """The closed form never exceeds what is kept of real updates; heat maps of what is kept per bit."""

    def check(evidence: Evidence) -> Finding:
        tables: list[Table] = []
        charts: list[HeatMap] = []
        excess: list[Interval] = []
        for name, title in measurements.items():
            rows = evidence.rows(name)
            seeds = sorted({row["seed"] for row in rows})
            for row in rows:
                if row["seed"] == seeds[0]:
                    same = [each["kept"] / each["bound"] for each in rows if each["label"] == row["label"]]
                    excess.append(interval(same))
            both = {"kept": "measured", "bound": "closed form k / (n (1 + beta))"}
            maps = [
                _heat(rows, f"{title}: share of |u|^2 kept per megabit, {how}", value) for value, how in both.items()
            ]
            charts += maps
            tables += [Table(each.caption, ("", *each.columns), each.lines()) for each in maps]
        verdict = together([below(Interval(-each.mean, -each.high, -each.low, each.count), -1.0) for each in excess])
        means = [each.mean for each in excess]
        ours = (
            f"Of real updates {min(means):.3g} to {max(means):.3g} times as much is kept as the closed form promises, "
            f"over {len(means)} pairs of (k, s) and task."
        )
        return Finding(ours, verdict, reasons.of(verdict), tuple(measurements), tuple(tables), tuple(charts))

    return check


def _heat(rows: Sequence[Row], caption: str, value: str) -> HeatMap:
    ks, levels = (sorted({row[name] for row in rows}) for name in ("k", "s"))
    values = tuple(
        tuple(
            1e6 * interval([row[value] / row["bits"] for row in rows if (row["k"], row["s"]) == (k, s)]).mean
            for s in levels
        )
        for k in ks
    )
    return HeatMap(caption, tuple(f"s = {s}" for s in levels), tuple(f"k = {k}" for k in ks), values)


def _losses_at_equal_bits(runs: StudyRuns, label: str) -> list[float]:
    """Each seed's loss at the last evaluation before it has sent what the most thrifty arm sends in all."""
    budget = min(run.evaluations[-1].payload_up_bytes for name in runs.labels for run in runs.of(name))
    return [_known(run, budget)[-1] for run in runs.of(label)]


def _known(run: Run, budget: float = inf) -> list[float]:
    """The losses of the shared model, the study's quality, while a run has sent no more than so many bytes."""
    found = (at for at in run.evaluations if at.payload_up_bytes <= budget)
    return [at.quality for at in found if at.quality is not None]


def _last_loss(run: Run) -> float:
    return _known(run)[-1]


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; 0 where one of them ranks nothing."""
    ranks = [_ranks(np.asarray(each, dtype=np.float64)) for each in (a, b)]
    if any(np.ptp(each) == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks
