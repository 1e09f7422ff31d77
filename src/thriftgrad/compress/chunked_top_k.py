"""Sparsification by magnitude, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad.compress import fraction as share
from thriftgrad.compress.buckets import check_integer
from thriftgrad.compress.top_k import Support
from thriftgrad.core import Compressor, Key, Layout, Payload, PayloadError, TensorSpec, floating
from thriftgrad.kernels.sparse import magnitudes


class _Chunks(NamedTuple):
    """How a tensor is cut: whole ``chunks``, of which ``kept`` coordinates remain each, and a shorter last."""

    width: int
    chunks: int
    kept: int
    rest: int
    rest_kept: int


@dataclass(frozen=True, repr=False)
class ChunkedTopK(Compressor[None, Support]):
    """Keep the k = ceil(fraction d) coordinates of largest magnitude (or ``k`` itself) of each run of d = ``chunk``.

    The last chunk may be shorter and keeps ceil(fraction d) of its own d, or min(k, d). ``chunk=None``: each row, along
    the last dimension, is a chunk; of a vector, all of it. Ties go to the lowest index; NaN counts as the largest.
    Wire: the kept values of the tensor's own type, in order, and their indices within their chunks at
    ceil(log2 min(chunk, n)) bits: 12 bits for 4096, whatever the tensor's size. The carrier holds the values.

    Claims: an orthogonal projection with delta = k / chunk, or that of the last chunk if it is less; with
    ``chunk=None`` delta = fraction or min(k, n) / n, since rows may have any length. Exact where no chunk has more than
    k coordinates beside zero.

    Raises ``ValueError`` for a fraction outside (0, 1], k below 1, both or neither, and a chunk below 1; ``TypeError``
    for a chunk that is no integer and tensors that are not floating point.
    The sparsifier of DeMo, 2024, arXiv:2411.19870, and SparseLoCo, 2025, arXiv:2508.15706; their chunks are tiles of 64
    by 64, which ``Tile(chunk=64) >> ChunkedTopK(k=32, chunk=None)`` cuts.

    >>> import torch; from thriftgrad import Key
    >>> compressor = ChunkedTopK(k=1, chunk=4)
    >>> payload, _ = compressor.compress(torch.tensor([1.0, -3.0, 2.0, 0.0, 0.5, -0.5]), None, Key(0))
    >>> payload.side.indices, compressor.decompress(payload)
    (tensor([1, 0]), tensor([ 0.0000, -3.0000,  0.0000,  0.0000,  0.5000,  0.0000]))
    """

    fraction: float | None = None
    k: int | None = None
    chunk: int | None = 4096

    isometric = True

    def __post_init__(self) -> None:
        share.check("ChunkedTopK", self.fraction, self.k)
        if self.chunk is not None:
            check_integer("ChunkedTopK", "chunk", self.chunk)
            if self.chunk < 1:
                raise ValueError(f"ChunkedTopK: chunk must be at least 1, or None for rows, got {self.chunk}.")

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        cut = self._chunks(spec)
        total = cut.chunks * cut.kept + cut.rest_kept
        values = TensorSpec((total,), spec.dtype, spec.device)
        indices = TensorSpec((total,), torch.int64, spec.device, alphabet=cut.width)
        return Layout(spec, values, Support(indices), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Support], None]:
        flat, cut = floating(x, self), self._chunks(TensorSpec.of(x))
        whole = cut.chunks * cut.width
        magnitude = magnitudes(flat)
        indices = torch.cat(
            (
                largest_of_rows(magnitude[:whole].view(cut.chunks, cut.width), cut.kept),
                largest_of_rows(magnitude[whole:].view(1, cut.rest), cut.rest_kept),
            )
        )
        values = flat[indices + self._starts(cut, flat)]
        return Payload(values, Support(indices), self.layout(TensorSpec.of(x))), None

    def decompress(self, payload: Payload[Support]) -> Tensor:
        spec, indices = payload.layout.spec, payload.side.indices
        cut = self._chunks(spec)
        if cut.rest_kept and int(indices[-cut.rest_kept :].max()) >= cut.rest:
            raise PayloadError(
                f"payload: index {int(indices[-cut.rest_kept :].max())} of a last chunk of {cut.rest} elements."
            )
        flat = torch.zeros(spec.numel, dtype=spec.dtype, device=payload.carrier.device)
        return flat.index_copy_(0, indices + self._starts(cut, flat), payload.carrier.to(spec.dtype)).view(spec.shape)

    def _chunks(self, spec: TensorSpec) -> _Chunks:
        n = spec.numel
        row = spec.shape[-1] if spec.shape else 1
        width = max(1, min(n, row if self.chunk is None else self.chunk))
        chunks, rest = divmod(n, width)
        kept, rest_kept = (share.kept(d, self.fraction, self.k) for d in (width, rest))
        return _Chunks(width, chunks, kept, rest, rest_kept)

    def _starts(self, cut: _Chunks, flat: Tensor) -> Tensor:
        """The first coordinate of the chunk that each kept one lies in."""
        whole = (torch.arange(cut.chunks, device=flat.device) * cut.width).repeat_interleave(cut.kept)
        return torch.cat((whole, whole.new_full((cut.rest_kept,), cut.chunks * cut.width)))

    @property
    def projection(self) -> bool:
        return True

    def contraction(self, n: int) -> float | None:
        if not n:
            return 1.0
        if self.chunk is None:
            return min(self.k, n) / n if self.k is not None else float(self.fraction or 0.0)
        cut = self._chunks(TensorSpec((n,)))
        return min(cut.kept / cut.width, cut.rest_kept / cut.rest if cut.rest else 1.0)


def largest_of_rows(magnitude: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, row by row and ascending, int64[rows k]; ties to the lowest column."""
    if not len(magnitude) * k:
        return torch.empty(0, dtype=torch.int64, device=magnitude.device)
    threshold = magnitude.topk(k, sorted=True).values[:, -1:]
    chosen = magnitude >= threshold
    crowded = chosen.sum(1) > k  # where more than there is room for share the last place, the first of them get it
    if crowded.any():
        level, last = magnitude[crowded], threshold[crowded]
        tied = level == last
        room = k - (level > last).sum(1, keepdim=True)
        chosen[crowded] = (level > last) | (tied & (tied.cumsum(1) <= room))
    return chosen.nonzero()[:, 1]
