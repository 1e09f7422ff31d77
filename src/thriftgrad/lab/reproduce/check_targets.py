"""Checks of what it takes to reach a target: steps, bytes and seconds, and the cells that are not reached."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.load import Evaluation
from thriftgrad.lab.reproduce.bits import Count, Target, saving, spent, steps_spent, uplink
from thriftgrad.lab.reproduce.check_bits import progress_chart
from thriftgrad.lab.reproduce.claims import Check, Finding, Reasons, Table, Verdict, below, together
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval


def no_more_steps(
    study: str, base: str, labels: Sequence[str], targets: Sequence[Target], most: float, reasons: Reasons
) -> Check:
    """To each target, each label takes less than ``most`` times the steps of ``base``; with every arm in a table.

    A target that ``base`` reaches with every seed and a label with none speaks against the claim.
    """

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study)
        verdicts, told = [], []
        for label in labels:
            for target in targets:
                a, b = (spent(runs, each, target, steps_spent) for each in (label, base))
                times = saving(a, b)
                verdicts.append(_verdict(a, b, times, most))
                told.append(f"{label} to {target.name}: {_told(a, b, times)}")
        verdict = together(verdicts)
        ours = f"Steps over those of {base}: {'; '.join(told)}."
        charts = (progress_chart(runs),)
        return Finding(ours, verdict, reasons.of(verdict), (base, *labels), (table(runs, targets),), charts)

    return check


def _verdict(
    mine: Sequence[float | None], others: Sequence[float | None], times: Interval | None, most: float
) -> Verdict:
    if times is not None:
        return below(times, most)
    never, always = all(each is None for each in mine), all(each is not None for each in others)
    return Verdict.CONTRADICTED if never and always else Verdict.NOT_MEASURABLE


def _told(mine: Sequence[float | None], others: Sequence[float | None], times: Interval | None) -> str:
    if times is not None:
        return f"{times.text()} times"
    a, b = (sum(each is None for each in values) for values in (mine, others))
    return f"not reached by {a} of {len(mine)} seeds, and by {b} of the other's"


def table(runs: StudyRuns, targets: Sequence[Target]) -> Table:
    """Every arm, target by target: steps, kilobytes of a worker up, seconds on each modelled link."""
    links = [link.label for link in runs.configuration.links]
    counts: list[tuple[str, Count]] = [("steps", steps_spent), ("kB up", _kilobytes)]
    counts += [(f"s at {link}", _seconds(link)) for link in links]
    columns = [f"{name} to {target.name}" for target in targets for name, _ in counts]
    lines = [
        (
            label,
            *(_cell(spent(runs, label, target, count)) for target in targets for _, count in counts),
            interval(runs.finals(label)).text(4),
            runs.rate(label),
        )
        for label in runs.labels
    ]
    c = runs.configuration
    caption = (
        f"{c.task.name}, {c.workers} workers, {c.steps} steps of batch {c.batch_size}, {len(c.seeds)} seeds: what a "
        "worker spends until it first meets a target, mean over seeds; bytes as handed to collectives; seconds: one "
        "worker's compute and codec on one core of this machine, then the modelled link, none of it overlapped"
    )
    return Table(caption, ("method", *columns, f"final {c.task.quality}", "learning rate"), tuple(lines))


def _cell(values: Sequence[float | None]) -> str:
    met = [value for value in values if value is not None]
    if len(met) < len(values):
        return f"not reached ({len(values) - len(met)} of {len(values)})"
    return f"{interval(met).mean:.3g}" if interval(met).mean < 1000 else f"{interval(met).mean:,.0f}"


def _kilobytes(at: Evaluation, workers: int) -> float:
    return uplink(at, workers) / 8000


def _seconds(link: str) -> Count:
    return lambda at, workers: at.seconds(link)
