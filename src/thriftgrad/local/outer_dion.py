"""An outer optimiser whose step has orthonormal factors: Dion on the mean drift."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress.fraction import check_rank
from thriftgrad.core import Key, TensorSpec
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.kernels.orthonormal import orthonormal
from thriftgrad.local.outer import Outer, OuterSGD, check_momentum, check_rate


class DionState(NamedTuple):
    """State of one matrix."""

    momentum: Tensor  # [n, m], in gradient units
    factor: Tensor  # float32[m, r]: Q, where the next power iteration starts


@dataclass(frozen=True, repr=False)
class OuterDion(Outer[DionState | Tensor]):
    r"""x' = x - lr eta sqrt(n / m) P Q'^T, where P Q'^T has the leading r singular directions, all made about equal.

    For a tensor seen as a matrix of n rows and m columns, with the mean drift D and eta the inner learning rate:
    B = momentum + D / eta, P = orthonormalise(B Q), R = B^T P, momentum' = B - (1 - mu) P R^T, and Q' is R with its
    columns at length one. So a step is lr eta long whatever the length of D: like ``OuterSign``, and unlike
    ``OuterSGD``, it follows the inner learning rate down. After one SGD step (H = 1) D / eta is the mean gradient and
    this is Dion itself, with the learning rate lr eta.

    ``rank``: r, or the smaller side of the matrix if that is less. A column that is lost (B = 0, or of lower rank)
    moves nothing and keeps its Q. The first Q is drawn from a fixed seed and the tensor's name, so that all workers
    hold the same one; every worker computes the step, which takes equal linear algebra everywhere to stay equal to
    the bit. ``vectors``: what moves tensors with fewer than two dimensions, momentum SGD on D; the paper gives them
    (and embeddings, which here are matrices like others) to another optimiser, AdamW or Lion.

    Raises ``ValueError`` for a rank below 1, a learning rate that is not positive or momentum outside [0, 1),
    ``TypeError`` for a rank that is no integer or ``vectors`` that are no ``OuterSGD``.
    Ahn et al., Dion, 2025, arXiv:2504.05295. Differs: on drifts of any H, without weight decay, whole on every worker
    where the paper shards it.

    >>> OuterDion(rank=8)
    OuterDion(rank=8)
    """

    rank: int = 64
    learning_rate: float = 1.0
    momentum: float = 0.95
    vectors: OuterSGD = OuterSGD()

    reads_learning_rate = True

    def __post_init__(self) -> None:
        check_rank("OuterDion", self.rank)
        check_rate("OuterDion", self.learning_rate)
        check_momentum("OuterDion", self.momentum)
        if not isinstance(self.vectors, OuterSGD):
            raise TypeError(f"OuterDion: vectors must be something like OuterSGD(), got {self.vectors!r}.")

    @property
    def momentum_described(self) -> str:
        return f"{self.momentum} orthonormal (vectors: {self.vectors.momentum_described or 'none'})"

    def init(self, spec: TensorSpec) -> DionState | Tensor:
        if len(spec.shape) < 2:
            return self.vectors.init(spec)
        n, m = matrix_shape(spec)
        columns = min(self.rank, n, m)
        seed = Key(0).fold("OuterDion", spec.name).seed
        return DionState(spec.zeros(), kernels.normal(m * columns, seed, spec.device).view(m, columns))

    def step(
        self, anchor: Tensor, drift: Tensor, state: DionState | Tensor, learning_rate: float
    ) -> tuple[Tensor, DionState | Tensor]:
        if isinstance(state, Tensor):
            return self.vectors.step(anchor, drift, state, learning_rate)
        n, m = matrix_shape(TensorSpec.of(anchor))
        # A learning rate of zero moves nothing, so there is no drift to divide by it.
        owed = (state.momentum + (drift / learning_rate if learning_rate else 0.0)).reshape(n, m)
        p = orthonormal((owed @ state.factor.to(owed.dtype)).to(torch.float32)[None])[0].to(owed.dtype)
        r = owed.mT @ p
        lengths = torch.linalg.vector_norm(r, dim=0, dtype=torch.float64)
        lost = lengths == 0
        factor = torch.where(lost, state.factor, r / torch.where(lost, 1.0, lengths)).to(torch.float32)
        move = sqrt(n / m) * (p @ factor.to(p.dtype).mT)
        momentum = torch.addmm(owed, p, r.mT, alpha=self.momentum - 1)
        return (
            anchor - self.learning_rate * learning_rate * move.reshape(anchor.shape),
            DionState(momentum.reshape(anchor.shape), factor),
        )
