"""SparseLoCo's quantiser of values: a table of bin means for each bucket."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.compress import buckets
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats

REACH = 3
"""Standard deviations on either side of the mean that the bins divide."""


class Means(NamedTuple):
    """The side information of a quantiser whose levels are made from the bucket itself."""

    means: Tensor  # float32[ceil(n / bucket), 2**bits]: the mean of what fell into each bin, 0 where nothing did


@dataclass(frozen=True, repr=False)
class BinMeans(Compressor[None, Means]):
    """C(x)_i = the mean of the coordinates of x_i's bucket that fall into the same bin as x_i.

    2**bits equal bins divide mean +- 3 standard deviations of the bucket; the outermost two reach on to infinity, and a
    coordinate on an edge belongs above it. ``bucket=None``: the whole tensor. Made for the values that a sparsifier
    keeps, as in ``TopK(fraction=0.02) >> BinMeans(bits=2)``.

    Wire: n symbols of ``bits`` bits and 2**bits float32 per bucket.

    Claims: a contraction. Given the bins, C is the orthogonal projection onto what is constant in each, so
    |x - C(x)|^2 = |x|^2 - |C(x)|^2. With d = min(n, bucket), b bits, delta is the greater of
    d / (2 floor(d^2 / 4)) >= 2 / d (1 if d = 1) and (1 - 9 / 4^b) min(1, (3 - 6 / 2^b) / sqrt(d)).
    Proof, for z = x less its mean, which is enough: the mean, sent exactly, adds the same to |x|^2 and |C(x)|^2.
    (1) An edge lies at 0. Let T be the sum of the p coordinates z_i >= 0, so -T that of the d - p others. Then
    |z|^2 <= 2 T^2 and, since finer bins only add, |C(z)|^2 >= T^2 / p + T^2 / (d - p) >= T^2 d / floor(d^2 / 4).
    (2) Of |z|^2 = d sigma^2 let the share q lie in the open bins, in which |z_i| >= a = (3 - 6 / 2^b) sigma. One with k
    coordinates of sum S and squares Q gives S^2 / k >= |S| a >= a sqrt(Q) >= a Q / (sigma sqrt(d)). The closed ones,
    6 sigma / 2^b wide, lose at most (3 sigma / 2^b)^2 a coordinate. So C keeps the share q (3 - 6 / 2^b) / sqrt(d)
    + max(0, 1 - q - 9 / 4^b) or more, which is least at q = 0 or q = 1 - 9 / 4^b.
    A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for bits outside 1 ... 8 or a bucket below 1; ``TypeError`` for tensors that are not floating
    point. Sarfi et al., SparseLoCo, 2025, arXiv:2508.15706. Its code rounds to points as far apart, one of them at the
    mean, in units of the unbiased standard deviation; here an edge is at the mean, which claim (1) needs.

    >>> import torch; from thriftgrad import BinMeans, Key
    >>> payload, _ = BinMeans(bits=1).compress(torch.tensor([3.0, 1.0, -1.0, -1.0, 0.5]), None, Key(0))
    >>> payload.side.means, BinMeans(bits=1).decompress(payload)  # below and above the mean, which is 0.5
    (tensor([[-1.0000,  1.5000]]), tensor([ 1.5000,  1.5000, -1.0000, -1.0000,  1.5000]))
    """

    bits: int
    bucket: int | None = None

    def __post_init__(self) -> None:
        buckets.check_integer("BinMeans", "bits", self.bits)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"BinMeans: bits must lie in 1 ... 8, got {self.bits}.")
        if self.bucket is not None:
            buckets.check_bucket("BinMeans", self.bucket)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        bins = 2**self.bits
        symbols = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=bins)
        means = TensorSpec((buckets.count(spec.numel, self.bucket), bins), torch.float32, spec.device)
        return Layout(spec, symbols, Means(means), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Means], None]:
        flat = floats(x, self).to(torch.float64)  # in which the squares of 1e30 are numbers
        rows = buckets.rows(flat, self.bucket)
        real = buckets.rows(torch.ones_like(flat), self.bucket)  # 0 for the filling of the last row
        finite = rows.isfinite().all(1, keepdim=True)
        symbols = self._bins(torch.where(finite, rows, 0.0), real)
        sums = rows.new_zeros(len(rows), 2**self.bits).scatter_add_(1, symbols, rows)
        counts = rows.new_zeros(len(rows), 2**self.bits).scatter_add_(1, symbols, real)
        means = torch.where(finite, sums / counts.clamp_min(1), torch.nan).to(torch.float32)
        sent = symbols.reshape(-1)[: x.numel()].to(torch.uint8)
        return Payload(sent, Means(means), self.layout(TensorSpec.of(x))), None

    def _bins(self, rows: Tensor, real: Tensor) -> Tensor:
        """The number of each element's bin, int64."""
        sizes = real.sum(1, keepdim=True)
        z = (rows - rows.sum(1, keepdim=True) / sizes) * real
        half = 1 << (self.bits - 1)
        bin_width = REACH / half * (z.square().sum(1, keepdim=True) / sizes).sqrt()
        # Counted from the mean, so that rounding puts nothing on its other side.
        number = (z / torch.where(bin_width > 0, bin_width, 1.0)).clamp(-half, half - 1).floor()
        return number.to(torch.int64) + half

    def decompress(self, payload: Payload[Means]) -> Tensor:
        spec = payload.layout.spec
        symbols = buckets.rows(payload.carrier.to(torch.int64), self.bucket)
        values = payload.side.means.gather(1, symbols).reshape(-1)[: spec.numel]
        return values.to(spec.dtype).view(spec.shape)

    def contraction(self, n: int) -> float:
        d, bins = buckets.width(n, self.bucket), 1 << self.bits
        by_sign = d / (2 * (d * d // 4)) if d > 1 else 1.0
        by_bins: float = (1 - REACH**2 / bins**2) * min(1.0, REACH * (1 - 2 / bins) / sqrt(d))
        return max(by_sign, by_bins)
