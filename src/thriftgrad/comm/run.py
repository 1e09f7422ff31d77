"""One rank of torch.distributed: the same requests, answered by a process group."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.futures import Future

from thriftgrad.comm.requests import (
    AllGatherRequest,
    AllReduceRequest,
    AllToAllRequest,
    BroadcastRequest,
    Comm,
    GatherRequest,
    Place,
    PlaceRequest,
    ReplicatedRequest,
    Request,
)
from thriftgrad.comm.rounds import Observer, Round

T = TypeVar("T")
Group = dist.ProcessGroup | None


class _Pending(NamedTuple):
    """A request on its way: what to wait for, and how to read the answer then."""

    works: list[dist.Work]
    answer: Callable[[], Any]


def run(worker: Comm[T], group: Group = None, observe: Observer | None = None) -> T:
    """Run this rank's worker to its end, blocking at each request; every rank of the group must run one.

    ``observe`` is told of each collective: everybody's bytes, this rank's seconds.
    """
    lane = Lane(group, observe)
    result = lane.submit(worker)
    lane.flush()
    return result.value()


class Lane:
    """Run many workers at once, one per DDP bucket, without blocking on their first requests.

    ``submit`` starts a worker, issues its first request and then takes every older worker one round further, in
    the order of submission; ``flush`` goes on, round by round, to the end. The order of collectives is thus a function
    of submission order alone and the same on every rank. (Chaining rounds with ``Future.then`` is not: callbacks run in
    completion order, and gloo then pairs one bucket's second round with another's.)

    Not for use by several threads at once. What a worker or its group raises comes out of ``submit`` or ``flush`` and
    ends the lane: the other ranks may be waiting for a request that will not come.
    """

    def __init__(self, group: Group = None, observe: Observer | None = None) -> None:
        self._group = group
        self._observe = observe
        self._jobs: list[_Job] = []

    def submit(self, worker: Comm[T]) -> Future[T]:
        """Start a worker; its result arrives in the future, at the latest with ``flush``."""
        job, older = _Job(worker, self._group, self._observe), self._jobs
        started = [] if job.advance() else [job]
        self._jobs = [each for each in older if not each.advance()] + started
        return job.result

    def flush(self) -> None:
        """Take every worker to its end."""
        while self._jobs:
            self._jobs = [job for job in self._jobs if not job.advance()]


class _Job:
    """One worker on its way through its requests."""

    def __init__(self, worker: Comm[Any], group: Group, observe: Observer | None) -> None:
        self.result: Future[Any] = Future()
        self._worker = worker
        self._group = group
        self._observe = observe
        self._pending = _Pending([], lambda: None)
        self._request: Request | None = None
        self._computed = 0.0
        self._issued = perf_counter()

    def advance(self) -> bool:
        """Wait for the answer, compute to the next collective and issue it; True at the worker's end."""
        for work in self._pending.works:
            work.wait()
        answer = self._pending.answer()
        if self._request is not None:
            self._report(perf_counter() - self._issued)
        start = perf_counter()
        while True:
            try:
                request = self._worker.send(answer)
            except StopIteration as stop:
                self._computed += perf_counter() - start
                self._request = None
                self._report(0.0)
                self.result.set_result(stop.value)
                return True
            if request.is_collective:
                break
            answer = _start(request, self._group).answer()
        self._computed += perf_counter() - start
        self._request, self._issued = request, perf_counter()
        self._pending = _start(request, self._group)
        return False

    def _report(self, waited_seconds: float) -> None:
        if self._observe is not None:
            rank, world = dist.get_rank(self._group), dist.get_world_size(self._group)
            request = self._request
            kind = type(request).__name__.removesuffix("Request") if request else "end"
            # Sizes are equal on all ranks, so each can write everybody's book.
            traffic = {each: request.traffic(each, world) for each in range(world)} if request else {}
            self._observe(Round(kind, world, traffic, {rank: self._computed}, waited_seconds))
        self._computed = 0.0


def _start(request: Request, group: Group) -> _Pending:
    """Issue one request; the answer may be read once every work is done."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    match request:
        case PlaceRequest():
            return _Pending([], lambda: Place(rank, world))
        case ReplicatedRequest(compute):
            return _Pending([], compute)
        case AllReduceRequest(x):
            total = x.clone(memory_format=torch.contiguous_format)  # memory is summed, so all ranks need one layout
            return _pending(dist.all_reduce(total, group=group, async_op=True), lambda: total)
        case AllGatherRequest(x):
            parts = [torch.empty_like(x) for _ in range(world)]
            return _pending(dist.all_gather(parts, x.contiguous(), group=group, async_op=True), lambda: parts)
        case AllToAllRequest(xs):
            mine = xs[rank]
            received = mine.new_empty(world * mine.numel())
            work = dist.all_to_all_single(
                received,
                torch.cat([x.reshape(-1) for x in xs]),
                [mine.numel()] * world,
                [x.numel() for x in xs],
                group=group,
                async_op=True,
            )
            return _pending(work, lambda: [part.view(mine.shape) for part in received.view(world, -1).unbind(0)])
        case GatherRequest(x, root):
            slots = [torch.empty_like(x) for _ in range(world)] if rank == root else None
            work = dist.gather(x.contiguous(), slots, group=group, group_dst=root, async_op=True)
            return _pending(work, lambda: slots)
        case BroadcastRequest(x, spec, root):
            buffer = x.clone(memory_format=torch.contiguous_format) if x is not None else spec.zeros()
            return _pending(dist.broadcast(buffer, group=group, group_src=root, async_op=True), lambda: buffer)
        case _:
            raise TypeError(f"run: no process group can answer {type(request).__name__}; yield a request of comm.")


def _pending(work: dist.Work | None, answer: Callable[[], Any]) -> _Pending:
    assert work is not None  # async_op=True
    return _Pending([work], answer)
