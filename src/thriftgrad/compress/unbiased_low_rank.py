"""Projection onto a random subspace that all workers share, scaled up to be unbiased."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress.fraction import check_rank
from thriftgrad.compress.random_k import Seed
from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec, floating, wide
from thriftgrad.core.matrices import matrix_shape
from thriftgrad.kernels.orthonormal import orthonormal


@dataclass(frozen=True, repr=False)
class UnbiasedLowRank(LinearCompressor[None, Seed]):
    """The rows of a matrix projected onto r = ``rank`` random directions, times m / r.

    C(M) = M U U^T with U = sqrt(m / r) Q, Q [m, r] the orthonormal basis of a uniformly random subspace, so that
    E U U^T = I. A tensor is the matrix [n, m] of its first dimension and all the others. One of fewer than two
    dimensions, or with m <= r, travels as it is.
    Wire: n r floats of the tensor's own type, (m / r) M Q, and a seed of 8 bytes, from which Q follows.
    Linear: under a public key all workers draw one Q, so the products may be all-reduced.

    Claims: unbiased with omega = max(N / r - 1, 0) for N elements. Proof: Q Q^T is a projection of mean (r / m) I, so
    E|C(M)|^2 = (m / r)^2 tr(M E[Q Q^T] M^T) = (m / r) |M|^2, and E|C(M) - M|^2 = (m / r - 1) |M|^2 for every M. The
    claim is about every shape, and m is N where a matrix has one row.

    Raises ``TypeError`` for a rank that is no integer, ``ValueError`` for one below 1; ``TypeError`` for tensors
    that are not floating point.
    The unbiased baseline of Vogels et al., PowerSGD, 2019, arXiv:1905.13727. Differs: the published code runs it as a
    product with the factor of the step before, which is not unbiased; here U is drawn anew at every step.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = UnbiasedLowRank(rank=2).compress(torch.ones(8, 6), None, Key(0))
    >>> payload.nbytes, torch.linalg.matrix_rank(UnbiasedLowRank(rank=2).decompress(payload)).item()
    (72, 1)
    """

    rank: int

    isometric = True

    def __post_init__(self) -> None:
        check_rank("UnbiasedLowRank", self.rank)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        floats, seeds = (matrix_shape(spec)[0] * self.rank, 1) if self._projects(spec) else (spec.numel, 0)
        carrier = replace(spec, shape=(floats,), name="")
        return Layout(spec, carrier, Seed(TensorSpec((seeds,), torch.int64)), repr(self))  # type: ignore[arg-type]

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Seed], None]:
        flat, spec = floating(x, self), TensorSpec.of(x)
        if not self._projects(spec):
            return Payload(flat, Seed(torch.empty(0, dtype=torch.int64)), self.layout(spec)), None
        seed = torch.tensor([key.fold("UnbiasedLowRank").seed >> 1])  # 63 bits, to fit int64
        q = self._basis(seed, spec)
        products = flat.to(q.dtype).view(matrix_shape(spec)) @ (q * (len(q) / self.rank))
        return Payload(products.to(flat.dtype).reshape(-1), Seed(seed), self.layout(spec)), None

    def decompress(self, payload: Payload[Seed]) -> Tensor:
        spec = payload.layout.spec
        if not self._projects(spec):
            return payload.carrier.to(spec.dtype).view(spec.shape)
        q = self._basis(payload.side.seed, spec)
        return (payload.carrier.to(q.dtype).view(-1, self.rank) @ q.mT).to(spec.dtype).view(spec.shape)

    def _basis(self, seed: Tensor, spec: TensorSpec) -> Tensor:
        """Q, computed on the CPU, so that it has the same bits on all devices."""
        m = matrix_shape(spec)[1]
        normal = kernels.normal(m * self.rank, int(seed) & (1 << 63) - 1).view(1, m, self.rank)
        return orthonormal(normal)[0].to(spec.device, wide(spec.dtype))

    def leaves_alone(self, spec: TensorSpec) -> bool:
        return not self._projects(spec)

    def _projects(self, spec: TensorSpec) -> bool:
        return len(spec.shape) >= 2 and matrix_shape(spec)[1] > self.rank

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return max(n / self.rank - 1, 0.0)
