"""Sparsification by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.compress import fraction as share
from thriftgrad.core import Compressor, Key, Layout, Payload, PayloadError, TensorSpec, check_compressor, floating

SAMPLE = 1 << 14
"""About how many elements are looked at to guess where the largest begin."""


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
        flat = floating(x, self)
        indices = largest(flat, share.kept(flat.numel(), self.fraction, self.k))
        return Payload(flat[indices], Support(self._coded(indices, flat.numel())), self.layout(TensorSpec.of(x))), None

    def _coded(self, indices: Tensor, n: int) -> Tensor:
        if self.index_coder is None:
            return indices
        gaps = indices.diff(prepend=indices.new_tensor([-1])) - 1
        spec = TensorSpec((len(gaps),), gaps.dtype, gaps.device, alphabet=max(n, 1))
        return self.index_coder.compress_carrier(gaps, spec, self.index_coder.init(spec), Key(0))[0].carrier

    def _indices(self, payload: Payload[Support]) -> Tensor:
        if self.index_coder is None:
            return payload.side.indices
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
        flat = torch.zeros(spec.numel, dtype=spec.dtype, device=payload.carrier.device)
        return flat.index_copy_(0, self._indices(payload), payload.carrier.to(spec.dtype)).view(spec.shape)

    @property
    def projection(self) -> bool:
        return True

    def contraction(self, n: int) -> float | None:
        return share.kept(n, self.fraction, self.k) / n if n else 1.0


def magnitudes(flat: Tensor) -> Tensor:
    """What coordinates are ranked by: NaN counts as an infinity."""
    return flat.abs().nan_to_num(torch.inf, posinf=torch.inf)


def largest(flat: Tensor, k: int) -> Tensor:
    """Indices of the k largest magnitudes, ascending; ties to the lowest index, which torch.topk does not promise.

    Where there are many, a sample tells a magnitude that a little more than k of them are likely to reach, and the
    search goes on among those that do. If they are at least k, the k largest are there, whatever the sample was; if
    not, all are searched.
    """
    n = flat.numel()
    if n >= 4 * SAMPLE and k <= n // 4:
        candidates = _beyond(flat, _likely_floor(flat, k))
        if k <= candidates.numel() <= n // 2:
            return candidates[_largest(flat[candidates], k)]
    return _largest(flat, k)


def _likely_floor(flat: Tensor, k: int) -> Tensor:
    """The magnitude in a strided sample that hardly ever fewer than k reach: four deviations and a bit further down."""
    sample = magnitudes(flat[:: flat.numel() // SAMPLE])
    expected = k * sample.numel() / flat.numel()
    rank = min(sample.numel(), int(expected + 4 * expected**0.5) + 8)
    return sample.topk(rank).values[-1]


def _beyond(flat: Tensor, floor: Tensor) -> Tensor:
    """Indices of all elements of that magnitude or a larger one, NaN among them; comparing takes no copy of numbers."""
    within = flat < floor
    within &= flat > -floor
    return within.logical_not_().nonzero().view(-1)


def _largest(flat: Tensor, k: int) -> Tensor:
    """``largest``, among all."""
    magnitude = magnitudes(flat)
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    threshold = magnitude.topk(k).values[-1]
    above = (magnitude > threshold).nonzero().view(-1)
    tied = (magnitude == threshold).nonzero().view(-1)[: k - above.numel()]
    return torch.cat((above, tied)).sort().values
