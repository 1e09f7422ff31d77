"""Packing of symbols of 9 to 32 bits, such as indices, to a stream of bits and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from thriftgrad.kernels import recycled
from thriftgrad.kernels.cpu.arrays import array
from thriftgrad.kernels.cpu.settings import CACHED, U
from thriftgrad.kernels.cpu.threads import over_slices

RUN = 32
"""Symbols that fill whole words of 32 bits, whatever their width."""


def pack_wide(symbols: Tensor, width: int) -> Tensor:
    """``reference.pack`` for 9 <= width <= 32: the ``width`` lowest bits of each symbol, lowest first."""
    n = symbols.numel()
    words = recycled.empty(-(-n * width // 32), torch.int32)
    arrays = array(symbols.to(torch.int64)), U(width), words.numpy().view(np.uint32)
    over_slices(lambda low, high: _pack(*arrays, low, high), n, RUN)
    return words.view(torch.uint8)[: -(-n * width // 8)]


def unpack_wide(stream: Tensor, numel: int, width: int) -> Tensor:
    """``reference.unpack`` for 9 <= width <= 32, int64; ``ValueError`` for a stream that is too short."""
    nbytes = -(-numel * width // 8)
    if len(stream) < nbytes:
        raise ValueError(f"kernels: {numel} symbols of {width} bits take {nbytes} bytes, and there are {len(stream)}.")
    words = recycled.empty(nbytes // 4 + 2, torch.int32)  # where no symbol is the last word
    words[-3:] = 0
    words.view(torch.uint8)[:nbytes] = stream[:nbytes]
    symbols = recycled.empty(numel, torch.int64)
    arrays = words.numpy().view(np.uint32), U(width), symbols.numpy()
    over_slices(lambda low, high: _unpack(*arrays, low, high), numel)
    return symbols


@njit(**CACHED)
def _pack(symbols: Any, width: Any, words: Any, low: Any, high: Any) -> None:
    mask = (U(1) << width) - U(1)
    word, filled, o = U(0), U(0), U(low) // U(RUN) * width
    for i in range(U(low), U(high)):
        word |= (U(symbols[i]) & mask) << filled
        filled += width
        if filled >= U(32):
            words[o] = np.uint32(word)
            o += U(1)
            word >>= U(32)
            filled -= U(32)
    if filled > U(0):
        words[o] = np.uint32(word)


@njit(**CACHED)
def _unpack(words: Any, width: Any, symbols: Any, low: Any, high: Any) -> None:
    mask = (U(1) << width) - U(1)
    for i in range(U(low), U(high)):
        bit = i * width
        at = bit >> U(5)
        two = U(words[at]) | U(words[at + U(1)]) << U(32)
        symbols[i] = np.int64((two >> (bit & U(31))) & mask)
