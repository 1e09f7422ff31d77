"""Stochastic quantisation on uniform levels."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats


class Scales(NamedTuple):
    """The side information of a bucketed quantiser."""

    scale: Tensor  # float32[ceil(n / bucket)]: the norm of each bucket


@dataclass(frozen=True, repr=False)
class QSGD(Compressor[None, Scales]):
    r"""Unbiased rounding of each coordinate to one of s uniform levels of its bucket's norm, or zero.

    C(x)_i = c sign(x_i) (l + b) / s with l = floor(s |x_i| / c) and b Bernoulli of the fraction left over;
    c is the norm (l2 or linf) of the bucket of consecutive coordinates that x_i lies in; the last may be shorter.

    ``bits`` counts the sign: s = 2**(bits - 1) - 1 levels; or give ``levels`` = s itself.
    Wire: n symbols of ceil(log2(2 s + 1)) bits (s = 1: 1.6 bits) and one float32 norm per bucket.

    Claims: unbiased; with d = min(n, bucket), omega = min(d / s**2, sqrt(d) / s) for l2 and
    min(d / (4 s**2), sqrt(d) / s) for linf; a contraction with delta = 1 - omega where omega < 1.
    A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for bits outside 2 ... 8, levels outside 1 ... 127, both or neither of them, a bucket below 1
    or another norm; ``TypeError`` for tensors that are not floating point.
    Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132. There the theory uses l2 and the experiments linf.

    >>> import torch; from thriftgrad import Key, QSGD
    >>> payload, _ = QSGD(bits=4, bucket=512).compress(torch.randn(1024), None, Key(0))
    >>> payload.nbytes
    520
    """

    bits: int | None = None
    levels: int | None = None
    bucket: int = 512
    norm: Literal["l2", "linf"] = "l2"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise ValueError(f"QSGD: give either bits or levels, got bits={self.bits} and levels={self.levels}.")
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ValueError(f"QSGD: bits must lie in 2 ... 8 (sign included), got {self.bits}.")
        if self.levels is not None and not 1 <= self.levels <= 127:
            raise ValueError(f"QSGD: levels must lie in 1 ... 127, got {self.levels}.")
        if self.bucket < 1:
            raise ValueError(f"QSGD: bucket must be at least 1, got {self.bucket}.")
        if self.norm not in ("l2", "linf"):
            raise ValueError(f'QSGD: norm must be "l2" or "linf", got {self.norm!r}.')

    @property
    def s(self) -> int:
        """The number of levels above zero."""
        if self.levels is not None:
            return self.levels
        assert self.bits is not None
        return int(2 ** (self.bits - 1) - 1)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        symbols = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=2 * self.s + 1)
        scales = TensorSpec((-(-spec.numel // self.bucket),), torch.float32, spec.device)
        return Layout(spec, symbols, Scales(scales), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Scales], None]:
        rows = self._rows(floats(x, self))
        scale = self._norms(rows)
        divisor = torch.where(scale > 0, scale, 1.0)  # NaN is not above 0: its bucket becomes NaN on the way back
        magnitude = (rows.abs() / divisor[:, None]).clamp_max(1.0).nan_to_num(0.0) * self.s
        rounded = kernels.round_stochastic(magnitude.reshape(-1), key.fold("QSGD").seed).view(rows.shape)
        symbols = (rounded.copysign(rows) + self.s).to(torch.uint8).reshape(-1)[: x.numel()]
        return Payload(symbols, Scales(scale), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Scales]) -> Tensor:
        spec = payload.layout.spec
        rows = self._rows((payload.carrier.to(torch.float32) - self.s) / self.s)
        values = (rows * payload.side.scale[:, None]).reshape(-1)[: spec.numel]
        return values.to(spec.dtype).view(spec.shape)

    def _rows(self, flat: Tensor) -> Tensor:
        """Buckets as rows, the last one filled with zeros."""
        width = min(self.bucket, max(flat.numel(), 1))
        return torch.nn.functional.pad(flat, (0, -flat.numel() % width)).view(-1, width)

    def _norms(self, rows: Tensor) -> Tensor:
        if self.norm == "linf":
            norms = rows.abs().amax(1) if rows.numel() else rows.new_zeros(0)
        else:
            # float64, because the square of 1e30 is no float32.
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
            norms = norms.clamp_max(torch.finfo(torch.float32).max).to(torch.float32)
        finite = rows.isfinite().all(1)
        return torch.where(finite, norms, torch.nan)

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        d = min(n, self.bucket)
        dense = d / self.s**2 if self.norm == "l2" else d / (4 * self.s**2)
        return min(dense, sqrt(d) / self.s)
