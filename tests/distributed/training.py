"""A small model trained under DDP on real processes, and the same training simulated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thriftgrad import Key, TensorSpec, attach, simulate
from thriftgrad.train import Handle

LEARNING_RATE = 0.1
SEED = 3
SMALL_BUCKETS = {"bucket_cap_mb": 0.0001}  # about one DDP bucket for each parameter, after the first step


class Net(nn.Module):
    """Two convolutions, a layer that may be skipped, one that is frozen, and a weight that two layers share."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(1, 8, 3)
            self.conv2 = nn.Conv2d(8, 8, 3)
            self.skipped = nn.Linear(32, 32)
            self.frozen = nn.Linear(32, 32).requires_grad_(False)
            self.first = nn.Linear(32, 32)
            self.second = nn.Linear(32, 32)
            self.second.weight = self.first.weight
            self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        x = self.conv2(self.conv1(x).tanh()).tanh().flatten(1)
        x = x if skip else self.skipped(x).tanh()
        return self.last(self.second(self.first(self.frozen(x)).tanh()).tanh())


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(5, 1, 6, 6, generator=generator), torch.randint(4, (5,), generator=generator)


def loss_of(model: nn.Module, rank: int, step: int, skip: bool = False) -> Tensor:
    x, target = batch(rank, step)
    return nn.functional.cross_entropy(model(x, skip), target)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def attached(method: Any, **options: Any) -> tuple[DistributedDataParallel, Handle]:
    """A fresh model under DDP with these options."""
    model = DistributedDataParallel(Net(), **options)
    return model, attach(model, method, SEED)


def train(model: DistributedDataParallel, steps: Iterable[int]) -> None:
    """Plain steps on this rank's batches."""
    optimizer = sgd(model)
    for t in steps:
        optimizer.zero_grad()
        loss_of(model, dist.get_rank(), t).backward()
        optimizer.step()


def simulated(method: Any, world: int, steps: int, micro_batches: int = 1) -> dict[str, Tensor]:
    """The parameters after the same training in one process; each step adds up some batches."""
    model = Net()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = sgd(model)
    states = [method.init([TensorSpec.of(p, name) for name, p in parameters.items()]) for _ in range(world)]
    for t in range(steps):
        gradients = []
        for rank in range(world):
            model.zero_grad()
            for i in range(micro_batches):
                loss_of(model, rank, micro_batches * t + i).backward()
            gradients.append([p.grad for p in parameters.values() if p.grad is not None])
        key = Key(SEED).fold(t)
        results = simulate([method.aggregate(g, state, key) for g, state in zip(gradients, states, strict=True)])
        states = [state for _, state in results]
        for parameter, mean in zip(parameters.values(), results[0][0], strict=True):
            parameter.grad = mean
        optimizer.step()
    return trained(model)
