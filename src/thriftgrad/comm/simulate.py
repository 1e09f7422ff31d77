"""n workers in this process, in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, TypeVar

from thriftgrad.comm.requests import Comm, Request
from thriftgrad.comm.rounds import Observer, Round

T = TypeVar("T")


class CollectiveMismatchError(RuntimeError):
    """Workers disagree on the next collective; on a real group they would hang."""


def simulate(workers: Sequence[Comm[T]], observe: Observer | None = None) -> list[T]:
    """Run all workers to their end and return their results in rank order.

    Deterministic: sums are taken in rank order. ``observe`` is told of each collective. What workers compute alike is
    computed once, so their results may share memory: copy before you change one in place.

    Raises ``CollectiveMismatchError`` as soon as the workers' next requests differ.

    >>> from thriftgrad.comm import all_reduce
    >>> import torch
    >>> simulate([all_reduce(torch.tensor([1.0])), all_reduce(torch.tensor([2.0]))])
    [tensor([3.]), tensor([3.])]
    """
    world = len(workers)
    inbox: list[Any] = [None] * world
    computed = [0.0] * world
    while True:
        asked: dict[int, Request] = {}
        done: dict[int, T] = {}
        for rank, worker in enumerate(workers):
            start = perf_counter()
            try:
                asked[rank] = worker.send(inbox[rank])
            except StopIteration as stop:
                done[rank] = stop.value
            computed[rank] += perf_counter() - start
        if asked:
            _check(asked, world)
        request = asked.get(0)
        if request is None or request.is_collective:
            if observe is not None:
                observe(_round(asked, computed, world))
            computed = [0.0] * world
        if request is None:
            return [done[rank] for rank in range(world)]
        start = perf_counter()
        inbox = request.answer([asked[rank] for rank in range(world)])
        if not request.is_collective:
            computed = [seconds + perf_counter() - start for seconds in computed]


def _check(asked: dict[int, Request], world: int) -> None:
    kinds = {(type(request), request.signature()) for request in asked.values()}
    if len(asked) == world and len(kinds) == 1:
        return
    shown = "; ".join(f"worker {rank}: {type(r).__name__}{r.signature()}" for rank, r in sorted(asked.items()))
    finished = sorted(set(range(world)) - set(asked))
    raise CollectiveMismatchError(
        f"the workers disagree on the next collective ({shown}; finished: {finished or 'none'}); "
        "give every worker the same method and tensors of the same shapes."
    )


def _round(asked: dict[int, Request], computed: list[float], world: int) -> Round:
    """The finished collective, or what was computed after the last one."""
    kind = type(asked[0]).__name__.removesuffix("Request") if asked else "end"
    traffic = {rank: request.traffic(rank, world) for rank, request in asked.items()}
    return Round(kind, world, traffic, dict(enumerate(computed)))
