"""Sparsification by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress import fraction as share
from thriftgrad.core import Compressor, Key, Layout, Payload, PayloadError, TensorSpec, check_compressor, floating


class Support(NamedTuple):
    """The side information of a sparsifier."""

    indices: Tensor  # int64[k], ascending; with an index coder, the stream of their gaps


@dataclass(frozen=True, repr=False)
class TopK(Compressor[None, Support]):
    """Keep the k = ceil(fraction n) coordinates of largest magnitude (or ``k`` itself, at most n), drop the rest.

    Ties go to the lowest index; NaN counts as the largest magnitude.
    Wire: k values of the tensor's own type and k indices of ceil(log2 n) bits, or what a lossless ``index_coder``
    makes of the gaps between them, as in ``TopK(fraction=0.01, index_coder=GolombRice())``. The carrier holds the
    values, so that ``TopK(fraction=0.01) >> QSGD(bits=4)`` quantises them.

    Claims: an orthogonal projection with delta = k / n. Exact on k-sparse tensors.

    Raises ``ValueError`` for a fraction outside (0, 1], k below 1, both or neither, or an index coder that is lossy;
    ``TypeError`` for tensors that are not floating point.
    Stich et al., Sparsified SGD with Memory, 2018, arXiv:1809.07599.

    >>> import torch; from thriftgrad import Key, TopK
    >>> compressor = TopK(k=2)
    >>> payload, _ = compressor.compress(torch.tensor([3.0, -1.0, 0.5, -2.0, 0.0]), None, Key(0))
    >>> compressor.decompress(payload)
    tensor([ 3.,  0.,  0., -2.,  0.])
    """

    fraction: float | None = None
    k: int | None = None
    index_coder: Compressor[Any, Any] | None = None

    isometric = True

    def __post_init__(self) -> None:
        share.check("TopK", self.fraction, self.k)
        if self.index_coder is not None:
            check_compressor(self.index_coder, "TopK (index_coder)")
            if not self.index_coder.lossless:
                raise ValueError(
                    f"TopK: indices must come back as they were, and the index_coder {self.index_coder!r} is lossy; "
                    "use GolombRice() or Elias()."
                )

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        k = share.kept(spec.numel, self.fraction, self.k)
        values = TensorSpec((k,), spec.dtype, spec.device)
        indices = TensorSpec((k,), torch.int64, spec.device, alphabet=max(spec.numel, 1))
        if self.index_coder is not None:
            indices = self.index_coder.layout(indices).carrier
        return Layout(spec, values, Support(indices), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Support], None]:
        chosen = kernels.choose_largest(floating(x, self), self._kept(x))
        return self._payload(chosen, TensorSpec.of(x)), None

    def split(
        self, x: Tensor, memory: Tensor, decay: float, state: None, key: Key
    ) -> tuple[Payload[Support], Tensor | None, None]:
        flat = floating(x, self).to(memory.dtype)
        chosen = kernels.choose_largest(flat, self._kept(x), memory.reshape(-1), decay)
        return self._payload(chosen, TensorSpec.of(memory)), chosen.finite_rest(memory.shape), None

    def _kept(self, x: Tensor) -> int:
        return share.kept(x.numel(), self.fraction, self.k)

    def _payload(self, chosen: kernels.Chosen, spec: TensorSpec) -> Payload[Support]:
        return Payload(chosen.values, Support(self._coded(chosen.indices, spec.numel)), self.layout(spec))

    def _coded(self, indices: Tensor, n: int) -> Tensor:
        if self.index_coder is None:
            return indices
        gaps = indices.diff(prepend=indices.new_tensor([-1])) - 1
        spec = TensorSpec((len(gaps),), gaps.dtype, gaps.device, alphabet=max(n, 1))
        return self.index_coder.compress_carrier(gaps, spec, self.index_coder.init(spec), Key(0))[0].carrier

    def _indices(self, payload: Payload[Support]) -> Tensor:
        if self.index_coder is None:
            return ascending(payload.side.indices)
        n, k = payload.layout.spec.numel, payload.carrier.numel()
        spec = TensorSpec((k,), torch.int64, payload.carrier.device, alphabet=max(n, 1))
        layout = self.index_coder.layout(spec)  # without loss there is no side information
        gaps = self.index_coder.decompress(Payload(payload.side.indices, layout.side, layout))
        indices = (gaps + 1).cumsum(0) - 1
        if k and int(indices[-1]) >= n:
            raise PayloadError(f"payload: index {int(indices[-1])} of a tensor of {n} elements.")
        return indices

    def decompress(self, payload: Payload[Support]) -> Tensor:
        spec = payload.layout.spec
        whole = spec.zeros()
        whole.view(-1).index_copy_(0, self._indices(payload), payload.carrier.to(spec.dtype))
        return whole

    def add_to(self, total: Tensor, payload: Payload[Support]) -> None:
        kernels.add_at(total.view(-1), self._indices(payload), payload.carrier.to(payload.layout.spec.dtype))

    @property
    def projection(self) -> bool:
        return True

    def contraction(self, n: int) -> float | None:
        return share.kept(n, self.fraction, self.k) / n if n else 1.0


def ascending(indices: Tensor) -> Tensor:
    """The same indices; ``PayloadError`` unless each is above the one before, so that none is there twice."""
    if (indices.diff() <= 0).any():
        raise PayloadError("payload: indices that do not ascend; it was altered on the way.")
    return indices
