"""Tensors that may be mostly zeros, without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import Compressor, Key, Layout, Payload, PayloadError, TensorSpec

DENSE, INDEXED, MAPPED = range(3)
"""The first byte of a stream. What follows: all values; their number, indices and values; a bit for each and values."""
COUNT_BYTES = 4
"""In front of the indices."""


class Kind(NamedTuple):
    """The side information of a stream of values."""

    like: Tensor  # [0]: no bytes, but the type that the values were sent in, whatever type the reader wants


@dataclass(frozen=True, repr=False)
class Nonzeros(Compressor[None, Kind]):
    """C(x) = x, bit for bit: what is not zero and where it is, or everything where that is shorter.

    For the way back from a server, where the mean of sparse messages is zero outside the union of their supports:
    ``ParameterServer(ErrorFeedback(TopK(fraction=0.01)), Nonzeros())``. And behind a quantiser whose symbols are mostly
    its zero, as in ``QSGD(bits=2) >> Nonzeros()``. Zero is what has no bit set, so -0.0, NaN and denormals are sent.

    Wire: a stream whose length varies. For k of n elements that are not zero, the shortest of: all n values; k in 4
    bytes, k indices of ceil(log2 n) bits and k values; n bits and k values; and 1 byte that says which. Values travel
    in the tensor's own type, symbols packed. Of float32, indices are best below k = n / log2 n, bits up to 31 n / 32.

    Claims: unbiased with omega = 0, delta = 1, lossless (so it takes tensors of any type). Not linear: its carrier is a
    stream. Raises ``TypeError`` behind a coder, whose stream has no zeros to leave out, and ``PayloadError`` for
    bytes that are no such stream.

    >>> import torch; from thriftgrad import Key, Nonzeros
    >>> x = torch.zeros(1000); x[[3, 600]] = torch.tensor([0.5, -1.0])
    >>> payload, _ = Nonzeros().compress(x, None, Key(0))
    >>> len(payload.carrier), torch.equal(Nonzeros().decompress(payload), x)  # 1 + 4, two indices of 10 bits, 2 floats
    (16, True)
    """

    lossless = True

    def init(self, spec: TensorSpec) -> None:
        return None

    def layout(self, spec: TensorSpec, shared: Any = None) -> Layout:
        if spec.variable:
            raise TypeError(f"{self!r} leaves out zeros, and a coder's stream has none; leave one of the two out.")
        stream = TensorSpec((1 + _nbytes(spec.numel, spec),), torch.uint8, spec.device, variable=True)
        like = TensorSpec((0,), spec.dtype, spec.device)
        return Layout(spec, stream, Kind(like), repr(self))  # type: ignore[arg-type]  # a tree of specs

    def compress(self, x: Tensor, state: None, key: Key) -> tuple[Payload[Kind], None]:
        return self.compress_carrier(x, TensorSpec.of(x), state, key)

    def compress_carrier(self, carrier: Tensor, spec: TensorSpec, state: None, key: Key) -> tuple[Payload[Kind], None]:
        flat = carrier.detach().reshape(-1).contiguous()
        chosen = _nonzero(flat, spec)
        n, k = len(flat), int(chosen.sum())
        lengths = {
            DENSE: _nbytes(n, spec),
            INDEXED: COUNT_BYTES + _index_nbytes(k, n) + _nbytes(k, spec),
            MAPPED: _map_nbytes(n) + _nbytes(k, spec),
        }
        form = min(lengths, key=lambda each: lengths[each])
        parts = [torch.tensor([form], dtype=torch.uint8, device=flat.device)]
        if form == INDEXED:
            count = torch.tensor([*k.to_bytes(COUNT_BYTES, "little")], dtype=torch.uint8, device=flat.device)
            parts += [count, kernels.pack(chosen.nonzero().view(-1), n)]
        elif form == MAPPED:
            parts.append(kernels.pack(chosen, 2))
        parts.append(_packed(flat if form == DENSE else flat[chosen], spec))
        return Payload(torch.cat(parts), Kind(flat[:0]), self.layout(spec)), None

    def decompress(self, payload: Payload[Kind]) -> Tensor:
        spec, dtype, stream = payload.layout.spec, payload.side.like.dtype, payload.carrier
        n, form, rest = spec.numel, int(stream[0]) if len(stream) else None, stream[1:]
        if form == DENSE:
            return _values(rest, n, spec, dtype).to(spec.dtype).view(spec.shape)
        flat = torch.full((n,), spec.zero or 0, dtype=dtype, device=stream.device)
        if form == INDEXED:
            number, rest = _split(rest, COUNT_BYTES)
            count = int.from_bytes(bytes(number.tolist()), "little")
            if count > n:
                raise PayloadError(f"payload: {count} elements are announced where there are {n}; it was altered.")
            indices, rest = _split(rest, _index_nbytes(count, n))
            places = _unpacked(indices, count, n).to(torch.int64)
            if (places.diff() <= 0).any():
                raise PayloadError("payload: indices that do not ascend; it was altered on the way.")
            flat[places] = _values(rest, count, spec, dtype)
        elif form == MAPPED:
            bits, rest = _split(rest, _map_nbytes(n))
            chosen = _unpacked(bits, n, 2) > 0
            flat[chosen] = _values(rest, int(chosen.sum()), spec, dtype)
        else:
            raise PayloadError(f"payload: the first byte of a stream is 0, 1 or 2, got {form}; it was altered.")
        return flat.to(spec.dtype).view(spec.shape)

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def projection(self) -> bool:
        return True

    def variance_bound(self, n: int) -> float:
        return 0.0


def _nonzero(flat: Tensor, spec: TensorSpec) -> Tensor:
    """Which elements have a bit set, or are not the symbol of zero: bool[n]."""
    if spec.alphabet is not None:
        return flat != (spec.zero or 0)
    return (flat.view(torch.uint8).view(len(flat), flat.itemsize) != 0).any(1)


def _nbytes(count: int, spec: TensorSpec) -> int:
    """Bytes of so many elements of a tensor."""
    return TensorSpec((count,), spec.dtype, alphabet=spec.alphabet).nbytes


def _index_nbytes(count: int, n: int) -> int:
    return TensorSpec((count,), torch.int64, alphabet=max(n, 1)).nbytes


def _map_nbytes(n: int) -> int:
    return TensorSpec((n,), torch.uint8, alphabet=2).nbytes


def _packed(values: Tensor, spec: TensorSpec) -> Tensor:
    return values.view(torch.uint8) if spec.alphabet is None else kernels.pack(values, spec.alphabet)


def _values(stream: Tensor, count: int, spec: TensorSpec, dtype: torch.dtype) -> Tensor:
    """The inverse of ``_packed``; ``PayloadError`` unless the rest of the stream is just so many values."""
    if spec.alphabet is not None:
        return _unpacked(_exactly(stream, _nbytes(count, spec)), count, spec.alphabet).to(dtype)
    # A copy, because a view in another type needs an aligned start.
    return _exactly(stream, count * dtype.itemsize).clone().view(dtype)


def _unpacked(stream: Tensor, count: int, alphabet: int) -> Tensor:
    """Symbols; ``PayloadError`` for one outside the alphabet or bits that ``kernels.pack`` does not write."""
    symbols = kernels.unpack(stream, count, alphabet)
    if count and (int(symbols.max()) >= alphabet or not torch.equal(kernels.pack(symbols, alphabet), stream)):
        raise PayloadError(
            f"payload: bits that are no symbols of an alphabet of {alphabet}; it was altered on the way."
        )
    return symbols


def _split(stream: Tensor, nbytes: int) -> tuple[Tensor, Tensor]:
    return _exactly(stream[:nbytes], nbytes), stream[nbytes:]


def _exactly(stream: Tensor, nbytes: int) -> Tensor:
    if len(stream) != nbytes:
        raise PayloadError(f"payload: {nbytes} bytes belong where {len(stream)} are; it was truncated or extended.")
    return stream
