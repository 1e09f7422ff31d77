"""Error feedback: what was not sent is kept and added next time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.core.compressor import Compressor, LinearCompressor, check_compressor, floats
from thriftgrad.core.key import Key
from thriftgrad.core.payload import Layout, Payload
from thriftgrad.core.spec import TensorSpec

LARGE = 1 << 40
"""A tensor size at which a claim must hold to be a claim about every tensor."""


class Memory(NamedTuple):
    """The state of error feedback."""

    memory: Tensor  # float32, the tensor's shape: what was not sent
    inner: Any


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Compressor[Memory, Any]):
    """Send C(x + decay * e), keep e' = x + decay * e - C(x + decay * e).

    The memory e is float32 whatever the tensor's type, starts at zero and, for a contraction C, stays bounded:
    |e| <= 2 sqrt(1 - delta) / delta * max |x|, in the root mean square. A tensor with a NaN or an infinity is passed on
    and never enters it. Linear if C is.

    Raises ``ValueError`` if C claims no contraction or takes all tensors as one, or decay lies outside (0, 1];
    ``TypeError`` for tensors that are not floating point.
    Stich et al., Sparsified SGD with Memory, 2018, arXiv:1809.07599; Karimireddy et al., 2019, arXiv:1901.09847.
    """

    compressor: Compressor[Any, Any]
    decay: float = 1.0

    def __new__(cls, compressor: Any = None, decay: float = 1.0) -> ErrorFeedback:
        """Feedback around a linear compressor is linear, and its type says so."""
        return object.__new__(LinearErrorFeedback if isinstance(compressor, LinearCompressor) else cls)

    def __post_init__(self) -> None:
        check_compressor(self.compressor, "ErrorFeedback")
        if not 0 < self.decay <= 1:
            raise ValueError(f"ErrorFeedback: decay must lie in (0, 1], got {self.decay}.")
        if not self.compressor.per_tensor:
            raise ValueError(
                f"ErrorFeedback keeps a memory for each tensor, and {self.compressor!r} takes all tensors as one; "
                "use per_tensor=True."
            )
        if self.compressor.contraction(LARGE) is None:
            raise ValueError(
                f"ErrorFeedback needs a contraction, E|C(x) - x|^2 <= (1 - delta)|x|^2, and {self.compressor!r} claims "
                "none, so its memory could grow without bound; drop the rescaling, use finer levels, or use Shrink."
            )

    def init(self, spec: TensorSpec) -> Memory:
        wide = spec.with_dtype(torch.float32)
        return Memory(wide.zeros(), self.compressor.init(wide))

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        inner = self.compressor.layout(spec.with_dtype(torch.float32), shared)
        return Layout(spec, inner.carrier, inner.side, repr(self), inner.shared)

    def compress(self, x: Tensor, state: Memory, key: Key) -> tuple[Payload[Any], Memory]:
        y = self._corrected(x, state)
        finite = bool(y.isfinite().all())
        # NaN throughout, so that a sparse compressor cannot fail to show it.
        payload, inner = self.compressor.compress(y if finite else torch.full_like(y, torch.nan), state.inner, key)
        sent = Payload(payload.carrier, payload.side, self.layout(TensorSpec.of(x), self.shared(state)))
        return sent, Memory(y - self.compressor.decompress(payload), inner) if finite else state

    def _corrected(self, x: Tensor, state: Memory) -> Tensor:
        return floats(x, self).view(x.shape) + self.decay * state.memory

    def decompress(self, payload: Payload[Any]) -> Tensor:
        spec = payload.layout.spec
        layout = self.compressor.layout(spec.with_dtype(torch.float32), payload.layout.shared)
        return self.compressor.decompress(Payload(payload.carrier, payload.side, layout)).to(spec.dtype)

    def shared(self, state: Memory) -> Any:
        return self.compressor.shared(state.inner)

    def due(self, state: Memory) -> bool:
        return self.compressor.due(state.inner)

    def peaks(self, x: Tensor, state: Memory, key: Key) -> Any:
        return self.compressor.peaks(self._corrected(x, state), state.inner, key)

    def counts(self, x: Tensor, state: Memory, key: Key, peaks: Any) -> Any:
        return self.compressor.counts(self._corrected(x, state), state.inner, key, peaks)

    def adapt(self, state: Memory, peaks: Any, counts: Any) -> Memory:
        return state._replace(inner=self.compressor.adapt(state.inner, peaks, counts))

    @property
    def shares_scale(self) -> bool:
        return self.compressor.shares_scale

    has_memory = True

    def contraction(self, n: int) -> float | None:
        """None: over one step, a map with memory is no function of its input."""
        return None


@dataclass(frozen=True, repr=False)
class LinearErrorFeedback(ErrorFeedback, LinearCompressor[Memory, Any]):
    """Error feedback around a linear compressor; ``ErrorFeedback`` chooses it."""
