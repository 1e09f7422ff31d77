"""Training runs of local methods: a model for each local worker, and the one they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite, nan
from time import perf_counter

import torch
from torch import Tensor, nn

from thriftgrad.comm import LinkModel
from thriftgrad.lab.books import Books, Meter, all_finite, evaluation
from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.distortion import Measurement, levels_of, mean_gradient, measure
from thriftgrad.lab.load import Evaluation, Levels
from thriftgrad.local import Caller, Hub, LocalMethod, Replica, learning_rates_of, tick
from thriftgrad.local.replica import Exchanged
from thriftgrad.tasks.task import Task
from thriftgrad.train.parameters import named


def train_local(
    task: Task,
    method: LocalMethod,
    cluster: Cluster,
    seed: int,
    learning_rate: float,
    steps: int,
    evaluate_every: int,
    links: dict[str, LinkModel],
) -> Iterator[Evaluation]:
    """Train for ``steps`` steps of every worker; yield an evaluation at step 0, every ``evaluate_every``, at the end.

    What is evaluated is the model that the workers share, as it was after the last sync, with worker 0's buffers.
    Distortion is measured on the drifts of a sync, where one falls on an evaluation. Ends early, with a quality of
    None, once a loss or a parameter is no longer finite.
    """
    models = [task.build(seed) for _ in cluster.ranks]
    optimizers = [method.optimizer(named(model).parameters.values(), learning_rate) for model in models]
    batches = [task.batches(seed, rank, cluster.world) for rank in cluster.ranks]
    shared = task.build(seed)
    elements = sum(p.numel() for p in named(shared).parameters.values())
    books = Books(cluster, elements, Meter(links))
    crew = (Calling if method.asynchronous else Gathered)(method, models, optimizers, books, seed)
    compute_seconds = 0.0
    losses: list[list[float]] = [[nan] for _ in models]  # of each local worker, since the last evaluation

    def record(step: int, quality: float | None) -> Evaluation:
        return evaluation(task, books, step, quality, losses, compute_seconds, crew.levels())

    yield record(0, task.evaluate(shared))
    losses = [[] for _ in models]
    cluster.barrier()  # or the next sync would wait for who evaluates last
    for step in range(1, steps + 1):
        start = perf_counter()
        for model, optimizer, source, told in zip(models, optimizers, batches, losses, strict=True):
            optimizer.zero_grad()
            loss = task.loss(model, next(source))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            told.append(float(loss.detach()))
        compute_seconds += (perf_counter() - start) / len(models)
        measured = step % evaluate_every == 0 or step == steps
        # A local model that is not finite would be brought back to the shared one by the sync, and go unseen.
        finite = all_finite(chain.from_iterable(named(model).parameters.values() for model in models))
        crew.after_step(step, measured)
        here = sum(each[-1] for each in losses) if finite else nan
        (there,) = cluster.mean([here])
        if not isfinite(there):
            yield record(step, None)
            return
        if measured:
            crew.show(shared)
            yield record(step, task.evaluate(shared))
            books.measurement = Measurement()  # until a sync falls on an evaluation again
            losses = [[] for _ in models]
            cluster.barrier()


class Crew(ABC):
    """The local workers of a local method, between their steps."""

    def __init__(
        self,
        method: LocalMethod,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        books: Books,
        seed: int,
    ) -> None:
        self.models, self.optimizers, self.books = models, optimizers, books
        self.found = [named(model) for model in models]
        self.begin(method, seed)

    @abstractmethod
    def begin(self, method: LocalMethod, seed: int) -> None:
        """Make what each worker remembers."""

    def rates(self) -> list[dict[str, float]]:
        """Each worker's learning rates, by parameter."""
        each = zip(self.optimizers, self.found, strict=True)
        return [learning_rates_of(optimizer, found.parameters) for optimizer, found in each]

    @abstractmethod
    def after_step(self, step: int, measured: bool) -> None:
        """Every worker has taken a step: synchronise those that are due; keep the books."""

    @abstractmethod
    def show(self, shared: nn.Module) -> None:
        """Write the model that the workers share, parameters and buffers, into ``shared``."""

    @abstractmethod
    def levels(self) -> Levels | None:
        """The levels that worker 0's drifts are quantised to, if they adapt."""


class Gathered(Crew):
    """Workers that synchronise all together."""

    def begin(self, method: LocalMethod, seed: int) -> None:
        self.replicas = [Replica(method, each.parameters, each.buffers, seed) for each in self.found]
        self.buffers = [buffer.clone() for buffer in self.models[0].buffers()]  # worker 0's after the last sync
        self.waiting: dict[int, list[Exchanged]] = {}

    def after_step(self, step: int, measured: bool) -> None:
        for replica in self.replicas:
            replica.advance()
        first = self.replicas[0]
        for part in first.starting():
            self.waiting[part] = self._exchange(part, measured and first.method.schedule.parts == 1)
        for part in first.landing():
            for replica, exchanged in zip(self.replicas, self.waiting.pop(part), strict=True):
                replica.land(part, exchanged)
            for kept, buffer in zip(self.buffers, self.models[0].buffers(), strict=True):
                kept.copy_(buffer)

    def _exchange(self, part: int, measured: bool) -> list[Exchanged]:
        cluster, rates, first = self.books.cluster, self.rates(), self.replicas[0]
        drifts = [replica.drifts(part) for replica in self.replicas] if measured else []
        states = [replica.parts[part].exchange for replica in self.replicas]
        exchanges = [replica.exchange(part, each) for replica, each in zip(self.replicas, rates, strict=True)]
        results = cluster.exchange(exchanges, self.books.meter)
        if measured and results[0].after is not None:
            mean, estimate = mean_gradient(cluster, drifts), results[0].mean
            self.books.measurement = measure(cluster, first.aggregator, drifts, states, first.key(), mean, estimate)
        return results

    def show(self, shared: nn.Module) -> None:
        load(shared, self.replicas[0].anchors(), self.buffers)
        self.books.cluster.follow(shared.buffers())

    def levels(self) -> Levels | None:
        return levels_of([state for part in self.replicas[0].parts for state in part.exchange])


class Calling(Crew):
    """Workers that come to a server, each at steps of its own on one clock; all in this process."""

    def begin(self, method: LocalMethod, seed: int) -> None:
        workers, first = len(self.models), self.found[0]
        self.hub = Hub(method, first.parameters, workers, seed, first.buffers)
        self.callers = [
            Caller(method, each.parameters, rank, workers, seed, each.buffers) for rank, each in enumerate(self.found)
        ]

    def after_step(self, step: int, measured: bool) -> None:
        for caller in self.callers:
            caller.advance()
        tick(self.hub, self.callers, [c.rank for c in self.callers if c.due()], self.rates(), self.books.meter)

    def show(self, shared: nn.Module) -> None:
        load(shared, self.hub.model(), list(self.models[0].buffers()))

    def levels(self) -> None:
        return None  # an AsyncServer takes fixed levels


def load(shared: nn.Module, anchors: Mapping[str, Tensor], buffers: Sequence[Tensor]) -> None:
    """Overwrite the parameters, by name, and the buffers, in order."""
    with torch.no_grad():
        for name, parameter in named(shared).parameters.items():
            parameter.copy_(anchors[name])
        for buffer, value in zip(shared.buffers(), buffers, strict=True):
            buffer.copy_(value)
