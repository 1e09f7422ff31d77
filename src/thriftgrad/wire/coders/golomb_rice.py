"""Golomb-Rice codes: for numbers that fall off geometrically, such as the gaps between rare events."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from thriftgrad.core import PayloadError, TensorSpec
from thriftgrad.wire.coders.bits import BitReader, BitWriter, Bytes, Ints, Words, blocks, floor_log2
from thriftgrad.wire.coders.coder import Coder
from thriftgrad.wire.coders.symbols import alphabet_of, prefix_bytes, split, stream_of, tensor_of, values_of

ESCAPE = 24
"""Zeros that say: the number follows as it is."""


@dataclass(frozen=True, repr=False)
class GolombRice(Coder):
    """A number n as n // 2**k zeros, a one, and the k low bits of n; from 24 zeros on as 24 zeros and n itself.

    k is the best one for the tensor and travels in the first byte. With w = ceil(log2 alphabet), k = w is always
    possible, so a stream takes at most w + 1 bits a symbol, and 1 byte.

    Golomb, Run-length Encodings, 1966; Rice and Plaunt, Adaptive Variable-Length Coding, 1971. Theirs has no escape.

    >>> import torch; from thriftgrad import TensorSpec
    >>> gaps = torch.tensor([3, 90, 41, 7, 120])
    >>> len(GolombRice().encode(gaps, TensorSpec((5,), torch.int64, alphabet=1 << 20)))  # k = 5: 6 8 7 6 9 bits
    6
    """

    def encode(self, symbols: Tensor, spec: TensorSpec) -> Tensor:
        values, width = values_of(symbols, spec, self), _width(spec, self)
        k = _best_k(values, width)
        writer = BitWriter()
        for part in blocks(values):
            quotients = part >> k
            escaped = quotients >= ESCAPE
            low = (1 << k) | (part & ((1 << k) - 1))
            writer.write(
                np.where(escaped, part, low),
                np.where(escaped, width, k + 1),
                np.where(escaped, ESCAPE, quotients),
            )
        coded = np.concatenate((np.array([k], np.uint8), writer.finish()))
        return stream_of(coded, len(values), spec, symbols)

    def decode(self, stream: Tensor, spec: TensorSpec) -> Tensor:
        alphabet, width = alphabet_of(spec, self), _width(spec, self)
        count, coded = split(stream, spec)
        if not len(coded) or coded[0] > width:
            found = f"parameter {coded[0]}" if len(coded) else "no parameter"
            raise PayloadError(f"payload: {found} where one from 0 to {width} stands first; it was altered on the way.")
        k, reader = int(coded[0]), BitReader(coded[1:])

        def lengths(windows: Words) -> Bytes:
            zeros = 63 - floor_log2(windows)
            return np.where(zeros < ESCAPE, zeros + 1 + k, ESCAPE + width).astype(np.uint8)

        values, filled = np.empty(min(count, reader.left), np.int64), 0
        for starts in reader.starts(count, lengths):
            zeros = np.minimum(63 - floor_log2(reader.windows(starts)), ESCAPE)
            escaped = zeros == ESCAPE
            # The low bits behind the one, or the number behind the zeros; a shift by 64 gives 0.
            rest = reader.windows(starts + zeros + ~escaped)
            low = (rest >> np.where(escaped, 64 - width, 64 - k).astype(np.uint64)).astype(np.int64)
            part = np.where(escaped, low, (zeros << k) | low)
            if (part[escaped] >> k < ESCAPE).any():
                raise PayloadError("payload: a number is written out where a shorter code exists; it was altered.")
            values[filled : filled + len(starts)] = part
            filled += len(starts)
        reader.finish()
        if count and int(values.max()) >= alphabet:
            raise PayloadError(f"payload: symbol {int(values.max())} outside the alphabet of {alphabet}.")
        return tensor_of(values, spec)

    def limit_bytes(self, spec: TensorSpec) -> int:
        return prefix_bytes(spec) + 1 + -(-spec.numel * (_width(spec, self) + 1) // 8)


def _width(spec: TensorSpec, coder: object) -> int:
    return (alphabet_of(spec, coder) - 1).bit_length()


def _best_k(values: Ints, width: int) -> int:
    """The cheapest parameter among those near log2(mean * ln 2), the best one for a geometric law, and ``width``."""
    if not len(values):
        return 0
    near = math.floor(math.log2(max(float(values.mean()) * math.log(2), 1)))
    candidates: set[int] = {*range(max(near - 1, 0), min(near + 2, width) + 1), width}
    return min(candidates, key=lambda k: (_bits(values, k, width), k))


def _bits(values: Ints, k: int, width: int) -> int:
    quotients = values >> k
    escaped = int(np.count_nonzero(quotients >= ESCAPE))
    unary = int(np.minimum(quotients, ESCAPE).sum()) - ESCAPE * escaped
    return unary + (len(values) - escaped) * (k + 1) + escaped * (ESCAPE + width)
