"""Sparsification at random, on a support that all workers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress import fraction as share
from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec, floating, wide


class Seed(NamedTuple):
    """The side information: where a support or a subspace comes from."""

    seed: Tensor  # int64[1]


@dataclass(frozen=True, repr=False)
class RandomK(LinearCompressor[None, Seed]):
    """Keep k = ceil(fraction n) coordinates (or ``k`` itself, at most n) drawn without replacement, drop the rest.

    ``rank``: as many as factors of rank r have numbers, k = min(r (n1 + n2), n) of a tensor seen as a matrix [n1, n2];
    in the claims k is then min(2 r sqrt(n), n), the least for any shape.
    ``rescale=True`` multiplies them by n / k: unbiased, omega = n / k - 1. ``rescale=False`` leaves them: an orthogonal
    projection with delta = k / n, fit for ``ErrorFeedback``.
    Wire: k values of the tensor's own type and a seed of 8 bytes; the support follows from the seed.
    Linear: under a public key all workers draw one support, so the values may be all-reduced.

    Raises ``ValueError`` for a fraction outside (0, 1], k or rank below 1, or unless exactly one is given;
    ``TypeError`` for a rank that is no integer, or tensors that are not floating point.
    Konecny et al., 2016, arXiv:1610.05492; Stich et al., 2018, arXiv:1809.07599. With a rank, a baseline of
    Vogels et al., PowerSGD, 2019, arXiv:1905.13727.

    >>> import torch; from thriftgrad import Key, RandomK
    >>> payload, _ = RandomK(fraction=0.1).compress(torch.ones(100), None, Key(0))
    >>> payload.carrier.tolist(), payload.nbytes
    ([10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], 48)
    """

    fraction: float | None = None
    k: int | None = None
    rescale: bool = True
    rank: int | None = None

    isometric = True

    def __post_init__(self) -> None:
        share.check_with_rank("RandomK", self.fraction, self.k, self.rank)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        values = TensorSpec((self._kept(spec),), spec.dtype, spec.device)
        return Layout(spec, values, Seed(TensorSpec((1,), torch.int64)), repr(self))  # type: ignore[arg-type]

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Seed], None]:
        flat, spec = floating(x, self), TensorSpec.of(x)
        seed = torch.tensor([key.fold("RandomK").seed >> 1])  # 63 bits, to fit int64
        values = flat[self._support(seed, spec)]
        if self.rescale and values.numel():
            values = (values.to(wide(flat.dtype)) * (flat.numel() / values.numel())).to(flat.dtype)
        return Payload(values, Seed(seed), self.layout(spec)), None

    def decompress(self, payload: Payload[Seed]) -> Tensor:
        spec = payload.layout.spec
        flat = torch.zeros(spec.numel, dtype=spec.dtype, device=payload.carrier.device)
        support = self._support(payload.side.seed, spec).to(flat.device)
        return flat.index_copy_(0, support, payload.carrier.to(spec.dtype)).view(spec.shape)

    def _kept(self, spec: TensorSpec) -> int:
        return share.kept_of(spec, self.fraction, self.k, self.rank)

    def _support(self, seed: Tensor, spec: TensorSpec) -> Tensor:
        return kernels.permutation(self._kept(spec), spec.numel, int(seed) & (1 << 63) - 1, spec.device)

    @property
    def unbiased(self) -> bool:
        return self.rescale

    @property
    def projection(self) -> bool:
        return not self.rescale

    def variance_bound(self, n: int) -> float | None:
        if not self.rescale:
            return None
        return n / share.least_kept(n, self.fraction, self.k, self.rank) - 1 if n else 0.0

    def contraction(self, n: int) -> float | None:
        if self.rescale:
            return super().contraction(n)
        return share.least_kept(n, self.fraction, self.k, self.rank) / n if n else 1.0
