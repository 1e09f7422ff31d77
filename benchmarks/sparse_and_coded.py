"""What ``kernels.py`` measures of top-k and of Huffman's codes: each function makes a setup."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thriftgrad import QSGD, Huffman, Key, TensorSpec, kernels
from thriftgrad.core import Compressor
from thriftgrad.kernels import Grouping

Vectors = list[Tensor]
Call = Callable[[int], object]
Setup = Callable[[Vectors], Call]

FOUR_BITS = QSGD(bits=4, bucket=1024, norm="linf")
TERNARY = QSGD(levels=1, bucket=64)


def top_k(fraction: float, memory: bool = False) -> Setup:
    """Indices and values; with a memory, which is another vector, what is left over too."""

    def setup(x: Vectors) -> Call:
        k = round(fraction * x[0].numel())
        return lambda i: kernels.choose_largest(x[i % len(x)], k, x[(i + 2) % len(x)] if memory else None, 0.9)

    return setup


def owed(x: Vectors) -> Call:
    """What a memory costs where no kernel takes it in."""
    return lambda i: kernels.owed(x[i % len(x)], x[(i + 2) % len(x)], 0.9)


def add_at(fraction: float) -> Setup:
    """An estimate of few coordinates, added to a total."""

    def setup(x: Vectors) -> Call:
        chosen = kernels.choose_largest(x[0], round(fraction * x[0].numel()))
        totals = [torch.zeros_like(x[0]) for _ in range(2)]
        return lambda i: kernels.add_at(totals[i % 2], chosen.indices, chosen.values)

    return setup


def indices(fraction: float, unpack: bool) -> Setup:
    """Indices of the largest coordinates, to ceil(log2 n) bits each, or back."""

    def setup(x: Vectors) -> Call:
        n, found = x[0].numel(), kernels.largest(x[0], round(fraction * x[0].numel()))
        stream = kernels.pack(found, n)
        return lambda i: kernels.unpack(stream, len(found), n) if unpack else kernels.pack(found, n)

    return setup


def support(fraction: float) -> Setup:
    """Random coordinates."""
    return lambda x: lambda i: kernels.permutation(round(fraction * x[0].numel()), x[0].numel(), i)


def codes(quantiser: Compressor, size: int, what: str) -> Setup:
    """Groups of so many symbols: "count" them, "write" them or "read" them by codes that are known."""

    def setup(x: Vectors) -> Call:
        symbols, spec = _symbols(quantiser, x[0])
        grouping = Grouping(size, 0, spec.alphabet or 256, spec.zero or 0)
        counts = kernels.count_groups(symbols, grouping)
        lengths = kernels.code_lengths(counts)
        nothing, bits = torch.empty(0, dtype=torch.uint8), int(counts @ lengths)
        stream = kernels.write_groups(nothing, symbols, grouping, lengths, bits)
        return {
            "count": lambda i: kernels.count_groups(symbols, grouping),
            "write": lambda i: kernels.write_groups(nothing, symbols, grouping, lengths, bits),
            "read": lambda i: kernels.read_groups(stream, len(symbols), grouping, lengths),
        }[what]

    return setup


def coder(quantiser: Compressor, decode: bool) -> Setup:
    """All that ``Huffman`` does: look at the symbols, choose, count, make a table and write; or the way back."""

    def setup(x: Vectors) -> Call:
        symbols, spec = _symbols(quantiser, x[0])
        stream = Huffman().encode(symbols, spec)
        return lambda i: Huffman().decode(stream, spec) if decode else Huffman().encode(symbols, spec)

    return setup


def _symbols(quantiser: Compressor, x: Tensor) -> tuple[Tensor, TensorSpec]:
    payload, _ = quantiser.compress(x, quantiser.init(TensorSpec.of(x)), Key(0))
    return payload.carrier, payload.layout.carrier
