"""Lloyd's optimal quantiser for the gradients at hand, rounded to the nearest level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.compress import buckets
from thriftgrad.compress.adaptive import AdaptedLevels, AdaptiveQuantizer, Grid
from thriftgrad.compress.buckets import Scales
from thriftgrad.core import Key, Payload, TensorSpec, floats
from thriftgrad.theory.distributions import Distribution


@dataclass(frozen=True, repr=False, kw_only=True)
class Lloyd(AdaptiveQuantizer):
    """Each coordinate to the nearest of 2**bits levels, those of least squared error for the gradients at hand.

    The levels are the centroids of their cells under the distribution of x_i / c, weighted and fitted as in ``ALQ``;
    not rounded at random, so biased: use it with error feedback. What is sent for the scale is the number that makes
    each bucket's error least, s = <x, q> / |q|^2 with q the levels chosen.
    Wire: n symbols of ``bits`` bits and one float32 per bucket.

    Claims: a contraction with delta = 1 / min(n, bucket), whatever the levels; on most inputs far more.

    Raises ``ValueError`` for bits outside 1 ... 8 and as ``ALQ`` does, ``TypeError`` for tensors that are not floating
    point.
    Lloyd, Least Squares Quantization in PCM, 1982; learned as in Zhang et al., LQ-Nets, 2018, arXiv:1807.10029.

    >>> (Lloyd(bits=2).init(TensorSpec((512,))).levels * 512**0.5).numpy().round(2).tolist()
    [-1.51, -0.45, 0.45, 1.51]
    """

    weight_power: int = 2

    def fitted(self, distribution: Distribution) -> Grid:
        return theory.lloyd_levels(distribution, self.bits)

    def probabilities(self, levels: Grid, distribution: Distribution) -> Grid:
        middles = (levels[1:] + levels[:-1]) / 2
        return np.asarray(distribution.m0(np.append(-1.0, middles), np.append(middles, 1.0)))

    def compress(self, x: Tensor, state: AdaptedLevels, key: Key) -> tuple[Payload[Scales], AdaptedLevels]:
        rows = buckets.rows(floats(x, self), self.bucket)
        shared = self.shared(state)
        levels = self.table(shared).to(rows.device)
        u = buckets.normalised(rows, buckets.norms(rows, self.norm))
        symbols = kernels.nearest_level(u, levels)
        real = buckets.rows(torch.ones(x.numel(), dtype=torch.float64, device=rows.device), self.bucket)
        q = levels[symbols.to(torch.int64)].to(torch.float64) * real
        scale = (rows * q).sum(1) / q.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        largest = torch.finfo(torch.float32).max  # of huge coordinates, where all levels are small, less than the best
        scale = scale.clamp(-largest, largest)
        finite = torch.where(rows.isfinite().all(1), scale, torch.nan).to(torch.float32)
        return Payload(
            symbols.reshape(-1)[: x.numel()], Scales(finite), self.layout(TensorSpec.of(x), shared)
        ), self._next(state)

    @property
    def unbiased(self) -> bool:
        return False

    def variance_bound(self, n: int) -> float | None:
        return None

    def contraction(self, n: int) -> float | None:
        return 1 / buckets.width(n, self.bucket)
