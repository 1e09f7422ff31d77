"""Natural compression: the sign and a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp
from typing import Any

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import Compressor, Key, Layout, Payload, TensorSpec, floats

NOT_FINITE = 255
"""The exponent that float32 has for what is not finite."""


@dataclass(frozen=True, repr=False)
class NaturalCompression(Compressor[None, tuple[()]]):
    """Each magnitude becomes the power of two below or above it, at random so that E C(x) = x.

    Wire: 9 bits a coordinate, its sign and its float32 exponent; no scale.

    Claims: unbiased with omega = 1/8, delta = 7/8, for coordinates that are zero or of magnitude 2**-126 to 2**127
    (2**15 for float16). Smaller ones are rounded between 0 and 2**-126, greater ones go down. A NaN or an infinity
    becomes NaN, in place.

    Raises ``TypeError`` for tensors that are not floating point.
    Horvath et al., Natural Compression, 2019, arXiv:1905.10988.

    >>> import torch; from thriftgrad import Key
    >>> natural = NaturalCompression()
    >>> natural.decompress(natural.compress(torch.tensor([0.25, -8.0, 0.0]), None, Key(0))[0])
    tensor([ 0.2500, -8.0000,  0.0000])
    """

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        return Layout(spec, TensorSpec((spec.numel,), torch.int16, spec.device, alphabet=512), (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        flat = floats(x, self)
        largest = min(frexp(torch.finfo(x.dtype).max)[1] - 1, 127)  # 2**127, or 2**15 of float16
        seed = key.fold("NaturalCompression").seed
        exponent = kernels.round_to_powers(flat.nan_to_num(0.0, 0.0, 0.0), seed, largest + 127)
        exponent = torch.where(flat.isfinite(), exponent, NOT_FINITE)
        symbols = exponent + 256 * ((flat < 0) & (exponent > 0))
        return Payload(symbols.to(torch.int16), (), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        spec = payload.layout.spec
        symbols = payload.carrier.to(torch.int32)
        exponent = symbols & 255
        magnitudes = torch.where(exponent == NOT_FINITE, torch.nan, (exponent << 23).view(torch.float32))
        return torch.where(symbols > 255, -magnitudes, magnitudes).to(spec.dtype).view(spec.shape)

    @property
    def unbiased(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return 1 / 8
