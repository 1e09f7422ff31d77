"""Which DDP bucket size and how many kernel threads suit a model, a method and a machine: tried, for a few steps."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import kernels
from thriftgrad.aggregate import Aggregator
from thriftgrad.kernels.cpu.threads import threads_set
from thriftgrad.train.ddp import attach
from thriftgrad.train.method import Method
from thriftgrad.train.state import agree

BUCKET_CAPS_MB = (4, 12, 25)
WARM_UP_STEPS = 2
"""DDP regroups its buckets after the first step; kernels are compiled in it."""


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and what it was chosen from: seconds of a step by bucket size and number of threads.

    ``bucket_cap_mb`` is for ``DistributedDataParallel``, ``threads`` for ``thriftgrad.kernels.set_threads``.
    """

    bucket_cap_mb: float
    threads: int
    seconds: Mapping[tuple[float, int], float]


def tune(
    module: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    method: Method | Aggregator[Any],
    *,
    bucket_caps_mb: Sequence[float] = BUCKET_CAPS_MB,
    threads: Sequence[int] | None = None,
    steps: int = 5,
    ddp: Mapping[str, Any] | None = None,
) -> Tuning:
    """Time forward and backward with every bucket size and number of threads, and choose the quickest.

    ``loss(model)`` is one step's loss of a model that stands for ``module``, on a batch of this rank's. ``threads``:
    one and as many as the rank with the fewest has cores, if None. ``ddp``: further options of
    ``DistributedDataParallel``. Seconds are medians over ``steps`` of the slowest rank's, after two more steps, the
    same numbers on every rank; every rank calls it alike. Only copies of the module train, so it is left as it is, and
    so are its optimiser and torch's random state.

    Raises ``TypeError`` for a module that is DDP already, ``ValueError`` for nothing to choose from, a size or count
    that is not positive, ranks that were told to try different ones, or whatever ``attach`` does not take.

    >>> import torch, torch.distributed as dist, thriftgrad
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun gives the real ones
    >>> module, x = torch.nn.Linear(4, 2), torch.ones(1, 4)
    >>> tuning = thriftgrad.tune(module, lambda model: model(x).sum(), thriftgrad.recipes.qsgd(), threads=[1])
    >>> list(tuning.seconds)
    [(4, 1), (12, 1), (25, 1)]
    >>> model = torch.nn.parallel.DistributedDataParallel(module, bucket_cap_mb=tuning.bucket_cap_mb)
    >>> dist.destroy_process_group()
    """
    group = (ddp or {}).get("process_group") or dist.group.WORLD
    tried = {"bucket_caps_mb": list(bucket_caps_mb), "threads": None if threads is None else list(threads)}
    agree(group, "tune", tried | {"steps": steps})  # before anything that one rank alone could refuse
    counts = tuple(threads) if threads is not None else tuple(dict.fromkeys((1, _fewest_cores(group))))
    _check(module, bucket_caps_mb, counts, steps)
    before = threads_set()
    seconds: dict[tuple[float, int], float] = {}
    try:
        with torch.random.fork_rng():
            for cap in bucket_caps_mb:
                model = DistributedDataParallel(copy.deepcopy(module), bucket_cap_mb=cap, **(ddp or {}))
                with attach(model, method):
                    for count in counts:
                        kernels.set_threads(count)
                        seconds[cap, count] = _step_seconds(model, loss, steps)
                del model
                gc.collect()  # it is in a cycle, and as large as the module
    finally:
        kernels.set_threads(before)
    cap, count = min(seconds, key=seconds.__getitem__)
    return Tuning(cap, count, seconds)


def _fewest_cores(group: dist.ProcessGroup | None) -> int:
    """Of any rank: all have to try the same numbers."""
    cores = [0] * dist.get_world_size(group)
    dist.all_gather_object(cores, len(os.sched_getaffinity(0)), group)  # objects travel on any backend
    return min(cores)


def _step_seconds(model: DistributedDataParallel, loss: Callable[[nn.Module], Tensor], steps: int) -> float:
    """Of the slowest rank, the median over steps."""
    group = model.process_group
    mine = []
    for _ in range(WARM_UP_STEPS + steps):
        model.zero_grad()
        dist.barrier(group)
        start = perf_counter()
        loss(model).backward()  # type: ignore[no-untyped-call]
        mine.append(perf_counter() - start)
    everyones: list[list[float]] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(everyones, mine, group)
    slowest: list[float] = [max(step) for step in zip(*everyones, strict=True)]
    return round(median(slowest[WARM_UP_STEPS:]), 6)


def _check(module: nn.Module, bucket_caps_mb: Sequence[float], threads: Sequence[int], steps: int) -> None:
    if isinstance(module, DistributedDataParallel):
        raise TypeError("tune: expected the bare module, got a DistributedDataParallel model; pass its .module.")
    for name, values in (("bucket_caps_mb", bucket_caps_mb), ("threads", threads), ("steps", [steps])):
        if not values:
            raise ValueError(f"tune: {name} is empty; give at least one to try.")
        if not all(value > 0 for value in values):
            raise ValueError(f"tune: {name} must be positive, got {values[0] if name == 'steps' else list(values)}.")
