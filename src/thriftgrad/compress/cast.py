"""Half precision: the baseline that every compressor has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec, all_finite, floats

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, repr=False)
class Cast(LinearCompressor[None, tuple[()]]):
    """C(x) = x rounded to bfloat16 or float16, nearest even: 2 n bytes.

    A finite value beyond float16's range becomes its largest number, not an infinity.
    Claims: linear (to the precision of the type); bf16: delta = 1 - 2**-16 for magnitudes of at least 2**-126. fp16
    claims no contraction, because it loses what lies below 2**-25.

    Raises ``ValueError`` for another type.

    >>> import torch; from thriftgrad import Cast, Key
    >>> Cast("bf16").compress(torch.ones(3), None, Key(0))[0].nbytes
    6
    """

    to: Literal["bf16", "fp16"]

    isometric = True
    elementwise = True

    def __post_init__(self) -> None:
        if self.to not in DTYPES:
            raise ValueError(f'Cast: the type must be "bf16" or "fp16", got {self.to!r}.')

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        return Layout(spec, TensorSpec((spec.numel,), DTYPES[self.to], spec.device), (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        kind = DTYPES[self.to]
        flat = floats(x, self)
        carrier = flat.to(kind)
        if not all_finite([carrier]):  # what is finite but beyond the type's range becomes its largest number
            largest = torch.finfo(kind).max
            carrier = torch.where(flat.isfinite(), flat.clamp(-largest, largest), flat).to(kind)
        return Payload(carrier, (), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        spec = payload.layout.spec
        return payload.carrier.to(spec.dtype).view(spec.shape)

    def contraction(self, n: int) -> float | None:
        return 1 - 2.0**-16 if self.to == "bf16" else None
