"""Sparsification by magnitude, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.compress import fraction as share
from thriftgrad.compress.buckets import check_integer
from thriftgrad.compress.top_k import Support, ascending
from thriftgrad.core import Compressor, Key, Layout, Payload, PayloadError, TensorSpec, floating


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
        return self._chosen(floating(x, self), TensorSpec.of(x))[0], None

    def split(
        self, x: Tensor, memory: Tensor, decay: float, state: None, key: Key
    ) -> tuple[Payload[Support], Tensor | None, None]:
        owed = kernels.owed(floating(x, self).to(memory.dtype), memory.reshape(-1), decay)
        payload, places = self._chosen(owed, TensorSpec.of(memory))
        finite = bool(payload.carrier.isfinite().all())  # what is not would be among the largest
        rest = owed.index_copy_(0, places, payload.carrier - payload.carrier).view(memory.shape)
        return payload, rest if finite else None, None

    def decompress(self, payload: Payload[Support]) -> Tensor:
        spec = payload.layout.spec
        values = payload.carrier.to(spec.dtype)
        return spec.zeros().view(-1).index_copy_(0, self._places(payload), values).view(spec.shape)

    def add_to(self, total: Tensor, payload: Payload[Support]) -> None:
        kernels.add_at(total.view(-1), self._places(payload), payload.carrier.to(payload.layout.spec.dtype))

    def _chosen(self, flat: Tensor, spec: TensorSpec) -> tuple[Payload[Support], Tensor]:
        """The payload, and where its values were."""
        cut = self._chunks(spec)
        whole = cut.chunks * cut.width
        columns = torch.cat(
            (
                kernels.largest_of_rows(flat[:whole].view(cut.chunks, cut.width), cut.kept),
                kernels.largest_of_rows(flat[whole:].view(1, cut.rest), cut.rest_kept),
            )
        )
        places = columns + self._starts(cut, flat.device)
        return Payload(flat[places], Support(columns), self.layout(spec)), places

    def _places(self, payload: Payload[Support]) -> Tensor:
        cut, columns = self._chunks(payload.layout.spec), payload.side.indices
        if cut.rest_kept and int(columns[-cut.rest_kept :].max()) >= cut.rest:
            raise PayloadError(
                f"payload: index {int(columns[-cut.rest_kept :].max())} of a last chunk of {cut.rest} elements."
            )
        return ascending(columns + self._starts(cut, columns.device))

    def _chunks(self, spec: TensorSpec) -> _Chunks:
        n = spec.numel
        row = spec.shape[-1] if spec.shape else 1
        width = max(1, min(n, row if self.chunk is None else self.chunk))
        chunks, rest = divmod(n, width)
        kept, rest_kept = (share.kept(d, self.fraction, self.k) for d in (width, rest))
        return _Chunks(width, chunks, kept, rest, rest_kept)

    def _starts(self, cut: _Chunks, device: torch.device) -> Tensor:
        """The first coordinate of the chunk that each kept one lies in."""
        whole = (torch.arange(cut.chunks, device=device) * cut.width).repeat_interleave(cut.kept)
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
