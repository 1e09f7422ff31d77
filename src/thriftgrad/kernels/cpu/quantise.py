"""Quantisation in one trip over memory: norm, rounding, packing and what is left over, a tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.packing import nbytes, pack_symbols, unpack_symbols, width_bits
from thriftgrad.kernels.cpu.philox import fill_words
from thriftgrad.kernels.cpu.rounding import round_counting, round_powers, round_searching, round_signs, round_uniform
from thriftgrad.kernels.cpu.scales import BLOCKS, bucket_scale, owed_at
from thriftgrad.kernels.cpu.settings import CACHED, CHUNK, COMPILED, TILE, F, U, pointer
from thriftgrad.kernels.cpu.values import power_values, table_values, uniform_values

C, T = U(CHUNK), U(TILE)


@njit(**COMPILED)
def no_words(words: Any, first: Any, chunks: Any, seed: Any, x: Any, memory: Any, ahead: Any) -> None:
    """For rounding that is not random."""


@njit(**COMPILED)
def copied(source: Any, at: Any, first: Any, last: Any, scale: Any, bucket: Any, u: Any) -> None:
    """Elements ``first`` to ``last`` of the vector, which begin at source[at], as they are."""
    for k in range(last - first):
        u[k] = source[at + k]


@njit(**COMPILED)
def normalised(source: Any, at: Any, first: Any, last: Any, scale: Any, bucket: Any, u: Any) -> None:
    """Elements ``first`` to ``last`` of the vector, which begin at source[at], over the scales of their buckets."""
    i = first
    b = first // bucket
    while i < last:
        end = min((b + U(1)) * bucket, last)
        divisor = scale[b] if scale[b] > F(0) else F(1)  # NaN is not
        for k in range(i - first, end - first):
            v = F(max(min(source[at + k] / divisor, F(1)), F(-1)))
            u[k] = v if v == v else F(0)
        i = end
        b += U(1)


@njit(**COMPILED)
def plain(first: Any, last: Any, scale: Any, bucket: Any) -> Any:
    """Whether a whole tile of whole chunks, each within one bucket whose scale one can divide by."""
    if last - first < T or bucket % C != 0:
        return False
    for b in range(first // bucket, (last - U(1)) // bucket + U(1)):
        if not scale[b] > F(0):
            return False
    return True


@njit(**COMPILED)
def leave(owed: Any, values: Any, first: Any, last: Any, scale: Any, bucket: Any, rest: Any) -> None:
    """What is left over of elements ``first`` to ``last``."""
    i = first
    b = first // bucket
    while i < last:
        end = min((b + U(1)) * bucket, last)
        c = scale[b]
        for k in range(i - first, end - first):
            rest[first + k] = owed[k] - F(values[k] * c)
        i = end
        b += U(1)


def _quantiser(fill: Any, prepared: Any, rounded: Any, valued: Any) -> Any:
    """Compiled for its four stages: passed as arguments they would keep numba from caching."""

    @njit(**COMPILED)
    def round_tile(
        x: Any,
        at: Any,
        low: Any,
        high: Any,
        scale: Any,
        bucket: Any,
        words: Any,
        levels: Any,
        alphabet: Any,
        u: Any,
        to: Any,
    ) -> None:
        """Symbols of elements low ... high, which begin at x[at]."""
        if not plain(low, high, scale, bucket):
            prepared(x, at, low, high, scale, bucket, u)
            rounded(u, U(0), (high - low + C - U(1)) // C, F(1), words, U(0), levels, alphabet, to, U(0))
            return
        first = low
        b = low // bucket
        while first < high:
            end = min((b + U(1)) * bucket, high)
            k = first - low
            rounded(x, at + k, (end - first) // C, scale[b], words, k // U(2), levels, alphabet, to, k)
            first = end
            b += U(1)

    @njit(**COMPILED)
    def tiles(
        x: Any,
        n: Any,
        memory: Any,
        decay: Any,
        levels: Any,
        alphabet: Any,
        bucket: Any,
        norm: Any,
        seed: Any,
        known: Any,
        stream: Any,
        scale: Any,
        rest: Any,
        low: Any,
        high: Any,
        words: Any,
        symbols: Any,
        u: Any,
        owed: Any,
        lanes: Any,
        blocks: Any,
    ) -> None:
        width = width_bits(alphabet)
        ready = (high + bucket - U(1)) // bucket if known else low // bucket
        for first in range(low, high, T):
            last = min(first + T, high)
            while ready * bucket < last:
                end = min((ready + U(1)) * bucket, n)
                scale[ready] = bucket_scale(x, memory, decay, ready * bucket, end, norm, lanes, blocks)
                ready += U(1)
            ahead = last if known else last + bucket
            fill(words, first // C, (last - first + C - U(1)) // C, seed, x, memory, ahead)
            if memory is None:
                round_tile(x, first, first, last, scale, bucket, words, levels, alphabet, u, symbols)
            else:
                for k in range(last - first):
                    owed[k] = owed_at(x, memory, decay, first + k)
                round_tile(owed, U(0), first, last, scale, bucket, words, levels, alphabet, u, symbols)
                valued(symbols, last - first, levels, alphabet, u)
                leave(owed, u, first, last, scale, bucket, rest)
            pack_symbols(symbols, U(0), last - first, width, stream, nbytes(first, width))

    @njit(**COMPILED)
    def quantise(
        scratch: Any,
        x: Any,
        memory: Any,
        decay: Any,
        levels: Any,
        bucket: Any,
        norm: Any,
        seed: Any,
        known: Any,
        stream: Any,
        scale: Any,
        rest: Any,
        low: Any,
        high: Any,
    ) -> None:
        """Elements low ... high (multiples of a tile, or the end). ``known``: the scales are there already.

        A bucket's norm is taken when the first tile comes that it has a part in; one that two slices share is computed
        by both. x is asked for a bucket and a tile ahead.
        """
        tiles(
            pointer(x),
            U(len(x)),
            pointer(memory),
            decay,
            pointer(levels),
            U(len(levels)),
            bucket,
            norm,
            seed,
            known,
            pointer(stream),
            pointer(scale),
            pointer(rest),
            low,
            high,
            pointer(scratch[0]),
            pointer(scratch[1]),
            pointer(scratch[2]),
            pointer(scratch[3]),
            pointer(scratch[4]),
            pointer(scratch[5]),
        )

    return quantise


@njit(**COMPILED)
def scratch() -> Any:
    """What a slice works in, so small that it stays in the first-level cache."""
    words, symbols = np.zeros(TILE // 2, np.uint32), np.zeros(TILE, np.uint8)
    u, owed = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    return words, symbols, u, owed, np.zeros(64, np.float64), np.zeros(BLOCKS, np.float64)


_uniform = _quantiser(fill_words, normalised, round_uniform, uniform_values)
_counting = _quantiser(fill_words, normalised, round_counting, table_values)
_powers = _quantiser(fill_words, normalised, round_powers, power_values)
_searching = _quantiser(fill_words, normalised, round_searching, table_values)
_signs = _quantiser(no_words, copied, round_signs, table_values)


@njit(**CACHED)
def quantise_uniform(*arguments: Any) -> None:
    _uniform(scratch(), *arguments)


@njit(**CACHED)
def quantise_counting(*arguments: Any) -> None:
    _counting(scratch(), *arguments)


@njit(**CACHED)
def quantise_powers(*arguments: Any) -> None:
    _powers(scratch(), *arguments)


@njit(**CACHED)
def quantise_searching(*arguments: Any) -> None:
    _searching(scratch(), *arguments)


@njit(**CACHED)
def quantise_signs(*arguments: Any) -> None:
    _signs(scratch(), *arguments)


@njit(**COMPILED)
def add(values: Any, low: Any, high: Any, scale: Any, bucket: Any, total: Any) -> None:
    """Values times scales to elements low ... high."""
    first = low
    b = low // bucket
    while first < high:
        end = min((b + U(1)) * bucket, high)
        c = scale[b]
        for k in range(first - low, end - low):
            total[low + k] += F(values[k] * c)
        first = end
        b += U(1)


def _dequantiser(valued: Any) -> Any:

    @njit(**COMPILED)
    def dequantise(
        scratch: Any,
        stream_array: Any,
        scale_array: Any,
        level_array: Any,
        bucket: Any,
        total_array: Any,
        low: Any,
        high: Any,
    ) -> None:
        """Add levels times scales to elements low ... high (multiples of a tile, or the end)."""
        stream, scale, total = pointer(stream_array), pointer(scale_array), pointer(total_array)
        levels, alphabet, width = pointer(level_array), U(len(level_array)), width_bits(len(level_array))
        symbols, values = pointer(scratch[1]), pointer(scratch[2])
        for first in range(low, high, T):
            last = min(first + T, high)
            unpack_symbols(stream, nbytes(first, width), last - first, width, symbols, U(0))
            valued(symbols, last - first, levels, alphabet, values)
            add(values, first, last, scale, bucket, total)

    return dequantise


_add_uniform = _dequantiser(uniform_values)
_add_powers = _dequantiser(power_values)
_add_table = _dequantiser(table_values)


@njit(**CACHED)
def dequantise_uniform(*arguments: Any) -> None:
    _add_uniform(scratch(), *arguments)


@njit(**CACHED)
def dequantise_powers(*arguments: Any) -> None:
    _add_powers(scratch(), *arguments)


@njit(**CACHED)
def dequantise_table(*arguments: Any) -> None:
    _add_table(scratch(), *arguments)
