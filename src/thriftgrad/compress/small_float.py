"""Floating-point numbers of eight and four bits, with a scale for each bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress import buckets
from thriftgrad.compress.buckets import Scales
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats

Format = Literal["e4m3", "e5m2", "e2m1", "e3m0"]


class Fields(NamedTuple):
    """The bits of a format behind its sign, and the code of its largest number."""

    exponent_bits: int
    mantissa_bits: int
    largest_code: int

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def magnitudes(self) -> Tensor:
        """The numbers from zero up, float64[largest_code + 1]; exponent 0 has no leading one."""
        codes = torch.arange(self.largest_code + 1)
        exponents, mantissas = codes >> self.mantissa_bits, codes % 2**self.mantissa_bits
        bias = 2 ** (self.exponent_bits - 1) - 1
        significands = (exponents > 0) + mantissas.to(torch.float64) * 2.0**-self.mantissa_bits
        numbers: Tensor = significands * 2.0 ** (exponents.clamp_min(1) - bias).to(torch.float64)
        return numbers


FORMATS = {
    "e4m3": Fields(4, 3, 0x7E),  # 0x7F is its NaN
    "e5m2": Fields(5, 2, 0x7B),  # 0x7C is its infinity, what follows its NaNs
    "e2m1": Fields(2, 1, 0x7),
    "e3m0": Fields(3, 0, 0x7),
}


@dataclass(frozen=True, repr=False)
class SmallFloat(Compressor[None, Scales]):
    """C(x)_i = s times the number of a small floating-point format that is nearest to x_i / s; ties to the even code.

    The largest magnitude c of each bucket becomes the format's largest number F: s = c / F. ``bucket=None``: the whole
    tensor. Formats: ``"e4m3"`` (F = 448) and ``"e5m2"`` (57344), as hardware has them; ``"e2m1"``: 0, 0.5, 1, 1.5, 2,
    3, 4, 6 (the elements of MXFP4); ``"e3m0"``: 0 and the powers of two from 1/4 to 16; all with both signs.

    Wire: n symbols, the format's own codes, of 8 or 4 bits, and one float32, c, per bucket. Zero is always 0x0.

    Claims: a contraction. With d = min(n, bucket), t_i the numbers of the format from 0 to F, m_i the middle of t_i and
    t_(i + 1), h_i half their distance: 1 - delta = max over i of (d - 1) h_i**2 / (F**2 + (d - 1) m_i**2), and no
    greater delta holds for all x. Proof: c is sent exactly; from one t_i to the next, (error)**2 - (1 - delta) x**2 is
    convex up to the middle and falls behind it, so is greatest there or at 0, and it is at most (1 - delta) F**2 /
    (d - 1) there; sum over the d - 1 others. So delta >= 1 / d; near 1 - (2**(mantissa bits + 1) + 1)**-2 where little
    underflows, as of eight bits. A bucket with a NaN or an infinity decompresses to NaN.

    Raises ``ValueError`` for another format or a bucket below 1; ``TypeError`` for tensors that are not floating point.
    Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433; Rouhani et al., Microscaling Data
    Formats, 2023, arXiv:2310.10537, where the scales are powers of two of 32 elements. Streaming DiLoCo
    (arXiv:2501.18512) is said to send E3M0; its exact format was not verified.

    >>> import torch; from thriftgrad import Key
    >>> payload, _ = SmallFloat("e2m1").compress(torch.tensor([12.0, -7.0, 2.4, 0.4]), None, Key(0))
    >>> SmallFloat("e2m1").decompress(payload)  # twice 6, -4, 1 and 0: 3.5 lies between 3 and 4, and 4 is even
    tensor([12., -8.,  2.,  0.])
    """

    format: Format
    bucket: int | None = 512

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f'SmallFloat: format must be "e4m3", "e5m2", "e2m1" or "e3m0", got {self.format!r}.')
        if self.bucket is not None:
            buckets.check_bucket("SmallFloat", self.bucket)

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        alphabet = 2 ** FORMATS[self.format].bits
        symbols = TensorSpec((spec.numel,), torch.uint8, spec.device, alphabet=alphabet, zero=0)
        scales = TensorSpec((buckets.count(spec.numel, self.bucket),), torch.float32, spec.device)
        return Layout(spec, symbols, Scales(scales), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Scales], None]:
        rows = buckets.rows(floats(x, self), self.bucket)
        largest = kernels.bucket_norms(rows, "linf")
        numbers = FORMATS[self.format].magnitudes.to(rows.device)
        # float64, in which s is neither zero nor infinite, and exact where c / F is a power of two.
        v = rows.to(torch.float64) * (numbers[-1] / torch.where(largest > 0, largest, 1.0).to(torch.float64))[:, None]
        codes = torch.bucketize(v.abs().nan_to_num(0.0, 0.0), _thresholds(numbers))
        negative = (v < 0) & (codes > 0)
        symbols = codes + negative * 2 ** (FORMATS[self.format].bits - 1)
        flat = symbols.to(torch.uint8).reshape(-1)[: x.numel()]
        return Payload(flat, Scales(largest), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Scales]) -> Tensor:
        spec, fields = payload.layout.spec, FORMATS[self.format]
        numbers = fields.magnitudes
        # What stands for no number, such as the code of an infinity, becomes NaN.
        half = torch.nn.functional.pad(numbers, (0, 2 ** (fields.bits - 1) - len(numbers)), value=torch.nan)
        table = torch.cat((half, -half)).to(payload.carrier.device)
        rows = buckets.rows(table[payload.carrier.to(torch.int64)], self.bucket)
        values = (rows * (payload.side.scale.to(torch.float64) / numbers[-1])[:, None]).reshape(-1)[: spec.numel]
        return values.to(torch.float32).to(spec.dtype).view(spec.shape)

    def contraction(self, n: int) -> float:
        numbers, others = FORMATS[self.format].magnitudes, buckets.width(n, self.bucket) - 1
        middle, half = (numbers[1:] + numbers[:-1]) / 2, numbers.diff() / 2
        lost = others * half.square() / (numbers[-1] ** 2 + others * middle.square())
        return 1 - float(lost.max())


def _thresholds(numbers: Tensor) -> Tensor:
    """The least upper ends of what is rounded to each number but the last: the middle goes to the even code."""
    middle = (numbers[1:] + numbers[:-1]) / 2
    odd = torch.arange(len(middle), device=numbers.device) % 2 == 1
    return torch.where(odd, torch.nextafter(middle, torch.zeros_like(middle)), middle)
