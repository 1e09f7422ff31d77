"""Subspace iteration on the mean of the workers' matrices, in products that all-reduce can sum.

Both ways take batches of matrices float32[b, n, m], or float64, which they change into what is left of them, and one
start of each: float32 factors that are equal on all workers. ``waiting`` are tensors that ride with the first factors
in one buffer.
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
    rest: Tensor  # this worker's matrices, less its own part of the estimate: the batch itself
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
        lefts = [_sent(m, _unit(q), world) for m, q in zip(batches, factors, strict=True)]
        sums = yield from all_reduce_list([*lefts, *waiting])
        means, waiting = means or sums[len(lefts) :], []
        bases = yield from settle((yield from _orthonormal(sums[: len(lefts)])))
        rights = [_sent(m.mT, p, world) for m, p in zip(batches, bases, strict=True)]
        factors = yield from all_reduce_list(rights)
    estimates = yield from _products(batches, bases, factors)
    rests = [_left_of(m, p, world * q) for m, p, q in zip(batches, bases, rights, strict=True)]
    return [Fit(*each) for each in zip(estimates, rests, factors, strict=True)], means


def one_sided(
    batches: Sequence[Tensor],
    starts: Sequence[Tensor],
    from_left: Sequence[bool],
    waiting: Sequence[Tensor],
    world: int,
    settle: Settle,
) -> Comm[Fits]:
    """Q' = orthonormalise(Q), P = mean(M Q'); the estimate is P Q'^T, and P starts the next step, from the left.

    From the left: P' = orthonormalise(P), Q = mean(M^T P'), P' Q^T. Half the products and one all-reduce.
    """
    bases = yield from settle((yield from _orthonormal(starts)))
    sent = [_sent(m.mT if left else m, basis, world) for m, basis, left in zip(batches, bases, from_left, strict=True)]
    sums = yield from all_reduce_list([*sent, *waiting])
    factors, means = sums[: len(sent)], sums[len(sent) :]

    def sides(others: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(b, f) if left else (f, b) for b, f, left in zip(bases, others, from_left, strict=True)]

    lefts, rights = zip(*sides(factors), strict=True) if batches else ((), ())
    estimates = yield from _products(batches, lefts, rights)
    own = sides([world * each for each in sent])
    rests = [_left_of(m, *each) for m, each in zip(batches, own, strict=True)]
    return [Fit(*each) for each in zip(estimates, rests, factors, strict=True)], means


def _orthonormal(factors: Sequence[Tensor]) -> Comm[list[Tensor]]:
    return (yield from replicated(lambda: [orthonormal(each) for each in factors]))


def _unit(factors: Tensor) -> Tensor:
    """The same directions at length one, zeros left as they are.

    Q' is as long as the gradient is, and a product with the next one as its square, which float32 need not hold.
    """
    wide = factors.to(torch.float64)
    lengths = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return (wide / torch.where(lengths == 0, 1.0, lengths)).to(torch.float32)


def _products(batches: Sequence[Tensor], lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Comm[list[Tensor]]:
    """P Q^T, in the type of each batch."""

    def products() -> list[Tensor]:
        return [_product(p.to(m.dtype), q.to(m.dtype).mT) for m, p, q in zip(batches, lefts, rights, strict=True)]

    return (yield from replicated(products))


def _sent(m: Tensor, q: Tensor, world: int) -> Tensor:
    """This worker's share of mean(M Q), float32; divided before the sum, which could leave the type's range.

    As (Q^T M^T)^T, which a processor's matrix library multiplies several times as fast as M Q.
    """
    return (q.to(m.dtype).mT @ m.mT / world).mT.to(torch.float32)


def _product(p: Tensor, q: Tensor) -> Tensor:
    """P Q; an outer product element by element, since batched matrix products are slow at an inner dimension of one."""
    return p * q if p.shape[2] == 1 else p @ q


def _left_of(m: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """M - P Q^T, in place."""
    if p.shape[2] == 1:
        return m.addcmul_(p.to(m.dtype), q.to(m.dtype).mT, value=-1)
    return m.baddbmm_(p.to(m.dtype), q.to(m.dtype).mT, alpha=-1)
