"""One training run: the same loop for simulated workers and for real processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from time import perf_counter

import torch
from torch import Tensor, nn

from thriftgrad.aggregate import TensorState
from thriftgrad.comm import Ledger, LinkModel, Observer, Round, all_reduce
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.load import Evaluation
from thriftgrad.tasks.task import Batch, Task
from thriftgrad.train.method import Method

States = tuple[TensorState, ...]


@dataclass
class Meter:
    """Adds up bytes, codec seconds and modelled link seconds; an observer of the training's collectives."""

    links: dict[str, LinkModel]
    ledger: Ledger = field(default_factory=Ledger)
    compute_seconds: float = 0.0
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
    model = task.build(seed)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    specs = [TensorSpec.of(p, name) for name, p in parameters.items()]
    optimizer = method.optimizer(parameters.values(), learning_rate)
    states = [method.aggregator.init(specs) for _ in cluster.ranks]
    batches = [task.batches(seed, rank, cluster.world) for rank in cluster.ranks]
    meter = Meter(links)
    losses: list[list[float]] = [[nan] for _ in cluster.ranks]  # of each local worker, since the last evaluation

    def evaluation(step: int, quality: float | None, error: float | None, variance: float | None) -> Evaluation:
        loss_here = sum(sum(each) / len(each) for each in losses) / len(losses)
        local = [loss_here, meter.compute_seconds, meter.encode_seconds, meter.decode_seconds]
        loss, compute, encode, decode = cluster.mean(local)
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
            link_seconds={label: meter.link_seconds.get(label, 0.0) for label in links},
            relative_error=error,
            variance=variance,
        )

    def aggregate(given: list[States], key: Key, observe: Observer | None) -> list[tuple[list[Tensor], States]]:
        comms = [method.aggregator.aggregate(g, state, key) for g, state in zip(gradients, given, strict=True)]
        return cluster.exchange(comms, observe)

    yield evaluation(0, task.evaluate(model), None, None)
    losses = [[] for _ in cluster.ranks]
    for step in range(1, steps + 1):
        start = perf_counter()
        gradients = local_gradients(task, model, batches, losses)
        meter.compute_seconds += (perf_counter() - start) / len(cluster.ranks)
        cluster.follow(model.buffers())

        key, measured = Key(seed).fold(step - 1), step % evaluate_every == 0 or step == steps
        if measured:
            again = aggregate(states, key.fold("again"), None)[0][0]
        results = aggregate(states, key, meter)
        estimate, states = results[0][0], [state for _, state in results]

        start = perf_counter()
        for parameter, gradient in zip(parameters.values(), estimate, strict=True):
            parameter.grad = gradient
        optimizer.step()
        meter.compute_seconds += perf_counter() - start

        (loss,) = cluster.mean([sum(each[-1] for each in losses)])
        if not isfinite(loss) or not _finite(parameters.values()):
            yield evaluation(step, None, None, None)
            return
        if measured:
            error, variance = distortion(cluster, gradients, estimate, again)
            yield evaluation(step, task.evaluate(model), error, variance)
            losses = [[] for _ in cluster.ranks]


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


def distortion(
    cluster: Cluster, gradients: Sequence[Sequence[Tensor]], estimate: list[Tensor], again: list[Tensor]
) -> tuple[float | None, float | None]:
    """The relative error |estimate - mean| / |mean| and the variance E|estimate - E estimate|^2 / |mean|^2.

    The variance comes from two estimates under independent keys: half their squared distance.
    """
    flat = [torch.cat([x.reshape(-1).to(torch.float64) for x in each]) for each in gradients]
    mean = cluster.exchange([all_reduce(each) for each in flat])[0] / cluster.world
    one, two = (torch.cat([x.reshape(-1).to(torch.float64) for x in each]) for each in (estimate, again))
    length = float(mean.norm())
    if not length > 0:
        return None, None
    error, variance = float((one - mean).norm()) / length, float((one - two).square().sum()) / 2 / length**2
    return (error, variance) if isfinite(error) and isfinite(variance) else (None, None)


def _finite(parameters: Iterable[Tensor]) -> bool:
    return all(bool(p.isfinite().all()) for p in parameters)
