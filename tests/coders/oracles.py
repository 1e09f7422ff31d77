"""The codes again, as text of 0 and 1, in plain Python: what the vectorised coders must equal bit for bit."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thriftgrad import PayloadError, TensorSpec
from thriftgrad.wire.coders import Coder


def gamma(number: int) -> str:
    binary = f"{number:b}"
    return "0" * (len(binary) - 1) + binary


def delta(number: int) -> str:
    binary = f"{number:b}"
    return gamma(len(binary)) + binary[1:]


def omega(number: int) -> str:
    """The recursive code: a 0, before it the number, before that the length of the number less one, and so on."""
    code = "0"
    while number > 1:
        binary = f"{number:b}"
        code = binary + code
        number = len(binary) - 1
    return code


def rice(number: int, k: int, width: int, escape: int = 24) -> str:
    quotient = number >> k
    if quotient >= escape:
        return "0" * escape + f"{number:b}".zfill(width) if width else "0" * escape
    return "0" * quotient + "1" + (f"{number % (1 << k):b}".zfill(k) if k else "")


def bits_of(stream: Tensor) -> str:
    return "".join(f"{byte:08b}" for byte in stream.tolist())


def stream_of(bits: str) -> Tensor:
    """Bits to bytes, the last one filled with zeros."""
    bits += "0" * (-len(bits) % 8)
    return torch.tensor([int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)], dtype=torch.uint8)


def huffman_cost(weights: Sequence[int]) -> int:
    """The sum of weight * length of a best prefix code, without a limit on lengths: merged weights, summed."""
    heap = [weight for weight in weights if weight]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        cost += merged
        heapq.heappush(heap, merged)
    return cost


def entropy_bits(symbols: Tensor) -> float:
    """Empirical entropy, bits a symbol."""
    shares = np.unique(symbols.numpy(), return_counts=True)[1] / symbols.numel()
    return float(-(shares * np.log2(shares)).sum())


def symbols_of(spec: TensorSpec, values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64).to(spec.dtype)


def spec_of(count: int, alphabet: int, **more: object) -> TensorSpec:
    """The spec of a flat carrier of symbols."""
    dtype = torch.uint8 if alphabet <= 256 else torch.int64
    return TensorSpec((count,), dtype, alphabet=alphabet, **more)  # type: ignore[arg-type]


def decoded_or_refused(coder: Coder, stream: Tensor, spec: TensorSpec) -> Tensor | None:
    """What a decoder may do with any bytes: symbols of the spec, or None for a ``PayloadError`` of one sentence."""
    try:
        symbols = coder.decode(stream, spec)
    except PayloadError as error:
        message = str(error)
        assert message.startswith("payload: ")
        assert message.endswith(".")
        assert "\n" not in message
        return None
    assert symbols.dtype == spec.dtype
    if spec.variable:
        assert symbols.dim() == 1
        assert symbols.numel() <= spec.numel
    else:
        assert symbols.shape == spec.shape
    if spec.alphabet is not None and symbols.numel():
        assert int(symbols.min()) >= 0
        assert int(symbols.max()) < spec.alphabet
    return symbols
