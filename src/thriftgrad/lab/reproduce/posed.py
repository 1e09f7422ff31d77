"""Studies that pose their task in another way: another quality, other shards, another start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import nn

from thriftgrad.lab import load as records
from thriftgrad.lab.reproduce.studies import Study, late
from thriftgrad.tasks.task import Batch, Task, evaluation, shuffled, spread

SAMPLES = 256
"""Training samples, spread evenly over all, on which a shared model's loss is taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSorted(Task):
    """A task whose workers own contiguous runs of the samples sorted by label: each sees a few classes only."""

    def batches(self, seed: int, rank: int, world: int) -> Iterator[Batch]:
        """As ``Task.batches``, of a shard that no seed changes; samples with one label keep their order."""
        super().batches(seed, rank, world)  # its checks
        labels = self.draw(np.arange(self.samples), np.random.default_rng(0))[1]
        shard = np.array_split(np.argsort(labels.numpy(), kind="stable"), world)[rank]
        order, augmentation = np.random.default_rng([seed, rank]).spawn(2)
        return (self.draw(indices, augmentation) for indices in shuffled(shard, self.batch_size, order))


def label_sorted(task: Task) -> LabelSorted:
    """The task with its samples dealt out by label."""
    same = {field.name: getattr(task, field.name) for field in fields(task)}
    return LabelSorted(**same | {"description": f"{task.description}; label-sorted, a contiguous run for each worker"})


def started_elsewhere(task: Task, deviation: float) -> Task:
    """The task from parameters that are drawn from N(0, deviation**2) for each seed, on all workers the same."""

    def build(seed: int) -> nn.Module:
        model, generator = task.build(seed), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, deviation, generator=generator)
        return model

    return replace(task, build=build, description=f"{task.description}; started from N(0, {deviation:g}^2)")


def on_training_loss(task: Task) -> Task:
    """The task whose quality is the loss of the model that all share, on a fixed part of the training samples.

    Where workers train on their own, the loss of their minibatches is that of their own models, between two syncs.
    """
    batch = task.draw(spread(task.samples, SAMPLES), np.random.default_rng(0))

    def evaluate(model: nn.Module) -> float:
        buffers = [buffer.clone() for buffer in model.buffers()]
        with evaluation(model):
            model.train()  # with the statistics of this very batch: the running ones lag behind
            loss = float(task.loss(model, batch))
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        return loss

    return replace(task, quality="training loss", higher_is_better=False, evaluate=evaluate)


@dataclass(frozen=True)
class LocalStudy(Study):
    """A study of methods whose workers train on their own; its rates are tuned by the loss of the model they share.

    ``sorted_labels``: the samples are dealt out by label. ``deviation``: of the start, 0 for the task's own.
    ``on_loss``: its quality is the training loss.
    """

    sorted_labels: bool = False
    deviation: float = 0.0
    on_loss: bool = False

    def posed(self, task: Task) -> Task:
        task = on_training_loss(task) if self.on_loss else task
        task = label_sorted(task) if self.sorted_labels else task
        return started_elsewhere(task, self.deviation) if self.deviation else task

    def tuning(self) -> Study:
        tuning = super().tuning()
        assert isinstance(tuning, LocalStudy)  # a study of the same kind
        return replace(tuning, on_loss=True)

    def late_loss(self, run: records.Run) -> float | None:
        return late([at.quality for at in run.evaluations if at.step], run) if self.on_loss else super().late_loss(run)
