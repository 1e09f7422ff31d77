"""Subspace iteration on the mean of the workers' matrices, in products that all-reduce can sum.

Both ways take batches of matrices float32[b, n, m], or float64, and one start of each: float32 factors that are equal
on all workers. ``waiting`` are tensors that ride with the first factors in one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.comm import Comm, replicated
from thriftgrad.core.matrices import orthonormal

Settle = Callable[[Sequence[Tensor]], Comm[Sequence[Tensor]]]
"""Makes sure that factors are equal on all workers, or leaves them as they are."""


class Fit(NamedTuple):
    """What became of one batch."""

    estimate: Tensor  # of the mean, equal on all workers
    rest: Tensor  # this worker's matrices, less its own part of the estimate
    factors: Tensor  # float32: where the next step starts


Fits = tuple[list[Fit], list[Tensor]]
"""Of the batches, and the means of what was waiting."""


def two_sided(
    batches: Sequence[Tensor],
    starts: Sequence[Tensor],
    waiting: Sequence[Tensor],
    world: int,
    power_iterations: int,
    settle: Settle,
) -> Comm[Fits]:
    """P = orthonormalise(mean(M Q)), Q' = mean(M^T P), with Q' for Q as often as asked; the estimate is P Q'^T."""
    factors = yield from settle(starts)
    means: list[Tensor] = []
    for _ in range(power_iterations if batches else 1):
        lefts = [_sent(m, q, world) for m, q in zip(batches, factors, strict=True)]
        sums = yield from all_reduce_list([*lefts, *waiting])
        means, waiting = means or sums[len(lefts) :], []
        bases = yield from settle((yield from _orthonormal(sums[: len(lefts)])))
        rights = [_sent(m.mT, p, world) for m, p in zip(batches, bases, strict=True)]
        factors = yield from all_reduce_list(rights)
    estimates = yield from _products(batches, bases, factors)
    rests = [_less(m, p, world * q) for m, p, q in zip(batches, bases, rights, strict=True)]
    return [Fit(*each) for each in zip(estimates, rests, factors, strict=True)], means


def one_sided(
    batches: Sequence[Tensor], starts: Sequence[Tensor], waiting: Sequence[Tensor], world: int, settle: Settle
) -> Comm[Fits]:
    """Q' = orthonormalise(Q), P = mean(M Q'); the estimate is P Q'^T, and P starts the next step, from the left.

    Half the products and one all-reduce. Who wants the left factor gives the matrices transposed.
    """
    bases = yield from settle((yield from _orthonormal(starts)))
    lefts = [_sent(m, q, world) for m, q in zip(batches, bases, strict=True)]
    sums = yield from all_reduce_list([*lefts, *waiting])
    factors, means = sums[: len(lefts)], sums[len(lefts) :]
    estimates = yield from _products(batches, factors, bases)
    rests = [_less(m, world * p, q) for m, p, q in zip(batches, lefts, bases, strict=True)]
    return [Fit(*each) for each in zip(estimates, rests, factors, strict=True)], means


def _orthonormal(factors: Sequence[Tensor]) -> Comm[list[Tensor]]:
    return (yield from replicated(lambda: [orthonormal(each) for each in factors]))


def _products(batches: Sequence[Tensor], lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Comm[list[Tensor]]:
    """P Q^T, in the type of each batch."""

    def products() -> list[Tensor]:
        return [p.to(m.dtype) @ q.to(m.dtype).mT for m, p, q in zip(batches, lefts, rights, strict=True)]

    return (yield from replicated(products))


def _sent(m: Tensor, q: Tensor, world: int) -> Tensor:
    """This worker's share of mean(M Q), float32; divided before the sum, which could leave the type's range."""
    return (m @ q.to(m.dtype) / world).to(torch.float32)


def _less(m: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """M - P Q^T."""
    return torch.baddbmm(m, p.to(m.dtype), q.to(m.dtype).mT, alpha=-1)
