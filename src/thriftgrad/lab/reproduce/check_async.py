"""Checks of workers that come when they like against workers in step."""

from __future__ import annotations

from collections.abc import Sequence

from thriftgrad.lab.load import Evaluation
from thriftgrad.lab.reproduce.claims import Chart, Check, Curve, Finding, Reasons, Table, below, together
from thriftgrad.lab.reproduce.evidence import Evidence, StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval
from thriftgrad.lab.reproduce.studies import Arm, Study
from thriftgrad.local import LocalMethod


def no_worse(study: Study, in_step: str, others: Sequence[str], margin: float, reasons: Reasons) -> Check:
    """Asynchronous arms end no worse than the synchronous one by more than a margin; loss by steps, uploads, bits."""

    def check(evidence: Evidence) -> Finding:
        runs = evidence.study(study.name)
        gains = {label: runs.gain(label, in_step) for label in others}
        verdict = together([below(Interval(-g.mean, -g.high, -g.low, g.count), margin) for g in gains.values()])
        listed = "; ".join(
            f"{label.rpartition('async')[2].lstrip(', ') or 'fixed gaps'} {gain.text(2)}"
            for label, gain in gains.items()
        )
        ours = f"Final {runs.configuration.task.quality} better than in step by: {listed}; the margin is {margin:g}."
        charts = (_loss(runs, "steps"), _loss(runs, "uplink kilobits of a worker"))
        return Finding(ours, verdict, reasons.of(verdict), (in_step, *others), (_table(study, runs),), charts)

    return check


def uploads(arm: Arm, workers: int, steps: int) -> float:
    """How often a worker of it uploads in so many steps, mean over workers."""
    assert isinstance(arm.method, LocalMethod)
    schedule = arm.method.schedule
    return sum(schedule.due(step, rank) for step in range(1, steps + 1) for rank in range(workers)) / workers


def _table(study: Study, runs: StudyRuns) -> Table:
    lines = []
    for arm in study.arms:
        found = [run for run in runs.of(arm.label) if run.status == "finished"]
        at = [[each[len(each) * part // 4 - 1] for each in (run.evaluations for run in found)] for part in (1, 2, 4)]
        lines.append(
            (
                arm.label,
                f"{uploads(arm, study.workers, study.steps):.1f}",
                f"{8 * interval([each.payload_up_bytes for each in at[-1]]).mean / 1000:.4g}",
                f"{8 * interval([each.payload_down_bytes for each in at[-1]]).mean / 1000:.4g}",
                *(interval([each.quality for each in part if each.quality is not None]).text() for part in at),
                interval(runs.finals(arm.label)).text(4),
                runs.rate(arm.label),
            )
        )
    c = runs.configuration
    caption = (
        f"{c.task.description}; {c.workers} workers, {c.steps} steps of batch {c.batch_size}, {len(c.seeds)} seeds"
    )
    columns = ("method", "uploads", "kilobits up", "down", "loss at a quarter", "at half", "at the end")
    return Table(caption, (*columns, f"final {c.task.quality}", "learning rate"), tuple(lines))


def _loss(runs: StudyRuns, against: str) -> Chart:
    def x(at: Evaluation) -> float:
        return float(at.step) if against == "steps" else 8 * at.payload_up_bytes / 1000

    curves = []
    for label in runs.labels:
        found = [[at for at in run.evaluations if at.quality is not None] for run in runs.of(label)]
        columns = list(zip(*found, strict=False))
        losses = [interval([at.quality for at in column if at.quality is not None]).mean for column in columns]
        curves.append(Curve(label, tuple(x(column[0]) for column in columns), tuple(losses)))
    c = runs.configuration
    return Chart(f"{c.task.description}: training loss against {against}", against, "loss", tuple(curves), log_y=True)
