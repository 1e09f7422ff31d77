"""Stochastic quantisation on fixed levels: uniform (QSGD) and exponential (NUQSGD)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from thriftgrad import kernels, theory
from thriftgrad.compress import buckets
from thriftgrad.compress.buckets import Norm
from thriftgrad.compress.quantizer import LevelQuantizer, check_bits
from thriftgrad.core import TensorSpec


@dataclass(frozen=True, repr=False)
class QSGD(LevelQuantizer[None]):
    r"""Unbiased rounding of each coordinate to one of s uniform levels of its bucket's norm, or zero.

    C(x)_i = c sign(x_i) (l + b) / s with l = floor(s |x_i| / c) and b Bernoulli of the fraction left over;
    c is the norm (l2 or linf) of the bucket of consecutive coordinates that x_i lies in; the last may be shorter.
    ``bucket=None``: the whole tensor is one bucket.

    ``bits`` counts the sign: s = 2**(bits - 1) - 1 levels; or give ``levels`` = s itself. ``include_zero=False``: all
    2**bits levels from -c to c, evenly spaced, none of them 0, as the code of later papers has it.
    ``per_tensor=False``: all tensors of a call (a DDP bucket, or the model) are quantised as one vector.
    Wire: n symbols of ceil(log2(2 s + 1)) bits (s = 1: 1.6 bits) and one float32 norm per bucket.

    Claims: unbiased; with d = min(n, bucket), omega = min(d / s**2, sqrt(d) / s) for l2 and
    min(d / (4 s**2), sqrt(d) / s) for linf; d / (2**bits - 1)**2 without zero; a contraction with delta = 1 - omega
    where omega < 1. A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for bits outside 2 ... 8 (1 ... 8 without zero), levels outside 1 ... 255, both or neither of
    them, a bucket below 1 or another norm; ``TypeError`` for tensors that are not floating point.
    Alistarh et al., QSGD, NeurIPS 2017, arXiv:1610.02132. There the theory uses l2 and the experiments linf.

    >>> import torch; from thriftgrad import Key, QSGD
    >>> payload, _ = QSGD(bits=4, bucket=512).compress(torch.randn(1024), None, Key(0))
    >>> payload.nbytes
    520
    """

    bits: int | None = None
    levels: int | None = None
    bucket: int | None = 512
    norm: Norm = "l2"
    _: KW_ONLY
    include_zero: bool = True
    per_tensor: bool = True

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise ValueError(f"QSGD: give either bits or levels, got bits={self.bits} and levels={self.levels}.")
        if self.bits is not None:
            check_bits("QSGD", self.bits, self.include_zero)
        elif not self.include_zero:
            raise ValueError(
                f"QSGD: levels={self.levels} counts those above zero, which include_zero=False leaves out; give bits."
            )
        if self.levels is not None:
            buckets.check_integer("QSGD", "levels", self.levels)
        if self.levels is not None and not 1 <= self.levels <= 255:
            raise ValueError(f"QSGD: levels must lie in 1 ... 255, got {self.levels}.")
        if self.bucket is not None:
            buckets.check_bucket("QSGD", self.bucket)
        buckets.check_norm("QSGD", self.norm)

    @property
    def intervals(self) -> int:
        """The number of intervals between -1 and 1: 2 s, or 2**bits - 1 without zero."""
        if self.levels is not None:
            return 2 * self.levels
        assert self.bits is not None
        return int(2**self.bits) - (2 if self.include_zero else 1)

    def init(self, spec: TensorSpec) -> None:
        return None

    def table(self, shared: Any = None) -> Tensor:
        steps = torch.arange(self.intervals + 1, dtype=torch.float32)
        return (2 * steps - self.intervals) / self.intervals

    def _quantised(
        self, x: Tensor, shared: Any, seed: int, memory: Tensor | None = None, decay: float = 1.0
    ) -> kernels.Quantised:
        """On uniform levels around zero rounding needs no search: the distance from zero, in levels."""
        if not self.include_zero:
            return super()._quantised(x, shared, seed, memory, decay)
        width = buckets.width(x.numel(), self.bucket)
        return kernels.quantise_uniform(x, self.intervals // 2, width, self.norm, seed, memory, decay)

    def variance_bound(self, n: int) -> float:
        d = buckets.width(n, self.bucket)
        if not self.include_zero:
            return d / self.intervals**2 if d > 1 else 0.0
        s = self.intervals // 2
        omega = theory.qsgd_variance_bound(d, s)
        return min(omega, d / (4 * s**2)) if self.norm == "linf" else omega


@dataclass(frozen=True, repr=False)
class NUQSGD(LevelQuantizer[None]):
    """Unbiased rounding to powers of two of the bucket's norm: 0, 2**-s ... 1/2, 1.

    C(x)_i = c sign(x_i) times the level below or above |x_i| / c, at random; c is the norm of the bucket.
    ``bits`` counts the sign: s = 2**(bits - 1) - 2. ``include_zero=False``: 2**bits levels, 2**-j for j below
    2**(bits - 1) with both signs, as in the authors' code; the paper's theory does not hold for it.
    ``per_tensor=False``: all tensors of a call (a DDP bucket, or the model) are quantised as one vector.
    Wire: n symbols of ``bits`` bits (bits=2: 1.6 bits) and one float32 norm per bucket.

    Claims: unbiased; with d = min(n, bucket), omega = 1/8 + 2**(-2 s - 2) d if d < 2**(2 s + 2), else
    2**-s sqrt(d) - 7/8; without zero, 1/8 + d 4**(1 - 2**(bits - 1)). A contraction with delta = 1 - omega where
    omega < 1. A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for bits outside 2 ... 8 (1 ... 8 without zero), a bucket below 1 or another norm;
    ``TypeError`` for tensors that are not floating point.
    Ramezani-Kebrya et al., NUQSGD, JMLR 2021, arXiv:1908.06077.

    >>> NUQSGD(bits=3).table().tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """

    bits: int
    bucket: int = 512
    norm: Norm = "l2"
    _: KW_ONLY
    include_zero: bool = True
    per_tensor: bool = True

    def __post_init__(self) -> None:
        check_bits("NUQSGD", self.bits, self.include_zero)
        buckets.check_bucket("NUQSGD", self.bucket)
        buckets.check_norm("NUQSGD", self.norm)

    def init(self, spec: TensorSpec) -> None:
        return None

    def table(self, shared: Any = None) -> Tensor:
        return torch.from_numpy(theory.amq_levels(0.5, self.bits, self.include_zero)).to(torch.float32)

    def variance_bound(self, n: int) -> float:
        d = buckets.width(n, self.bucket)
        if self.include_zero:
            return theory.nuqsgd_variance_bound(d, 2 ** (self.bits - 1) - 2)
        return theory.variance_bound(theory.amq_levels(0.5, self.bits, include_zero=False), d)
