"""Rounding of x[at:] / scale, chunks of 128 elements, to symbols[to:].

Word p of a chunk, from words[w] on, holds the random bits of its elements p (low half) and 64 + p (high half).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.settings import COMPILED, INLINED, F, I, U

LOW = np.uint32(0xFFFF)
SIGN = I(-0x80000000)
ONE, TWO = np.uint32(1), np.uint32(2)
HALF = np.uint32(16)


@njit(**INLINED)
def threshold(half_word: Any) -> Any:
    """(r + 1/2) 2**-16, at most 1 - 2**-16."""
    return min((F(I(half_word)) + F(0.5)) * F(2.0**-16), F(1 - 2.0**-16))


@njit(**INLINED)
def uniform_symbol(u: Any, unit: Any, zero: Any, complement: Any) -> Any:
    """``complement``: 2**16 - 1 - r. Twice the magnitude in units of 2**-16 level, rounded up to an integer, must reach
    2 r + 2 to go up; 2 r + 1 for r = 2**16 - 1, so that what stands on a level stays there."""
    up = max(I(complement << ONE), I(1))
    steps = I(I(I(np.ceil(abs(u) * unit)) + up) >> I(17))
    return np.uint8(I(zero - steps) if u < F(0) else I(zero + steps))


@njit(**COMPILED)
def round_uniform(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To l / s, l = -s ... s; of ``levels`` only the number 2 s + 1 <= 255 is looked at."""
    zero = I(alphabet // 2)
    unit = F(F(zero) * F(131072.0))
    for chunk in range(chunks):
        for p in range(U(64)):
            i = chunk * U(128) + p
            word = ~words[w + chunk * U(64) + p]
            symbols[to + i] = uniform_symbol(x[at + i] / scale, unit, zero, word & LOW)
            symbols[to + i + U(64)] = uniform_symbol(x[at + i + U(64)] / scale, unit, zero, word >> HALF)


@njit(**INLINED)
def mirrored(u: Any, base: Any, steps: Any, last: Any) -> Any:
    """The symbol so many steps above the lowest that a magnitude can have, or its mirror image."""
    symbol = I(base + steps)
    return np.uint8(I(last - symbol) if u < F(0) else symbol)


@njit(**INLINED)
def power_steps(u: Any, half_word: Any, lowest: Any, gap: Any, first: Any) -> Any:
    """From the smallest power on: exponents passed, one more iff the mantissa exceeds the threshold. Else: compare."""
    bits = I(F(u).view(np.int32) & I(0x7FFFFFFF))
    limit = min(I(I(half_word << np.uint32(7)) | I(64)), I(0x7FFF80))
    passed = I(I(I(bits + I(I(0x7FFFFF) - limit)) >> I(23)) - first)
    return (
        passed
        if passed > I(0) and bits >= I(I(first + I(1)) << I(23))
        else I(F(abs(u) - lowest) > F(threshold(half_word) * gap))
    )


@njit(**COMPILED)
def round_powers(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To the powers of two from 1 down, of both signs, with zero (an odd number of levels) or without."""
    last = I(alphabet - 1)
    base = I(last // I(2))
    lowest, smallest = levels[base], levels[base + 1]
    gap = F(smallest - lowest)
    first = I(I(F(smallest).view(np.int32) >> I(23)) - I(1))
    for chunk in range(chunks):
        for p in range(U(64)):
            i = chunk * U(128) + p
            word = words[w + chunk * U(64) + p]
            u = x[at + i] / scale
            v = x[at + i + U(64)] / scale
            symbols[to + i] = mirrored(u, base, power_steps(u, word & LOW, lowest, gap, first), last)
            symbols[to + i + U(64)] = mirrored(v, base, power_steps(v, word >> HALF, lowest, gap, first), last)


@njit(**INLINED)
def interval(levels: Any, alphabet: Any, j: Any) -> Any:
    """Where the j-th gap begins and how wide it is; beyond the last, a gap that nothing reaches."""
    if j + 1 < alphabet:
        return levels[j], F(levels[j + 1] - levels[j])
    return F(np.inf), F(0)


@njit(**INLINED)
def beyond(a: Any, r: Any, low: Any, gap: Any) -> Any:
    """1 iff a lies above the stochastic threshold of an interval."""
    return I(1) if F(a - low) > F(r * gap) else I(0)


@njit(**INLINED)
def four_beyond(a: Any, r: Any, l0: Any, g0: Any, l1: Any, g1: Any, l2: Any, g2: Any, l3: Any, g3: Any) -> Any:
    return I(I(beyond(a, r, l0, g0) + beyond(a, r, l1, g1)) + I(beyond(a, r, l2, g2) + beyond(a, r, l3, g3)))


@njit(**COMPILED)
def round_counting(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To a symmetric table of up to 17 levels: a symbol is how many stochastic thresholds its element exceeds.

    Those of intervals below are exceeded whatever the random number is, those of intervals above are not. It needs no
    search, whose branches or gathers do not vectorise, and gaps of 2**-100 or more.
    """
    last = I(alphabet - 1)
    base = I(last // I(2))
    l0, g0 = interval(levels, alphabet, base)
    l1, g1 = interval(levels, alphabet, base + 1)
    l2, g2 = interval(levels, alphabet, base + 2)
    l3, g3 = interval(levels, alphabet, base + 3)
    if alphabet <= 9:
        for chunk in range(chunks):
            for p in range(U(64)):
                i = chunk * U(128) + p
                word = words[w + chunk * U(64) + p]
                u, v = x[at + i] / scale, x[at + i + U(64)] / scale
                r, q = threshold(word & LOW), threshold(word >> HALF)
                n = four_beyond(abs(u), r, l0, g0, l1, g1, l2, g2, l3, g3)
                m = four_beyond(abs(v), q, l0, g0, l1, g1, l2, g2, l3, g3)
                symbols[to + i] = mirrored(u, base, n, last)
                symbols[to + i + U(64)] = mirrored(v, base, m, last)
        return
    l4, g4 = interval(levels, alphabet, base + 4)
    l5, g5 = interval(levels, alphabet, base + 5)
    l6, g6 = interval(levels, alphabet, base + 6)
    l7, g7 = interval(levels, alphabet, base + 7)
    for chunk in range(chunks):
        for p in range(U(64)):
            i = chunk * U(128) + p
            word = words[w + chunk * U(64) + p]
            u, v = x[at + i] / scale, x[at + i + U(64)] / scale
            r, q = threshold(word & LOW), threshold(word >> HALF)
            n = four_beyond(abs(u), r, l0, g0, l1, g1, l2, g2, l3, g3)
            m = four_beyond(abs(v), q, l0, g0, l1, g1, l2, g2, l3, g3)
            n = I(n + four_beyond(abs(u), r, l4, g4, l5, g5, l6, g6, l7, g7))
            m = I(m + four_beyond(abs(v), q, l4, g4, l5, g5, l6, g6, l7, g7))
            symbols[to + i] = mirrored(u, base, n, last)
            symbols[to + i + U(64)] = mirrored(v, base, m, last)


@njit(**COMPILED)
def round_searching(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To any table: binary search in all elements of a chunk at once, by gathers; then as ``round_to_levels`` does."""
    inner = I(alphabet - 2)
    reach = I(1)
    while reach <= inner:
        reach = I(reach * I(2))
    below = np.empty(128, np.int32)
    for chunk in range(chunks):
        base = at + chunk * U(128)
        for p in range(U(128)):
            below[p] = I(0)
        step = reach
        while step > I(1):
            step = I(step // I(2))
            for p in range(U(128)):
                probe = I(below[p] + step)
                level = levels[U(min(probe, inner))]
                below[p] = probe if (probe <= inner) & (x[base + p] / scale >= level) else below[p]
        for p in range(U(128)):
            word = words[w + chunk * U(64) + (p & U(63))]
            r = threshold((word >> np.uint32(p >> U(6) << U(4))) & LOW)
            u = x[base + p] / scale
            low, high = levels[U(below[p])], levels[U(below[p]) + U(1)]
            way = F(high - u) if u < F(0) else F(u - low)
            outward = way > F(r * F(high - low))
            symbols[to + chunk * U(128) + p] = np.uint8(I(below[p] + (I(1) if outward != (u < F(0)) else I(0))))


@njit(**COMPILED)
def round_signs(x: Any, at: Any, n: Any, symbols: Any) -> None:
    """1 where one of the n elements from x[at] on is not below zero."""
    for p in range(n):
        symbols[p] = np.uint8(1) if x[at + p] >= F(0) else np.uint8(0)


UNIFORM, POWERS, COUNTING, SEARCHING, SIGNS = range(5)
"""Kinds of rounding: a number, looked at once for a bucket, so that one compiled loop holds them all."""
