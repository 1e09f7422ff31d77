"""Where a comparison's workers live: all in this process, or one on each rank of a process group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from thriftgrad.comm import Comm, Observer, Round, Timeline, run, simulate

T = TypeVar("T")


class Cluster(ABC):
    """The workers of a training run, of which ``ranks`` live in this process."""

    world: int
    ranks: Sequence[int]

    @abstractmethod
    def exchange(self, comms: Sequence[Comm[T]], observe: Observer | None = None) -> list[T]:
        """Run one communication of each local worker and return their results."""

    @abstractmethod
    def mean(self, numbers: Sequence[float]) -> list[float]:
        """The mean over processes of each number."""

    @abstractmethod
    def latest(self, moments: Sequence[float]) -> list[float]:
        """The greatest over processes of each number."""

    @abstractmethod
    def follow(self, buffers: Iterable[Tensor]) -> None:
        """Overwrite each buffer with that of worker 0."""

    @abstractmethod
    def barrier(self) -> None:
        """Return once every process has come here."""

    @property
    def writes(self) -> bool:
        """Whether this process keeps the records."""
        return 0 in self.ranks


class Simulated(Cluster):
    """Every worker in this process, in lockstep."""

    def __init__(self, world: int) -> None:
        self.world, self.ranks = world, range(world)

    def exchange(self, comms: Sequence[Comm[T]], observe: Observer | None = None) -> list[T]:
        return simulate(comms, observe)

    def mean(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def latest(self, moments: Sequence[float]) -> list[float]:
        return list(moments)

    def follow(self, buffers: Iterable[Tensor]) -> None:
        """Nothing to do: worker 0's are here."""

    def barrier(self) -> None:
        """Nothing to do: there is one process."""


class Processes(Cluster):
    """This rank's worker; the others are processes of the default process group.

    ``timeline``, if there is one, is told what this rank did when; nothing is in flight while a worker computes.
    """

    def __init__(self) -> None:
        self.world, self.ranks = dist.get_world_size(), (dist.get_rank(),)
        self.timeline: Timeline | None = None
        self._since = perf_counter()  # the worker computes

    def exchange(self, comms: Sequence[Comm[T]], observe: Observer | None = None) -> list[T]:
        (comm,) = comms
        timeline, asked = self.timeline, perf_counter()
        if timeline is None or observe is None:  # or it is no step of the training
            result = run(comm, observe=observe)
        else:
            result = run(comm, observe=partial(_tell, (observe, timeline)))
            timeline.end_step(self._since, asked, perf_counter(), hidden_seconds=0.0)
        self._since = perf_counter()
        return [result]

    def mean(self, numbers: Sequence[float]) -> list[float]:
        # Summed in the order of ranks, as a simulation does, for the same bits.
        return [sum(column) / self.world for column in self._everybodys(numbers)]

    def latest(self, moments: Sequence[float]) -> list[float]:
        return [max(column) for column in self._everybodys(moments)]

    def _everybodys(self, numbers: Sequence[float]) -> list[tuple[float, ...]]:
        """For each number, that of every process."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        gathered = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(gathered, mine)
        return list(zip(*(each.tolist() for each in gathered), strict=True))

    def follow(self, buffers: Iterable[Tensor]) -> None:
        for buffer in buffers:
            dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        dist.barrier()
        self._since = perf_counter()


def _tell(observers: Sequence[Observer], finished: Round) -> None:
    for each in observers:
        each(finished)
