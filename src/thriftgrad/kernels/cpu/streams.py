"""``reference.pack`` and ``unpack`` on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from thriftgrad.kernels import recycled, reference
from thriftgrad.kernels.cpu.arrays import array
from thriftgrad.kernels.cpu.fused import check_length, stream_nbytes
from thriftgrad.kernels.cpu.memory import pointer
from thriftgrad.kernels.cpu.packing import nbytes, pack_symbols, unpack_symbols, width_bits
from thriftgrad.kernels.cpu.settings import CACHED, COMPILED, SLICE, U
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.kernels.cpu.wide_packing import pack_wide, unpack_wide


def pack(symbols: Tensor, alphabet: int) -> Tensor:
    """``reference.pack``."""
    width = (alphabet - 1).bit_length()
    if 9 <= width <= 32:
        return pack_wide(symbols, width)
    if not 1 <= width <= 8:
        return reference.pack(symbols, alphabet)
    n = symbols.numel()
    stream = recycled.empty(stream_nbytes(n, alphabet), torch.uint8)
    arrays = array(symbols.to(torch.uint8)), U(alphabet), stream.numpy()
    over_slices(lambda low, high: _pack(*arrays, U(low), U(high)), n, SLICE)
    return stream


def unpack(stream: Tensor, numel: int, alphabet: int) -> Tensor:
    """``reference.unpack``; ``ValueError`` for a stream that is too short."""
    width = (alphabet - 1).bit_length()
    if 9 <= width <= 32 and stream.dtype == torch.uint8:
        return unpack_wide(stream, numel, width)
    if not 1 <= width <= 8 or stream.dtype != torch.uint8:
        return reference.unpack(stream, numel, alphabet)
    check_length(stream, numel, alphabet)
    symbols = recycled.empty(numel, torch.uint8)
    arrays = array(stream), U(alphabet), symbols.numpy()
    over_slices(lambda low, high: _unpack(*arrays, U(low), U(high)), numel, SLICE)
    return symbols


def largest_symbol(stream: Tensor, numel: int, alphabet: int) -> int:
    """``quantised.largest_symbol``; ``ValueError`` for a stream that is too short."""
    if not numel or not 2 <= alphabet <= 256 or stream.dtype != torch.uint8:
        return int(unpack(stream, numel, alphabet).max()) if numel else -1
    check_length(stream, numel, alphabet)
    packed, found = array(stream), list[int]()
    over_slices(lambda low, high: found.append(int(_largest(packed, U(alphabet), U(low), U(high)))), numel, SLICE)
    return max(found)


@njit(**CACHED)
def _pack(symbols: Any, alphabet: Any, stream: Any, low: Any, high: Any) -> None:
    width = width_bits(alphabet)
    pack_symbols(pointer(symbols), low, high - low, width, pointer(stream), nbytes(low, width))


@njit(**CACHED)
def _unpack(stream: Any, alphabet: Any, symbols: Any, low: Any, high: Any) -> None:
    width = width_bits(alphabet)
    unpack_symbols(pointer(stream), nbytes(low, width), high - low, width, pointer(symbols), low)


@njit(**CACHED)
def _largest(stream: Any, alphabet: Any, low: Any, high: Any) -> Any:
    return _largest_of(pointer(stream), width_bits(alphabet), low, high, np.empty(SLICE, np.uint8))


@njit(**COMPILED)
def _largest_of(stream: Any, width: Any, low: Any, high: Any, symbols: Any) -> Any:
    largest = np.uint8(0)
    for first in range(low, high, U(SLICE)):
        n = min(U(SLICE), high - first)
        unpack_symbols(stream, nbytes(first, width), n, width, pointer(symbols), U(0))
        for p in range(n):
            largest = max(largest, symbols[p])
    return largest
