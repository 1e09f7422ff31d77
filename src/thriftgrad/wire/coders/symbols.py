"""What all coders share: symbols in and out of tensors, counts, packing to a fixed width."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thriftgrad import kernels
from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import Bytes, Ints

LARGEST = 1 << 44
"""The largest alphabet: its Elias codes fit the windows that are read at once."""
COUNT_BYTES = 4
"""In front of a stream whose number of symbols the spec does not say."""


def alphabet_of(spec: TensorSpec, coder: object) -> int:
    """How many symbols there are; ``TypeError`` where a tensor holds no symbols."""
    if spec.alphabet is None and spec.dtype != torch.uint8:
        raise TypeError(
            f"{coder!r} codes integer symbols, and a carrier of {spec.dtype} has no alphabet; "
            "put a quantiser in front of it, or use Zstd(), which takes the bytes of any tensor."
        )
    alphabet = 256 if spec.alphabet is None else spec.alphabet
    if not 1 <= alphabet <= LARGEST:
        raise ValueError(f"{coder!r}: the alphabet must have 1 to 2**44 symbols, got {alphabet}.")
    return alphabet


def model_of(spec: TensorSpec, coder: object) -> tuple[float, ...] | None:
    """The symbols' probabilities, to any scale, if both ends know them; ``ValueError`` if they are none."""
    model = spec.probabilities
    if model is None:
        return None
    if len(model) != spec.alphabet or not all(0 <= p < math.inf for p in model) or not 0 < math.fsum(model) < math.inf:
        raise ValueError(
            f"{coder!r}: the carrier's probabilities must be {spec.alphabet} numbers >= 0 with a sum > 0, got {model}."
        )
    return model


def flat_symbols(symbols: Tensor, spec: TensorSpec, coder: object) -> tuple[Tensor, int, int]:
    """The symbols, flat and on the CPU, the lowest and the highest (0 if there are none).

    ``ValueError`` if they are not what the spec says.
    """
    alphabet = alphabet_of(spec, coder)
    check_numel(symbols, spec, coder)
    values = symbols.detach().reshape(-1).cpu().contiguous()
    low, high = (int(end) for end in values.aminmax()) if len(values) else (0, 0)
    if low < 0 or high >= alphabet:
        raise ValueError(f"{coder!r}: symbols lie in [0, {alphabet}), got some in [{low}, {high}].")
    return values, low, high


def values_of(symbols: Tensor, spec: TensorSpec, coder: object) -> Ints:
    """``flat_symbols`` as an int64 array."""
    values: Ints = flat_symbols(symbols, spec, coder)[0].to(torch.int64).numpy()
    return values


def check_numel(x: Tensor, spec: TensorSpec, coder: object) -> None:
    """``ValueError`` unless a tensor has as many elements as its spec says."""
    if x.numel() != spec.numel and not (spec.variable and x.numel() < spec.numel):
        most = "at most " if spec.variable else ""
        raise ValueError(f"{coder!r}: the spec says {most}{spec.numel} elements, got {x.numel()}.")


def tensor_of(values: NDArray[Any], spec: TensorSpec) -> Tensor:
    """Decoded symbols in the spec's type, shape and place."""
    return shaped(torch.from_numpy(values), spec)


def shaped(values: Tensor, spec: TensorSpec) -> Tensor:
    """``tensor_of``, of a flat tensor."""
    symbols = values.to(spec.device, spec.dtype)
    return symbols if spec.variable else symbols.view(spec.shape)


def stream_of(coded: Bytes, count: int, spec: TensorSpec, symbols: Tensor) -> Tensor:
    """The stream where the symbols lie, behind their number if only the sender knows it."""
    return torch.cat((prefix_of(count, spec), torch.from_numpy(coded))).to(symbols.device)


def prefix_of(count: int, spec: TensorSpec) -> Tensor:
    """The number of symbols as bytes, uint8; none of them if the spec says it."""
    prefix = count.to_bytes(COUNT_BYTES, "little") if spec.variable else b""
    return torch.tensor([*prefix], dtype=torch.uint8)


def bytes_of(stream: Tensor) -> Bytes:
    """A received stream as an array; ``PayloadError`` if it is no flat uint8 tensor."""
    if stream.dtype != torch.uint8 or stream.dim() != 1:
        raise PayloadError(f"payload: expected a flat uint8 tensor, got {stream.dtype} of {tuple(stream.shape)}.")
    return stream.contiguous().cpu().numpy()


def split(stream: Tensor, spec: TensorSpec) -> tuple[int, Bytes]:
    """How many symbols a received stream holds, and the codes: the inverse of ``stream_of``."""
    coded = bytes_of(stream)
    if not spec.variable:
        return spec.numel, coded
    if len(coded) < COUNT_BYTES:
        raise PayloadError(f"payload: {len(coded)} bytes cannot hold the number of symbols; it was truncated.")
    count = int.from_bytes(coded[:COUNT_BYTES].tobytes(), "little")
    if count > spec.numel:
        raise PayloadError(f"payload: {count} symbols are announced, and there cannot be more than {spec.numel}.")
    return count, coded[COUNT_BYTES:]


def prefix_bytes(spec: TensorSpec) -> int:
    """Bytes that the number of symbols takes in front of a stream."""
    return COUNT_BYTES if spec.variable else 0


def packed_bytes(count: int, alphabet: int) -> int:
    """Bytes of symbols packed to a fixed width."""
    return TensorSpec((count,), torch.int64, alphabet=alphabet).nbytes


def packed(values: NDArray[Any], alphabet: int) -> Bytes:
    """Symbols packed to a fixed width."""
    return kernels.pack(torch.from_numpy(values), alphabet).numpy()


def unpacked(coded: Bytes, count: int, alphabet: int) -> NDArray[Any]:
    """The inverse of ``packed``; ``PayloadError`` for anything that ``packed`` does not write."""
    if len(coded) != packed_bytes(count, alphabet):
        raise PayloadError(
            f"payload: {count} symbols take {packed_bytes(count, alphabet)} bytes, got {len(coded)}; "
            "it was truncated or extended."
        )
    values: NDArray[Any] = kernels.unpack(torch.from_numpy(coded.copy()), count, alphabet).numpy()
    if count and int(values.max()) >= alphabet:
        raise PayloadError(f"payload: symbol {int(values.max())} outside the alphabet of {alphabet}.")
    if not np.array_equal(packed(values, alphabet), coded):
        raise PayloadError("payload: the bits that fill the last byte are not zero; it was altered on the way.")
    return values


def optional(package: str, coder: object) -> Any:
    """A package that only one coder needs; ``ImportError`` says how to get it."""
    try:
        return import_module(package)
    except ImportError:
        raise ImportError(
            f"{coder!r} needs the package {package}; install it, for instance with the extra thriftgrad[coders]."
        ) from None
