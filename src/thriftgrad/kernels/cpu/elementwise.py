"""Random rounding and signs of ``kernels.reference``, by themselves, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from thriftgrad.kernels import recycled, reference
from thriftgrad.kernels.cpu.arrays import array, fit
from thriftgrad.kernels.cpu.memory import pointer
from thriftgrad.kernels.cpu.philox import fill_words
from thriftgrad.kernels.cpu.rounding import HALF, LOW, threshold
from thriftgrad.kernels.cpu.settings import CACHED, CHUNK, COMPILED, SLICE, TILE, F, I, U
from thriftgrad.kernels.cpu.threads import over_slices

C, T = U(CHUNK), U(TILE)


def random_signs(n: int, seed: int, device: torch.device = reference.CPU) -> Tensor:
    """``reference.random_signs``."""
    drawn = recycled.empty(n)
    signs = drawn.numpy()
    over_slices(lambda low, high: _draw_signs(signs, U(seed), U(low), U(high)), n, SLICE)
    return drawn


def round_stochastic(x: Tensor, seed: int) -> Tensor:
    """``reference.round_stochastic``."""
    if not fit(x):
        return reference.round_stochastic(x, seed)
    rounded = recycled.empty(x.numel())
    arrays = array(x), rounded.numpy(), U(seed)
    over_slices(lambda low, high: _round(*arrays, U(low), U(high)), x.numel(), SLICE)
    return rounded


def round_to_powers(x: Tensor, seed: int, largest: int = 254) -> Tensor:
    """``reference.round_to_powers``."""
    if not fit(x):
        return reference.round_to_powers(x, seed, largest)
    exponents = recycled.empty(x.numel(), torch.int64)
    arrays = array(x).view(np.int32), exponents.numpy(), I(largest), U(seed)
    over_slices(lambda low, high: _round_to_powers(*arrays, U(low), U(high)), x.numel(), SLICE)
    return exponents


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """``reference.nearest_level``."""
    if not fit(x, levels):
        return reference.nearest_level(x, levels)
    middles = array((levels[1:] + levels[:-1]) / 2)
    numbers = recycled.empty(x.numel(), torch.uint8)
    flat = array(x).reshape(-1)
    over_slices(lambda low, high: _nearest(flat, middles, numbers.numpy(), U(low), U(high)), x.numel(), SLICE)
    return numbers.view(x.shape)


def hadamard(rows: Tensor) -> Tensor:
    """``reference.hadamard``."""
    if not fit(rows) or not rows.numel():
        return reference.hadamard(rows)
    m, d = rows.shape
    turned = recycled.empty(m * d)
    turned.view(m, d).copy_(rows.detach())
    numbers, root = turned.numpy(), F(np.sqrt(np.float64(d)))
    over_slices(lambda low, high: _hadamard(numbers, U(d), root, U(low), U(high)), m * d, d)
    return turned.view(m, d)


@njit(**COMPILED)
def _bits(bits: Any, words: Any, first: Any, count: Any, seed: Any, source: Any) -> None:
    """The 16 random bits of each element of the tile that begins at ``first``."""
    chunks = (count + C - U(1)) // C
    fill_words(words, first // C, chunks, seed, source, None, first + T)
    for chunk in range(chunks):
        for p in range(U(64)):
            word = words[chunk * U(64) + p]
            bits[chunk * C + p] = I(word & LOW)
            bits[chunk * C + U(64) + p] = I(word >> HALF)


def _over_tiles(use: Any) -> Any:
    """A loop that calls ``use(source, to, setting, bits, first, count)`` for each tile, with its random bits."""

    @njit(**COMPILED)
    def tiles(
        source: Any, to: Any, setting: Any, seed: Any, low: Any, high: Any, words_array: Any, bits_array: Any
    ) -> None:
        words, bits = pointer(words_array), pointer(bits_array)
        for first in range(low, high, T):
            count = min(T, high - first)
            _bits(bits, words, first, count, seed, source)
            use(source, to, setting, bits, first, count)

    return tiles


@njit(**COMPILED)
def _sign_tile(source: Any, to: Any, setting: Any, bits: Any, first: Any, count: Any) -> None:
    for p in range(count):
        to[first + p] = F(1) if bits[p] & I(1) != I(0) else F(-1)


@njit(**COMPILED)
def _round_tile(source: Any, to: Any, setting: Any, bits: Any, first: Any, count: Any) -> None:
    for p in range(count):
        v = source[first + p]
        low = F(np.floor(v))
        to[first + p] = F(low + (F(1) if F(v - low) > threshold(bits[p]) else F(0)))


@njit(**COMPILED)
def _power_tile(source: Any, to: Any, setting: Any, bits: Any, first: Any, count: Any) -> None:
    for p in range(count):
        magnitude = I(source[first + p] & I(0x7FFFFFFF))
        above = I(1) if I(magnitude & I(0x7FFFFF)) > I(I(bits[p] << I(7)) + I(64)) else I(0)
        to[first + p] = np.int64(min(I(I(magnitude >> I(23)) + above), setting))


_sign_tiles = _over_tiles(_sign_tile)
_round_tiles = _over_tiles(_round_tile)
_power_tiles = _over_tiles(_power_tile)


@njit(**COMPILED)
def _scratch() -> Any:
    return np.zeros(TILE // 2, np.uint32), np.zeros(TILE, np.int32)


@njit(**CACHED)
def _draw_signs(to: Any, seed: Any, low: Any, high: Any) -> None:
    words, bits = _scratch()
    _sign_tiles(pointer(to), pointer(to), 0, seed, low, high, words, bits)


@njit(**CACHED)
def _round(x: Any, to: Any, seed: Any, low: Any, high: Any) -> None:
    words, bits = _scratch()
    _round_tiles(pointer(x), pointer(to), 0, seed, low, high, words, bits)


@njit(**CACHED)
def _round_to_powers(x: Any, to: Any, largest: Any, seed: Any, low: Any, high: Any) -> None:
    words, bits = _scratch()
    _power_tiles(pointer(x), pointer(to), largest, seed, low, high, words, bits)


@njit(**CACHED)
def _nearest(x: Any, middles: Any, numbers: Any, low: Any, high: Any) -> None:
    _nearest_of(pointer(x), pointer(middles), U(len(middles)), pointer(numbers), low, high)


@njit(**COMPILED)
def _nearest_of(x: Any, middles: Any, count: Any, numbers: Any, low: Any, high: Any) -> None:
    """How many middles an element exceeds, a tile at a time: a comparison with each vectorises, a search does not."""
    for first in range(low, high, T):
        last = min(first + T, high)
        for i in range(first, last):
            numbers[i] = np.uint8(0)
        for j in range(count):
            middle = middles[j]
            for i in range(first, last):
                numbers[i] = np.uint8(numbers[i] + (np.uint8(0) if middle >= x[i] else np.uint8(1)))


@njit(**CACHED)
def _hadamard(rows: Any, d: Any, root: Any, low: Any, high: Any) -> None:
    _hadamard_of(pointer(rows), d, root, low, high)


@njit(**COMPILED)
def _hadamard_of(rows: Any, d: Any, root: Any, low: Any, high: Any) -> None:
    """In place, row by row, pairs of increasing distance."""
    for row in range(low, high, d):
        half = U(1)
        while half < d:
            for start in range(row, row + d, U(2) * half):
                for i in range(start, start + half):
                    a, b = rows[i], rows[i + half]
                    rows[i], rows[i + half] = a + b, a - b
            half *= U(2)
        for i in range(row, row + d):
            rows[i] = rows[i] / root
