"""1-bit SGD's quantiser: two centroids a bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.compress import buckets
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats


class Centroids(NamedTuple):
    """The side information of a quantiser with two levels."""

    below: Tensor  # float32[ceil(n / bucket)]: the mean of each bucket's negative coordinates
    above: Tensor  # float32[ceil(n / bucket)]: the mean of the others


@dataclass(frozen=True, repr=False)
class OneBit(Compressor[None, Centroids]):
    """C(x)_i = the mean of the coordinates of x_i's bucket that have its sign, where zero has the sign +.

    Wire: n bits and two float32 per bucket; bucket 64 makes 2 bits a coordinate. ``bucket=None``: the whole tensor.

    Claims: a contraction with delta = 1 / min(n, bucket), for error feedback; exactly, |x - C(x)|^2 = |x|^2 less
    (sum of the positive)^2 / their number and (sum of the negative)^2 / theirs. A bucket with a NaN or an infinity
    decompresses to NaN.

    Raises ``ValueError`` for a bucket below 1; ``TypeError`` for tensors that are not floating point.
    Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; there a bucket is a column of the weight matrix.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = OneBit().compress(torch.tensor([3.0, -1.0, 1.0, -2.0]), None, Key(0))
    >>> OneBit().decompress(payload)
    tensor([ 2.0000, -1.5000,  2.0000, -1.5000])
    """

    bucket: int | None = 512

    def __post_init__(self) -> None:
        if self.bucket is not None:
            buckets.check_bucket("OneBit", self.bucket)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        bits = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=2)
        mean = TensorSpec((buckets.count(spec.numel, self.bucket),), torch.float32, spec.device)
        return Layout(spec, bits, Centroids(mean, mean), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Centroids], None]:
        flat = floats(x, self)
        bits = (flat >= 0).to(torch.uint8)
        rows = buckets.rows(flat, self.bucket)
        real = buckets.rows(torch.ones_like(flat), self.bucket) > 0  # not the filling of the last one
        centroids = Centroids(_means(rows, real & (rows < 0)), _means(rows, real & (rows >= 0)))
        return Payload(bits, centroids, self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Centroids]) -> Tensor:
        spec, side = payload.layout.spec, payload.side
        bits = buckets.rows(payload.carrier, self.bucket) > 0
        values = torch.where(bits, side.above[:, None], side.below[:, None]).reshape(-1)[: spec.numel]
        return values.to(spec.dtype).view(spec.shape)

    def contraction(self, n: int) -> float | None:
        return 1 / buckets.width(n, self.bucket)


def _means(rows: Tensor, chosen: Tensor) -> Tensor:
    """The mean of each row's chosen elements, zero where there are none, NaN where the row is not finite."""
    sums = torch.where(chosen, rows, 0.0).sum(1, dtype=torch.float64)
    means = (sums / chosen.sum(1).clamp_min(1)).to(torch.float32)
    return torch.where(rows.isfinite().all(1), means, torch.nan)
