"""What a task is, and how its training set is divided between the workers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Batch: TypeAlias = tuple[Tensor, ...]
"""Inputs and targets, on the CPU; the first dimension counts samples."""

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A model, its data and loss, and a quality to reach.

    Everything random is a function of (seed, rank, world), so a simulated worker and a real one see the same batches.
    `loss` and `evaluate` bring the data to the model's device and take a model wrapped in DDP as well.

    Example:
        >>> from thriftgrad.tasks import load
        >>> task = load("digits")
        >>> model = task.build(0)
        >>> batch = next(task.batches(0, 2, 4))     # seed 0, worker 2 of 4
        >>> [tuple(part.shape) for part in batch]
        [(32, 1, 8, 8), (32,)]
        >>> task.loss(model, batch).backward()
    """

    name: str
    description: str  # data, model, number of parameters
    quality: str  # "test accuracy", "f - f*", "bits per byte"
    higher_is_better: bool
    target: float  # of the quality
    batch_size: int  # samples per worker and step
    steps: int  # of a full comparison
    learning_rate: float  # of SGD with momentum 0.9 on the mean gradient over 4 workers
    evaluate_every: int  # steps
    provenance: Mapping[str, str]  # source, sha256, licence and versions of the data
    samples: int  # in the training set
    build: Callable[[int], nn.Module]  # seed -> model
    draw: Callable[[Indices, np.random.Generator], Batch]  # the samples of these numbers; the generator augments them
    loss: Callable[[nn.Module, Batch], Tensor]  # mean over the batch
    evaluate: Callable[[nn.Module], float]  # quality on data that is not trained on ("f - f*": on the whole problem)

    def batches(self, seed: int, rank: int, world: int) -> Iterator[Batch]:
        """Endless batches of worker `rank` of `world`: no other worker sees its samples.

        The seed permutes the samples, and worker r owns every `world`-th from the r-th on. Each worker passes through
        its shard in a new order every epoch; a batch may straddle two epochs, so every sample is used equally often.

        Raises:
            ValueError: rank, world or seed is out of range, or there are more workers than samples.
        """
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"Workers are numbered from 0 to world - 1, and rank is {rank} of a world of {world}.")
        if seed < 0:
            raise ValueError(f"The seed must be zero or more, not {seed}.")
        if world > self.samples:
            raise ValueError(
                f"{world} workers cannot share the {self.samples} training samples of {self.name!r}; "
                f"use at most {self.samples} workers."
            )
        shard = np.random.default_rng(seed).permutation(self.samples)[rank::world]
        order, augmentation = np.random.default_rng([seed, rank]).spawn(2)
        return (self.draw(indices, augmentation) for indices in shuffled(shard, self.batch_size, order))


def shuffled(shard: Indices, batch_size: int, generator: np.random.Generator) -> Iterator[Indices]:
    """Endless batches of the shard's entries, every epoch in a new order.

    Example:
        >>> batches = shuffled(np.arange(4), 2, np.random.default_rng(0))
        >>> sorted(np.concatenate([next(batches), next(batches)]).tolist())      # one epoch
        [0, 1, 2, 3]
    """
    waiting = shard[:0]
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, generator.permutation(shard)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def spread(samples: int, count: int) -> Indices:
    """At most `count` sample numbers, spread evenly over all of them: a fixed subset to evaluate on.

    Example:
        >>> spread(9, 3).tolist(), spread(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, samples - 1, min(count, samples)).astype(np.int64)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; its mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
