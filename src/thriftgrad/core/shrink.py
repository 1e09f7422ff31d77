"""Shrinking: an unbiased compressor becomes a contraction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from thriftgrad.core.compressor import Compressor, LinearCompressor, check_compressor
from thriftgrad.core.feedback import LARGE
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Layout, Payload
from thriftgrad.core.spec import TensorSpec, wide


@dataclass(frozen=True, repr=False)
class Shrink(Compressor[Any, Any]):
    """C(x) / (1 + omega), with omega the variance bound of the unbiased compressor C.

    A contraction with delta = 1 / (1 + omega), for any omega; costs nothing on the wire. Linear if C is.

    Raises ``ValueError`` if C is not unbiased or states no variance bound.
    Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, Lemma 2.
    """

    compressor: Compressor[Any, Any]

    def __new__(cls, compressor: Any = None) -> Shrink:
        """A shrunk linear compressor is linear, and its type says so."""
        return object.__new__(LinearShrink if isinstance(compressor, LinearCompressor) else cls)

    def __post_init__(self) -> None:
        check_compressor(self.compressor, "Shrink")
        if not self.compressor.unbiased or self.compressor.variance_bound(LARGE) is None:
            raise ValueError(
                f"Shrink needs an unbiased compressor with a variance bound, and {self.compressor!r} claims none; "
                "shrink the unbiased stage alone, as in TopK(fraction=0.01) >> Shrink(QSGD(bits=2))."
            )

    def init(self, spec: TensorSpec) -> Any:
        return self.compressor.init(spec)

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        inner = self.compressor.layout(spec, shared)
        return Layout(spec, inner.carrier, inner.side, repr(self), inner.shared)

    def compress(self, x: Tensor, state: Any, key: Key) -> tuple[Payload[Any], Any]:
        payload, after = self.compressor.compress(x, state, key)
        layout = self.layout(payload.layout.spec, payload.layout.shared)
        return replace(payload, layout=layout), after

    def decompress(self, payload: Payload[Any]) -> Tensor:
        spec = payload.layout.spec
        inner = replace(payload, layout=self.compressor.layout(spec, payload.layout.shared))
        full = self.compressor.decompress(inner)
        return (full.to(wide(full.dtype)) * self._factor(spec.numel)).to(full.dtype)

    def shared(self, state: Any) -> Any:
        return self.compressor.shared(state)

    def due(self, state: Any) -> bool:
        return self.compressor.due(state)

    def peaks(self, x: Tensor, state: Any, key: Key) -> Any:
        return self.compressor.peaks(x, state, key)

    def counts(self, x: Tensor, state: Any, key: Key, peaks: Any) -> Any:
        return self.compressor.counts(x, state, key, peaks)

    def adapt(self, state: Any, peaks: Any, counts: Any) -> Any:
        return self.compressor.adapt(state, peaks, counts)

    def leaves_alone(self, spec: TensorSpec) -> bool:
        return self.compressor.leaves_alone(spec)

    @property
    def shares_scale(self) -> bool:
        return self.compressor.shares_scale

    @property
    def per_tensor(self) -> bool:
        return self.compressor.per_tensor

    def contraction(self, n: int) -> float | None:
        return self._factor(n)

    def _factor(self, n: int) -> float:
        omega = self.compressor.variance_bound(n)
        assert omega is not None  # checked when this was made
        return 1 / (1 + omega)


@dataclass(frozen=True, repr=False)
class LinearShrink(Shrink, LinearCompressor[Any, Any]):
    """A shrunk linear compressor; ``Shrink`` chooses it."""
