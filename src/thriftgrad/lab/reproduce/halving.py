"""Successive halving: a grid too big to train is tuned whole, and the better half of it is trained on all seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path

from thriftgrad.lab import load as records
from thriftgrad.lab.reproduce.posed import LocalStudy
from thriftgrad.lab.reproduce.studies import Run, Study, tuned_rates


@dataclass(frozen=True)
class Halving(LocalStudy):
    """A study of which only some arms are trained, chosen by what tuning saw: bits sent and training loss.

    The arms are ranked by Pareto fronts of (uplink bits, tuned loss): those that no arm beats in both, then those that
    only these beat, and so on. Whole fronts are kept until a ``share`` of the arms is reached, and ``always`` whatever
    became of them. Jamieson and Talwalkar, Non-stochastic Best Arm Identification, 2016, arXiv:1502.07943, for one
    objective.
    """

    share: float = 0.5
    always: tuple[str, ...] = ()

    def jobs(self, folder: Path) -> list[Run]:
        """The runs of the arms that are kept."""
        kept = self.kept(folder)
        return Study.jobs(replace(self, arms=tuple(arm for arm in self.arms if arm.label in kept)), folder)

    def kept(self, folder: Path) -> set[str]:
        """The labels that are trained, once the tuning is done."""
        tried = self.tried(folder)
        fronts, kept = pareto_fronts(tried), set(self.always)
        while fronts and len(kept) < ceil(self.share * len(self.arms)):
            kept |= set(fronts.pop(0))
        return kept

    def tried(self, folder: Path) -> dict[str, tuple[float, float]]:
        """By label: uplink bits of a worker in the tuning run, and the loss at its best rate; infinite if all diverged.

        The bits of a run that went to its end, which do not depend on the rate.
        """
        tuning = self.tuning()
        configuration, runs = records.load(folder / tuning.folder)
        labels = {row.slug: row.label for row in configuration.methods}
        sent = {
            labels[run.method].rpartition(" rate ")[0]: 8 * run.evaluations[-1].payload_up_bytes
            for run in runs
            if run.status == "finished"
        }
        losses = {
            label: min((loss for loss in found.loss if loss is not None), default=inf)
            for label, found in tuned_rates(self, folder).items()
        }
        return {label: (sent.get(label, inf), loss) for label, loss in losses.items()}


def pareto_fronts(points: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """The names of points by fronts: nobody in a front is beaten by another of it or of a later one; less is better.

    >>> pareto_fronts({"a": (1, 5), "b": (2, 3), "c": (3, 4), "d": (4, 4)})
    [['a', 'b'], ['c'], ['d']]
    """
    left, fronts = dict(points), []
    while left:
        front = [name for name, point in left.items() if not any(_beats(other, point) for other in left.values())]
        fronts.append(front)
        left = {name: point for name, point in left.items() if name not in front}
    return fronts


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and a[0] <= b[0] and a[1] <= b[1]
