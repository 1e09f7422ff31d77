"""What a method's exchange is made of here: the very aggregation of each DDP bucket, for workers in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from thriftgrad.aggregate import Aggregator, TensorState
from thriftgrad.comm import Comm, Round, simulate
from thriftgrad.comm.requests import AllReduceRequest, ReplicatedRequest, Request
from thriftgrad.core import Key
from thriftgrad.core.vector import as_vector
from thriftgrad.lab.advise.clock import now
from thriftgrad.lab.advise.errors import AdviseError
from thriftgrad.lab.advise.gradients import Gradients
from thriftgrad.lab.advise.pieces import FEW, MANY, Pieces, Seen, fitted, slowest

MOST_STEPS, LONG_SECONDS = 5, 0.2
"""Exchanges that are timed at each number of workers, after a first one: so many, or two that take so long."""


@dataclass(frozen=True)
class Coded:
    """An exchange of a whole model, by DDP bucket; ``distortion``: |estimate - mean|^2 / |mean|^2."""

    buckets: tuple[Pieces, ...]
    distortion: float

    @property
    def seconds_of_a_payload(self) -> tuple[float, float]:
        """To encode and to decode it, where everybody's are gathered."""
        encode = sum(each.compute_seconds.at(FEW) for bucket in self.buckets for each in bucket.rounds)
        return encode, sum(bucket.decode_seconds.at(FEW) / FEW for bucket in self.buckets)


def code(aggregator: Aggregator[Any], gradients: Gradients, workers: int) -> Coded:
    """Measure an aggregator on the gradients of ``MANY`` workers.

    Distortion is that of a first step, without memories, among as many workers as there will be, ``MANY`` at most.
    Raises ``AdviseError`` where the aggregator does not suit these tensors.
    """
    seen = min(workers, MANY)
    states = _states(aggregator, gradients)
    buckets, errors, norms = [], 0.0, 0.0
    for at, names in enumerate(gradients.names):
        each = [batch[at] for batch in gradients.batches[:MANY]]
        state = tuple(states[name] for name in names)
        exchange = _Exchange(aggregator, each[:seen], state)
        exchange.step()
        means = [torch.stack(tensors).mean(0) for tensors in zip(*each[:seen], strict=True)]
        errors += sum(float((a - b).square().sum()) for a, b in zip(exchange.estimate, means, strict=True))
        norms += sum(float(mean.square().sum()) for mean in means)
        few, many = (_timed(_Exchange(aggregator, each[:world], state)) for world in (FEW, MANY))
        if few.kinds != many.kinds:
            raise AdviseError(
                f"advise: {aggregator!r} asks for other collectives among {MANY} workers than among {FEW}, so more "
                "cannot be foretold; leave it out."
            )
        buckets.append(fitted(few, many))
    return Coded(tuple(buckets), errors / norms if norms else 0.0)


def _states(aggregator: Aggregator[Any], gradients: Gradients) -> dict[str, TensorState]:
    """The states of all tensors, made together as ``attach`` does, by name."""
    try:
        return {state.spec.name: state for state in aggregator.init(gradients.specs())}
    except (TypeError, ValueError) as error:
        raise AdviseError(f"advise: {aggregator!r} does not suit this model ({str(error).rstrip('.')}).") from error


class _Exchange:
    """A DDP bucket's exchange among workers in this process, step by step."""

    def __init__(
        self, aggregator: Aggregator[Any], tensors: Sequence[Sequence[Tensor]], state: tuple[TensorState, ...]
    ) -> None:
        self._aggregator, self._tensors = aggregator, tensors
        self._into = [[torch.empty_like(x) for x in mine] for mine in tensors]
        self._states = [state] * len(tensors)
        self._steps = 0
        self.estimate: list[Tensor] = []

    def step(self) -> Seen:
        """Take one, and tell what the first worker did."""
        key, rounds = Key(0).fold(self._steps), list[Round]()
        workers = [
            _into(into, self._aggregator.aggregate(mine, state, key))
            for into, mine, state in zip(self._into, self._tensors, self._states, strict=True)
        ]
        watch = _Watch()
        workers[0] = watch.over(workers[0])
        results = simulate(workers, rounds.append)
        self.estimate = results[0][0]
        self._states = [state for _, state in results]
        self._steps += 1
        traffic = tuple(slowest(list(each.traffic.values())) for each in rounds if each.traffic)
        return Seen(tuple(watch.kinds), traffic, tuple(watch.seconds))


def _timed(exchange: _Exchange) -> Seen:
    """The shortest of several steps after a first, part by part, for what disturbs only adds."""
    exchange.step()
    steps: list[Seen] = []
    start = perf_counter()
    while len(steps) < 2 or (len(steps) < MOST_STEPS and perf_counter() < start + LONG_SECONDS):
        steps.append(exchange.step())
    ((kinds, _),) = Counter(each.kinds for each in steps).most_common(1)  # now and then some ask for more
    alike = [each for each in steps if each.kinds == kinds]
    seconds = zip(*(each.compute_seconds for each in alike), strict=True)
    return replace(alike[-1], compute_seconds=tuple(min(column) for column in seconds))


def _into(gradients: Sequence[Tensor], worker: Comm[Any]) -> Comm[Any]:
    """The same worker, whose estimates become the gradients, as ``attach`` has it."""
    means, state = yield from worker
    if as_vector(means) is None:  # else DDP takes them as they lie
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean)
    return means, state


class _Watch:
    """Which collectives a worker asks for, and the seconds it computes before each and after the last."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.seconds = [0.0]

    def over(self, worker: Comm[Any]) -> Comm[Any]:
        """The same worker, watched."""
        answer = None
        while True:
            try:
                request = self._timed(partial(worker.send, answer))
            except StopIteration as stop:
                return stop.value
            if isinstance(request, ReplicatedRequest):
                request = ReplicatedRequest(partial(self._timed, request.compute))
            elif request.is_collective:
                self.kinds.append(kind_of(request))
                self.seconds.append(0.0)
            answer = yield request

    def _timed(self, compute: Callable[[], Any]) -> Any:
        start = now()
        try:
            return compute()
        finally:
            self.seconds[-1] += now() - start


def kind_of(request: Request) -> str:
    """The name of a collective; of a sum also the type of its numbers, which tells what adding them takes."""
    name = type(request).__name__.removesuffix("Request")
    if isinstance(request, AllReduceRequest):
        return f"{name} {'bfloat16' if request.x.dtype.itemsize == 2 else 'float32'}"
    return name


def plain(gradients: Gradients) -> Coded:
    """DDP's own exchange: it sums the gradients where they lie."""
    buckets = []
    for tensors in gradients.batches[0]:
        request = AllReduceRequest(torch.cat([x.reshape(-1) for x in tensors]))
        few, many = (Seen((kind_of(request),), (request.traffic(0, n),), (0.0, 0.0)) for n in (FEW, MANY))
        buckets.append(fitted(few, many))
    return Coded(tuple(buckets), 0.0)
