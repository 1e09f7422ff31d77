"""Training runs: a study is a comparison folder, its learning rates tuned on one grid at one budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from thriftgrad.lab import load as records
from thriftgrad.lab.cluster import Simulated
from thriftgrad.lab.comparison import Comparison, Request, prepare, resolve
from thriftgrad.lab.reproduce.calibration import calibrated
from thriftgrad.lab.reproduce.pool import Job
from thriftgrad.lab.runner import TUNING_SEED, execute, is_finished
from thriftgrad.local import LocalMethod
from thriftgrad.tasks.task import Task
from thriftgrad.train.method import Method


@dataclass(frozen=True, repr=False)
class AdamMethod(Method):
    """A method whose estimates go to Adam (Kingma and Ba, 2015, arXiv:1412.6980) with its usual constants."""

    momentum_place: str = "Adam, after aggregation"

    @property
    def momentum_described(self) -> str:
        return self.momentum_place

    def optimizer(self, parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate)


@dataclass(frozen=True)
class Arm:
    """One method of a study."""

    label: str
    method: Method | LocalMethod

    @property
    def slug(self) -> str:
        """Its file name."""
        return "".join(c if c.isalnum() or c in ".+" else "-" for c in self.label.lower()).strip("-")


@dataclass(frozen=True)
class Study:
    """Methods trained under equal conditions; ``studies/NAME`` is a folder for ``thriftgrad report``.

    ``grid``: the learning rates tried for each arm, in units of the task's; the one with the lowest training loss over
    the last half of ``tuning_steps`` under a seed that no run has is taken. ``step_seconds``: about what a step of one
    worker costs. ``calibration``: the training samples that batch norm's averages are taken over for an evaluation; 0:
    the running averages stay, as in tuning, where quality is not looked at.
    """

    name: str
    task: str
    arms: tuple[Arm, ...]
    seeds: int
    steps: int
    step_seconds: float
    grid: tuple[float, ...]
    tuning_steps: int
    workers: int = 4
    batch_size: int | None = None
    links: tuple[str, ...] = ("1gbit,0.1ms",)
    evaluations: int = 10
    calibration: int = 256

    @property
    def folder(self) -> str:
        """Where its records go, from the reproduction's folder."""
        return f"studies/{self.name}"

    def comparison(self, rates: Mapping[str, float]) -> Comparison:
        """Everything that follows from it, with these learning rates by label."""
        base = _resolved(self.task, self.workers, self.seeds, self.steps, self.links)
        rows = tuple(
            records.Method(
                label=arm.label,
                slug=arm.slug,
                expression=repr(arm.method),
                paper=arm.method.paper or None,
                momentum=arm.method.momentum_described,
                learning_rate=rates[arm.label],
                tuning=None,
            )
            for arm in self.arms
        )
        size = self.batch_size or base.configuration.batch_size
        every = max(1, self.steps // self.evaluations)
        task = self.posed(calibrated(base.task, self.calibration) if self.calibration else base.task)
        told = replace(
            base.configuration.task,
            description=task.description,
            quality=task.quality,
            higher_is_better=task.higher_is_better,
        )
        return Comparison(
            replace(base.request, methods=tuple(arm.label for arm in self.arms)),
            replace(base.configuration, task=told, methods=rows, batch_size=size, evaluate_every=every),
            replace(task, batch_size=size),
            {arm.slug: arm.method for arm in self.arms},
            base.links,
        )

    def posed(self, task: Task) -> Task:
        """The task as this study poses it; its description says what is changed."""
        return task

    def late_loss(self, run: records.Run) -> float | None:
        """What tuning minimises: the mean training loss over the last half of the evaluations; None if it diverged."""
        return late([at.loss for at in run.evaluations], run)

    def tuning(self) -> Study:
        """The study that tries every rate of the grid with every arm: an arm of it for each pair."""
        arms = tuple(replace(arm, label=_tried(arm.label, factor)) for arm in self.arms for factor in self.grid)
        name = f"{self.name}/tuning"
        return replace(self, name=name, arms=arms, seeds=1, steps=self.tuning_steps, evaluations=4, calibration=0)

    def tuning_jobs(self, folder: Path) -> list[Run]:
        """A run for each arm and rate; its folder is made."""
        tuning = self.tuning()
        rates = {_tried(arm.label, factor): self._rate(factor) for arm in self.arms for factor in self.grid}
        return tuning._prepared(folder, rates, {}, (TUNING_SEED,))

    def jobs(self, folder: Path) -> list[Run]:
        """A run for each arm and seed, once its tuning is done; its folder is made."""
        tuned = tuned_rates(self, folder)
        rates = {label: tuning.grid[_best(tuning)] for label, tuning in tuned.items()}
        return self._prepared(folder, rates, tuned, tuple(range(self.seeds)))

    def _rate(self, factor: float) -> float:
        learning_rate = _resolved(self.task, self.workers, self.seeds, self.steps, self.links).task.learning_rate
        return float(f"{learning_rate * factor:.3g}")

    def _prepared(
        self,
        folder: Path,
        rates: Mapping[str, float],
        tuned: Mapping[str, records.Tuning],
        seeds: tuple[int, ...],
    ) -> list[Run]:
        comparison = self.comparison(rates)
        rows = tuple(replace(row, tuning=tuned.get(row.label)) for row in comparison.configuration.methods)
        configuration = replace(comparison.configuration, methods=rows, seeds=seeds)
        prepare(replace(comparison, configuration=configuration), folder / self.folder)
        return [Run(self, arm.slug, seed, rates[arm.label]) for seed in seeds for arm in self.arms]


@dataclass(frozen=True)
class Run(Job):
    """One training run of a study."""

    study: Study
    slug: str
    seed: int
    rate: float

    @property
    def label(self) -> str:
        name = next(arm.label for arm in self.study.arms if arm.slug == self.slug)
        return f"{self.study.name}, seed {self.seed}: {name}"

    @property
    def seconds(self) -> float:  # type: ignore[override]  # follows from the study
        """Steps times workers times what a step of one worker costs."""
        return self.study.steps * self.study.workers * self.study.step_seconds

    def done(self, folder: Path) -> bool:
        return is_finished(folder / self.study.folder / "runs" / f"{self.slug}-seed{self.seed}.jsonl")

    def perform(self, folder: Path) -> None:
        arms = tuple(arm for arm in self.study.arms if arm.slug == self.slug)
        whole = replace(self.study, arms=arms).comparison({arms[0].label: self.rate})
        alone = replace(whole, configuration=replace(whole.configuration, seeds=(self.seed,)))
        execute(alone, folder / self.study.folder, Simulated(self.study.workers), lambda _: None)


def tuned_rates(study: Study, folder: Path) -> dict[str, records.Tuning]:
    """What tuning found, by label; the training loss alone decides."""
    tuning = study.tuning()
    configuration, runs = records.load(folder / tuning.folder)
    losses = {run.method: tuning.late_loss(run) for run in runs}
    slugs = {row.label: row.slug for row in configuration.methods}
    found = {}
    for arm in study.arms:
        tried = tuple(losses[slugs[_tried(arm.label, factor)]] for factor in study.grid)
        grid = tuple(study._rate(factor) for factor in study.grid)
        best = min(range(len(grid)), key=lambda i: inf if tried[i] is None else tried[i])  # type: ignore[arg-type,return-value]
        found[arm.label] = records.Tuning(grid, tried, study.tuning_steps, TUNING_SEED, best in (0, len(grid) - 1))
    return found


def late(values: Sequence[float | None], run: records.Run) -> float | None:
    """The mean over the last half of what there is; None if the run diverged."""
    found = [value for value in values if value is not None]
    return None if run.status != "finished" or not found else fmean(found[len(found) // 2 :])


def _best(tuning: records.Tuning) -> int:
    tried: Sequence[float] = [inf if loss is None else loss for loss in tuning.loss]
    return tried.index(min(tried))


def _tried(label: str, factor: float) -> str:
    return f"{label} rate {factor:g}"


@cache
def _resolved(task: str, workers: int, seeds: int, steps: int, links: tuple[str, ...]) -> Comparison:
    """The task, the machine and the links, as ``thriftgrad compare`` resolves them."""
    return resolve(Request(("sgd",), task, workers, seeds, steps, links, None, False, False, None))
