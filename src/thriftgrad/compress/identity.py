"""No compression: the unit of the algebra and the baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from thriftgrad.core import Key, Layout, LinearCompressor, Payload, TensorSpec


@dataclass(frozen=True, repr=False)
class Identity(LinearCompressor[None, tuple[()]]):
    """C(x) = x, sent as it is: n elements of the tensor's own type.

    Claims: unbiased with omega = 0, delta = 1, lossless, linear.

    >>> import torch; from thriftgrad import Identity, Key
    >>> Identity().compress(torch.ones(3), None, Key(0))[0].nbytes
    12
    """

    lossless = True
    isometric = True
    elementwise = True

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        return Layout(spec, replace(spec, shape=(spec.numel,), name=""), (), repr(self))

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[tuple[()]], None]:
        return Payload(x.detach().reshape(-1), (), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[tuple[()]]) -> Tensor:
        spec = payload.layout.spec
        return payload.carrier if spec.variable else payload.carrier.view(spec.shape)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def projection(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return 0.0
