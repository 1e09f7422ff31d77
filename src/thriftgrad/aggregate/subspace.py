"""Subspace iteration on the mean of the workers' matrices, in products that all-reduce can sum.

Both ways take stacks of matrices and where each starts: factors that are equal on all workers, float32. ``waiting`` are
tensors that ride with the first factors; what they become are the means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.aggregate.drift import settled
from thriftgrad.comm import Comm, replicated
from thriftgrad.kernels import Matrices, Sizes


class Stack(NamedTuple):
    """Matrices of one type on one device whose step starts on the same side."""

    matrices: Matrices
    sizes: Sizes
    from_left: bool


class Fit(NamedTuple):
    """What became of one stack: the estimates of the means are the products of the two factors, left by right^T."""

    basis: Tensor  # orthonormal
    factor: Tensor  # as long as the matrices are: where the next step starts
    basis_is_left: bool

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The left factor and the right one."""
        return (self.basis, self.factor) if self.basis_is_left else (self.factor, self.basis)


Fits = tuple[list[Fit], list[Tensor]]
"""Of the stacks, and the means of what was waiting."""


class Peers(NamedTuple):
    """What lies between this worker and the others."""

    world: int
    due: bool  # whether digests go round in this step
    guard: Callable[[list[Tensor]], list[Tensor]]  # looks at what is sent first, and may send something else

    def settle(self, vectors: Sequence[Tensor]) -> Comm[Sequence[Tensor]]:
        """Factors, made sure to be equal on all workers if that is due."""
        return (yield from settled("PowerSGD", vectors)) if self.due and vectors else vectors

    def sums(self, factors: Sequence[Tensor], waiting: Sequence[Tensor]) -> Comm[tuple[list[Tensor], list[Tensor]]]:
        """Over the workers, of the first message."""
        sums = yield from all_reduce_list(self.guard([*factors, *waiting]))
        return sums[: len(factors)], sums[len(factors) :]


def two_sided(
    stacks: Sequence[Stack],
    starts: Sequence[Sequence[Tensor]],
    waiting: Sequence[Tensor],
    peers: Peers,
    power_iterations: int,
    keep_rest: bool,
) -> Comm[Fits]:
    """P = orthonormalise(mean(M Q)), Q' = mean(M^T P), with Q' for Q as often as asked; the estimate is P Q'^T.

    ``starts``: Q of each matrix. ``keep_rest``: each M becomes M - P (M^T P)^T.
    """
    left = [True] * len(stacks)
    sent = [stack.matrices.times_unit(q, peers.world) for stack, q in zip(stacks, starts, strict=True)]
    lefts, means = yield from peers.sums(sent, waiting)
    for later in reversed(range(power_iterations)):
        bases = yield from peers.settle((yield from _orthonormal(stacks, lefts, left)))
        factors = yield from all_reduce_list(_multiplied(stacks, bases, left, peers.world, keep_rest and not later))
        if later:
            starts = [split(q, stack.sizes, False) for stack, q in zip(stacks, factors, strict=True)]
            sent = [stack.matrices.times_unit(q, peers.world) for stack, q in zip(stacks, starts, strict=True)]
            lefts = yield from all_reduce_list(sent)
    return [Fit(*each) for each in zip(bases, factors, left, strict=True)], means


def one_sided(
    stacks: Sequence[Stack], starts: list[Tensor], waiting: Sequence[Tensor], peers: Peers, keep_rest: bool
) -> Comm[Fits]:
    """Q' = orthonormalise(Q), P = mean(M Q'); the estimate is P Q'^T, and P starts the next step, from the left.

    From the left: P' = orthonormalise(P), Q = mean(M^T P'), P' Q^T. Half the products and one all-reduce.
    ``starts``: of each stack in one vector. ``keep_rest``: each M becomes M less its own part of the estimate.
    """
    left = [stack.from_left for stack in stacks]
    bases = yield from peers.settle((yield from _orthonormal(stacks, starts, left)))
    factors, means = yield from peers.sums(_multiplied(stacks, bases, left, peers.world, keep_rest), waiting)
    factors = [factor.clone() for factor in factors]  # else a state would keep the buffer, and all that waited in it
    return [Fit(*each) for each in zip(bases, factors, left, strict=True)], means


def split(vector: Tensor, sizes: Sizes, left: bool) -> list[Tensor]:
    """The factors that lie in a vector, [n or m, r] of each matrix."""
    lengths = [size.n if left else size.m for size in sizes]
    pieces = torch.split(vector, [length * size.r for length, size in zip(lengths, sizes, strict=True)])
    return [piece.view(length, -1) for piece, length in zip(pieces, lengths, strict=True)]


def _multiplied(
    stacks: Sequence[Stack], bases: Sequence[Tensor], left: Sequence[bool], world: int, keep_rest: bool
) -> list[Tensor]:
    """This worker's share of the other factors."""
    each = list(zip([stack.matrices for stack in stacks], bases, left, strict=True))
    if keep_rest:
        return [matrices.split(basis, side, world) for matrices, basis, side in each]
    return [matrices.times(basis, side, world) for matrices, basis, side in each]


def _orthonormal(stacks: Sequence[Stack], factors: Sequence[Tensor], left: Sequence[bool]) -> Comm[list[Tensor]]:
    each = [(f, s.sizes, side) for s, f, side in zip(stacks, factors, left, strict=True)]
    return (yield from replicated(lambda: [kernels.orthonormal_factors(*one) for one in each]))
