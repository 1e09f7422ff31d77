"""Lloyd's optimal quantiser for the gradients at hand, rounded to the nearest level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.compress import buckets
from thriftgrad.compress.adaptive import AdaptiveQuantizer, Grid
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

    >>> from thriftgrad import TensorSpec
    >>> (Lloyd(bits=2).init(TensorSpec((512,))).levels * 512**0.5).numpy().round(2).tolist()
    [-1.51, -0.45, 0.45, 1.51]
    """

    weight_power: int = 2

    def fitted(self, distribution: Distribution) -> Grid:
        return theory.lloyd_levels(distribution, self.bits)

    def probabilities(self, levels: Grid, distribution: Distribution) -> Grid:
        middles = (levels[1:] + levels[:-1]) / 2
        return np.asarray(distribution.m0(np.append(-1.0, middles), np.append(middles, 1.0)))

    def _quantised(
        self, x: Tensor, shared: Any, seed: int, memory: Tensor | None = None, decay: float = 1.0
    ) -> kernels.Quantised:
        """To the nearest level; each bucket's scale is the one that fits its levels best."""
        owed = x if memory is None else x + decay * memory
        rows = buckets.rows(owed, self.bucket)
        levels = self.table(shared).to(rows.device)
        u = buckets.normalised(rows, kernels.bucket_norms(rows, self.norm))
        symbols = kernels.nearest_level(u.view(-1), levels)
        stream = kernels.pack(symbols[: len(owed)], len(levels))
        real = buckets.rows(torch.ones(len(owed), dtype=torch.float64, device=rows.device), self.bucket)
        q = levels[symbols.view(rows.shape).to(torch.int64)].to(torch.float64) * real
        scale = (rows * q).sum(1) / q.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        largest = torch.finfo(torch.float32).max  # of huge coordinates, where all levels are small, less than the best
        scale = torch.where(rows.isfinite().all(1), scale.clamp(-largest, largest), torch.nan).to(torch.float32)
        if memory is None:
            return kernels.Quantised(stream, scale, None)
        sent = torch.zeros_like(owed)
        kernels.dequantise_add(stream, scale, levels, rows.shape[1], sent)
        return kernels.Quantised(stream, scale, owed - sent)

    @property
    def unbiased(self) -> bool:
        return False

    def variance_bound(self, n: int) -> float | None:
        return None

    def contraction(self, n: int) -> float | None:
        return 1 / buckets.width(n, self.bucket)
