"""Training runs: one loop for simulated workers and real processes, for methods that train and methods that look on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import LinkModel
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.books import Books, Meter, all_finite, evaluation
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.distortion import Measurement, levels_of, mean_gradient, measure
from thriftgrad.lab.load import Evaluation
from thriftgrad.lab.local_training import train_local
from thriftgrad.local import LocalMethod
from thriftgrad.recipes import sgd
from thriftgrad.tasks.task import Batch, Task
from thriftgrad.train.method import Method

Gradients = Sequence[Sequence[Tensor]]
States = tuple[TensorState, ...]

PLAIN = sgd()
"""Who trains the model while other methods look on: float32 gradients, momentum 0.9."""


@dataclass(kw_only=True)
class Exchange(Books):
    """One aggregator along a trajectory: its states, one of each local worker, and its books."""

    aggregator: Aggregator[Any]
    states: list[States]

    def estimate(self, gradients: Gradients, key: Key) -> list[Tensor]:
        """One step's estimate of the mean; the states advance and the books are kept."""
        comms = [self.aggregator.aggregate(g, state, key) for g, state in zip(gradients, self.states, strict=True)]
        results = self.cluster.exchange(comms, self.meter)
        self.states = [state for _, state in results]
        return results[0][0]


def train(
    task: Task,
    method: Method | LocalMethod,
    cluster: Cluster,
    *,
    seed: int,
    learning_rate: float,
    steps: int,
    evaluate_every: int,
    links: dict[str, LinkModel],
) -> Iterator[Evaluation]:
    """Train for ``steps`` steps; yield an evaluation at step 0, every ``evaluate_every`` steps and at the end.

    Where gradients are exchanged all replicas are equal, and one model serves the local workers. Ends early, with a
    quality of None, once the loss or a parameter is no longer finite.
    """
    if isinstance(method, LocalMethod):
        settings = (seed, learning_rate, steps, evaluate_every)
        yield from train_local(task, method, cluster, *settings, links=links)
        return
    for (at,) in _trajectory(task, method, (), cluster, seed, learning_rate, steps, evaluate_every, links):
        yield at


def train_plain(
    task: Task,
    methods: Sequence[Method],
    cluster: Cluster,
    *,
    seed: int,
    learning_rate: float,
    steps: int,
    evaluate_every: int,
    links: dict[str, LinkModel],
) -> Iterator[tuple[Evaluation, ...]]:
    """Train one model by ``PLAIN`` while every method exchanges the same gradients and nobody applies the result.

    Yields as ``train`` does, an evaluation for each method: quality, loss and compute seconds are plain SGD's,
    everything else is the method's own. Memories and levels advance as if the estimates had been applied.
    """
    return _trajectory(task, PLAIN, methods, cluster, seed, learning_rate, steps, evaluate_every, links)


def _trajectory(
    task: Task,
    lead: Method,
    onlookers: Sequence[Method],
    cluster: Cluster,
    seed: int,
    learning_rate: float,
    steps: int,
    evaluate_every: int,
    links: dict[str, LinkModel],
) -> Iterator[tuple[Evaluation, ...]]:
    """Train by ``lead``; evaluations of the onlookers, or of the lead if there are none."""
    model = task.build(seed)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    specs = [TensorSpec.of(p, name) for name, p in parameters.items()]
    optimizer = lead.optimizer(parameters.values(), learning_rate)
    batches = [task.batches(seed, rank, cluster.world) for rank in cluster.ranks]
    elements = sum(spec.numel for spec in specs)
    exchanges = [
        Exchange(
            cluster,
            elements,
            Meter(links),
            aggregator=each.aggregator,
            states=[each.aggregator.init(specs) for _ in cluster.ranks],
        )
        for each in (lead, *onlookers)
    ]
    compute_seconds = 0.0
    losses: list[list[float]] = [[nan] for _ in cluster.ranks]  # of each local worker, since the last evaluation

    def evaluations(step: int, quality: float | None) -> tuple[Evaluation, ...]:
        reported = exchanges[1:] or exchanges
        return tuple(
            evaluation(task, each, step, quality, losses, compute_seconds, levels_of(each.states[0]))
            for each in reported
        )

    yield evaluations(0, task.evaluate(model))
    losses = [[] for _ in cluster.ranks]
    cluster.barrier()  # or the next exchange would wait for who evaluates last
    for step in range(1, steps + 1):
        start = perf_counter()
        gradients = local_gradients(task, model, batches, losses)
        compute_seconds += (perf_counter() - start) / len(cluster.ranks)

        key, measured = Key(seed).fold(step - 1), step % evaluate_every == 0 or step == steps
        before = [each.states for each in exchanges]
        estimates = [each.estimate(gradients, key) for each in exchanges]

        start = perf_counter()
        for parameter, gradient in zip(parameters.values(), estimates[0], strict=True):
            parameter.grad = gradient
        optimizer.step()
        compute_seconds += perf_counter() - start

        cluster.follow(model.buffers())
        (loss,) = cluster.mean([sum(each[-1] for each in losses)])
        if not isfinite(loss) or not all_finite(parameters.values()):
            for each in exchanges:
                each.measurement = Measurement()
            yield evaluations(step, None)
            return
        if measured:
            mean, looked = mean_gradient(cluster, gradients), slice(1 if onlookers else 0, None)
            for each, states, estimate in zip(exchanges[looked], before[looked], estimates[looked], strict=True):
                each.measurement = measure(cluster, each.aggregator, gradients, states, key, mean, estimate)
            yield evaluations(step, task.evaluate(model))
            losses = [[] for _ in cluster.ranks]
            cluster.barrier()


def local_gradients(
    task: Task, model: nn.Module, batches: Sequence[Iterator[Batch]], losses: Sequence[list[float]]
) -> list[list[Tensor]]:
    """Each local worker's gradients; appends each one's loss to its list.

    Every worker's forward pass starts from the same buffers (such as BatchNorm's averages), and those of the first
    are kept: what DDP does with ``broadcast_buffers``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    first: list[Tensor] = []
    gradients = []
    for worker, source in enumerate(batches):
        _restore(buffers, before)
        loss = task.loss(model, next(source))
        gradients.append(list(torch.autograd.grad(loss, parameters)))
        losses[worker].append(float(loss.detach()))
        first = first or [buffer.clone() for buffer in buffers]
    _restore(buffers, first)
    return gradients


def _restore(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
