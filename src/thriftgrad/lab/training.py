"""Training runs: one loop for simulated workers and real processes, for methods that train and methods that look on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import Ledger, LinkModel, Round
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.distortion import Measurement, levels_of, mean_gradient, measure
from thriftgrad.lab.load import Evaluation
from thriftgrad.recipes import sgd
from thriftgrad.tasks.task import Batch, Task
from thriftgrad.train.method import Method

Gradients = Sequence[Sequence[Tensor]]
States = tuple[TensorState, ...]

PLAIN = sgd()
"""Who trains the model while other methods look on: float32 gradients, momentum 0.9."""


@dataclass
class Meter:
    """Adds up bytes, codec seconds and modelled link seconds; an observer of the training's collectives."""

    links: dict[str, LinkModel]
    ledger: Ledger = field(default_factory=Ledger)
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    link_seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, finished: Round) -> None:
        """What a worker computes before a collective is encoding, what it computes after the last one is decoding."""
        self.ledger(finished)
        seconds = sum(finished.compute_seconds.values()) / len(finished.compute_seconds)
        if finished.kind == "end":
            self.decode_seconds += seconds
        else:
            self.encode_seconds += seconds
        for label, link in self.links.items():
            self.link_seconds[label] = self.link_seconds.get(label, 0.0) + link.seconds(finished)


@dataclass
class Exchange:
    """One aggregator along a trajectory: its states, one of each local worker, and its books."""

    aggregator: Aggregator[Any]
    cluster: Cluster
    states: list[States]
    meter: Meter
    measurement: Measurement = Measurement()
    told: tuple[int, float] = (0, 0.0)  # the step and the payload bytes of the last evaluation

    def estimate(self, gradients: Gradients, key: Key) -> list[Tensor]:
        """One step's estimate of the mean; the states advance and the books are kept."""
        comms = [self.aggregator.aggregate(g, state, key) for g, state in zip(gradients, self.states, strict=True)]
        results = self.cluster.exchange(comms, self.meter)
        self.states = [state for _, state in results]
        return results[0][0]

    def bits_per_coordinate(self, step: int) -> float | None:
        """What a worker has handed to collectives since the last call, per step and coordinate."""
        (before, told), sent = self.told, self.meter.ledger.payload_up_bytes
        self.told = step, sent
        elements = sum(state.spec.numel for state in self.states[0])
        return 8 * (sent - told) / (step - before) / elements if step > before else None


def train(
    task: Task,
    method: Method,
    cluster: Cluster,
    *,
    seed: int,
    learning_rate: float,
    steps: int,
    evaluate_every: int,
    links: dict[str, LinkModel],
) -> Iterator[Evaluation]:
    """Train for ``steps`` steps; yield an evaluation at step 0, every ``evaluate_every`` steps and at the end.

    All replicas are equal, so one model serves the local workers. Ends early, with a quality of None, once the loss or
    a parameter is no longer finite.
    """
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
    exchanges = [
        Exchange(each.aggregator, cluster, [each.aggregator.init(specs) for _ in cluster.ranks], Meter(links))
        for each in (lead, *onlookers)
    ]
    compute_seconds = 0.0
    losses: list[list[float]] = [[nan] for _ in cluster.ranks]  # of each local worker, since the last evaluation

    def evaluations(step: int, quality: float | None) -> tuple[Evaluation, ...]:
        reported = exchanges[1:] or exchanges
        return tuple(_evaluation(task, each, step, quality, losses, compute_seconds) for each in reported)

    yield evaluations(0, task.evaluate(model))
    losses = [[] for _ in cluster.ranks]
    for step in range(1, steps + 1):
        start = perf_counter()
        gradients = local_gradients(task, model, batches, losses)
        compute_seconds += (perf_counter() - start) / len(cluster.ranks)
        cluster.follow(model.buffers())

        key, measured = Key(seed).fold(step - 1), step % evaluate_every == 0 or step == steps
        before = [each.states for each in exchanges]
        estimates = [each.estimate(gradients, key) for each in exchanges]

        start = perf_counter()
        for parameter, gradient in zip(parameters.values(), estimates[0], strict=True):
            parameter.grad = gradient
        optimizer.step()
        compute_seconds += perf_counter() - start

        (loss,) = cluster.mean([sum(each[-1] for each in losses)])
        if not isfinite(loss) or not _finite(parameters.values()):
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


def _evaluation(
    task: Task, exchange: Exchange, step: int, quality: float | None, losses: list[list[float]], compute_seconds: float
) -> Evaluation:
    cluster, meter = exchange.cluster, exchange.meter
    loss_here = sum(sum(each) / len(each) for each in losses) / len(losses)
    loss, compute, encode, decode = cluster.mean(
        [loss_here, compute_seconds, meter.encode_seconds, meter.decode_seconds]
    )
    return Evaluation(
        step=step,
        samples=step * task.batch_size * cluster.world,
        loss=loss if isfinite(loss) else None,
        quality=quality if quality is not None and isfinite(quality) else None,
        payload_up_bytes=meter.ledger.payload_up_bytes,
        payload_down_bytes=meter.ledger.payload_down_bytes,
        up_bytes=meter.ledger.up_bytes,
        down_bytes=meter.ledger.down_bytes,
        compute_seconds=compute,
        encode_seconds=encode,
        decode_seconds=decode,
        link_seconds={label: meter.link_seconds.get(label, 0.0) for label in meter.links},
        **vars(exchange.measurement.distortion),
        **vars(exchange.measurement.symbols),
        bits_per_coordinate=exchange.bits_per_coordinate(step),
        levels=levels_of(exchange.states[0]),
    )


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


def _finite(parameters: Iterable[Tensor]) -> bool:
    return all(bool(p.isfinite().all()) for p in parameters)
