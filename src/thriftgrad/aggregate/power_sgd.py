"""Low rank: one step of subspace iteration on the mean of the workers' matrices."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.aggregate.aggregator import Aggregator
from thriftgrad.aggregate.all_reduce import all_reduce_list
from thriftgrad.comm import Comm, place
from thriftgrad.core import Key, TensorSpec

LOST = 2e-6
"""A column that keeps less than this share of its length after the others are projected out is rounding noise."""


class LowRank(NamedTuple):
    """State of one tensor."""

    step: int
    memory: Tensor | None  # float32[n, m]: what was not sent; None for tensors that travel as they are
    q: Tensor | None  # float32[m, r]: the right factor, equal on all workers; None before the first compressed step


@dataclass(frozen=True, repr=False)
class PowerSGD(Aggregator[LowRank]):
    r"""Rank-r approximation P Q^T of the mean gradient, with error feedback.

    A tensor is viewed as M = gradient + memory, n x m with n its first dimension. With Q shared by all workers:
    P = orthonormalise(mean(M Q)), Q' = mean(M^T P), estimate P Q'^T; memory' = M - P (M^T P)^T. Both means are
    all-reduces, so the estimate equals that of one worker holding the mean matrix.

    Wire per step: r (n + m) floats for each compressed tensor; the others (vectors, and matrices with
    n m <= min_compression_rate r (n + m)) travel as they are, in one buffer with the P factors.

    ``warm_start``: go on from the last Q; else draw a new one each step. ``power_iterations``: refine the same rank
    with more rounds. ``start_after``: all-reduce as it is for so many steps first.

    Exact on means of rank r or less. Equal shapes are batched, each matrix orthonormalised by itself. A column that is
    lost (a zero gradient, a rank below r, a subspace that the gradient has left) sends nothing and is drawn anew.

    Raises ``ValueError`` for a rank or power_iterations below 1, a negative start_after or min_compression_rate.
    Vogels et al., PowerSGD, NeurIPS 2019, arXiv:1905.13727. Differs from the paper: the memory is *local*, against the
    worker's own factor; the mean over workers is the same, but each memory stays bounded where the paper's grows with
    the difference between workers. Factors and memories are float32 whatever the gradient's type.

    >>> PowerSGD(rank=2)
    PowerSGD()
    """

    rank: int = 2
    warm_start: bool = True
    power_iterations: int = 1
    min_compression_rate: float = 2.0
    start_after: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("power_iterations", 1), ("start_after", 0), ("min_compression_rate", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"PowerSGD: {name} must be at least {least}, got {getattr(self, name)}.")

    def compresses(self, spec: TensorSpec) -> bool:
        """Whether a tensor of this shape is worth factors."""
        if len(spec.shape) < 2:
            return False
        n, m = _matrix_shape(spec)
        return self.min_compression_rate * min(self.rank, n, m) * (n + m) < n * m

    def uncompressed(self, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
        return tuple(spec.name for spec in specs if not self.compresses(spec))

    def check(self, specs: Sequence[TensorSpec]) -> None:
        if specs and not any(self.compresses(spec) for spec in specs):
            warnings.warn(
                f"{self!r} compresses none of the {len(specs)} tensors: they are vectors, or too small for their rank "
                f"to save {self.min_compression_rate} times; all travel as they are.",
                stacklevel=3,
            )

    def init_tensor(self, spec: TensorSpec) -> LowRank:
        if not self.compresses(spec):
            return LowRank(0, None, None)
        return LowRank(0, torch.zeros(_matrix_shape(spec), device=spec.device), None)

    def exchange(
        self, tensors: Sequence[Tensor], specs: Sequence[TensorSpec], states: Sequence[LowRank], key: Key
    ) -> Comm[tuple[list[Tensor], list[LowRank]]]:
        me = yield from place()
        groups: dict[tuple[int, int], list[int]] = {}
        plain: list[int] = []
        for i, (spec, state) in enumerate(zip(specs, states, strict=True)):
            if state.memory is not None and state.step >= self.start_after:
                groups.setdefault(_matrix_shape(spec), []).append(i)
            else:
                plain.append(i)

        stacks = [torch.stack([_plus_memory(tensors[i], states[i]) for i in group]) for group in groups.values()]
        factors = [torch.stack([self._start(specs[i], states[i], key) for i in group]) for group in groups.values()]
        waiting = [tensors[i] / me.world for i in plain]  # rides with the first factors
        plain_means: list[Tensor] = []
        for _ in range(self.power_iterations if groups else 1):
            lefts = [m @ q / me.world for m, q in zip(stacks, factors, strict=True)]
            sums = yield from all_reduce_list(lefts + waiting)
            plain_means, waiting = plain_means or sums[len(lefts) :], []
            bases = [orthonormal(p) for p in sums[: len(lefts)]]
            rights = [m.mT @ p for m, p in zip(stacks, bases, strict=True)]
            factors = yield from all_reduce_list([q / me.world for q in rights])

        means = dict(zip(plain, plain_means, strict=True))
        after = {i: states[i]._replace(step=states[i].step + 1) for i in plain}
        for group, m, p, local, q in zip(groups.values(), stacks, bases, rights, factors, strict=True):
            estimates, memories = p @ q.mT, m - p @ local.mT
            for at, i in enumerate(group):
                means[i] = estimates[at].view(specs[i].shape).to(specs[i].dtype)
                renewed = torch.where((p[at] == 0).all(0), self._draw(specs[i], key.fold("lost")), q[at])
                after[i] = LowRank(states[i].step + 1, memories[at], renewed if self.warm_start else None)
        return [means[i] for i in range(len(tensors))], [after[i] for i in range(len(tensors))]

    def _start(self, spec: TensorSpec, state: LowRank, key: Key) -> Tensor:
        return state.q if state.q is not None else self._draw(spec, key)

    def _draw(self, spec: TensorSpec, key: Key) -> Tensor:
        """A random right factor, the same on every worker: standard normal, float32[m, r]."""
        n, m = _matrix_shape(spec)
        r = min(self.rank, n, m)
        return kernels.normal(m * r, key.fold("PowerSGD", spec.name).seed, spec.device).view(m, r)


def orthonormal(p: Tensor) -> Tensor:
    """Orthonormal columns spanning those of each matrix: float32[b, n, r] -> float32[b, n, r]; lost columns are zero.

    Modified Gram-Schmidt in float64, each matrix by itself: enough for columns as nearly parallel as ``LOST`` allows.
    """
    wide = p.to(torch.float64)
    columns: list[Tensor] = []
    for i in range(p.shape[2]):
        column = wide[:, :, i : i + 1]
        length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        for other in columns:
            column = column - other * (other * column).sum(1, keepdim=True)
        rest = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        lost = rest <= LOST * length  # false for NaN, which must come through
        columns.append(torch.where(lost, 0.0, column / torch.where(lost, 1.0, rest)))
    return torch.cat(columns, 2).to(torch.float32)


def _matrix_shape(spec: TensorSpec) -> tuple[int, int]:
    return spec.shape[0], spec.numel // spec.shape[0]


def _plus_memory(x: Tensor, state: LowRank) -> Tensor:
    assert state.memory is not None  # only compressed tensors come here
    return x.detach().to(torch.float32).reshape(state.memory.shape) + state.memory
