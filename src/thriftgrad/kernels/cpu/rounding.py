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
    last = I(alphabet - U(1))
    base = I(last >> I(1))
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
    if j + U(1) < alphabet:
        return levels[j], F(levels[j + U(1)] - levels[j])
    return F(np.inf), F(0)


@njit(**INLINED)
def above_two(a: Any, r: Any, l0: Any, l1: Any, g0: Any, g1: Any) -> Any:
    """How many stochastic thresholds lie below a, if it is in one of two intervals, or below them or above."""
    upper = a >= l1
    low, gap = l1 if upper else l0, g1 if upper else g0
    # The sign of a difference, since a comparison would go through a mask and back.
    outward = I(F(F(r * gap) - F(a - low)).view(np.uint32) >> np.uint32(31))
    return I(outward + I(1)) if upper else outward


@njit(**INLINED)
def above_four(a: Any, r: Any, l0: Any, l1: Any, l2: Any, l3: Any, g0: Any, g1: Any, g2: Any, g3: Any) -> Any:
    """Likewise in one of four."""
    upper = a >= l2
    n = above_two(a, r, l2 if upper else l0, l3 if upper else l1, g2 if upper else g0, g3 if upper else g1)
    return I(n + I(2)) if upper else n


@njit(**INLINED)
def above_eight(
    a: Any,
    r: Any,
    l0: Any,
    l1: Any,
    l2: Any,
    l3: Any,
    l4: Any,
    l5: Any,
    l6: Any,
    l7: Any,
    g0: Any,
    g1: Any,
    g2: Any,
    g3: Any,
    g4: Any,
    g5: Any,
    g6: Any,
    g7: Any,
) -> Any:
    """Likewise in one of eight."""
    upper = a >= l4
    n = above_four(
        a,
        r,
        l4 if upper else l0,
        l5 if upper else l1,
        l6 if upper else l2,
        l7 if upper else l3,
        g4 if upper else g0,
        g5 if upper else g1,
        g6 if upper else g2,
        g7 if upper else g3,
    )
    return I(n + I(4)) if upper else n


@njit(**COMPILED)
def round_counting(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To a symmetric table: a symbol is how many stochastic thresholds its element exceeds.

    Those of intervals below are exceeded whatever the random number is, those of intervals above are not, if gaps are
    2**-100 or more. Eight thresholds at a time: a search, by branches or by gathers, is slower for up to 256 levels.
    """
    last = I(alphabet - U(1))
    base = I(last >> I(1))
    intervals = U(last - base)
    if intervals <= U(4):
        _count_four(x, at, chunks, scale, words, w, levels, alphabet, symbols, to)
        return
    for p in range(chunks * U(128)):
        symbols[to + p] = np.uint8(0)
    for j in range(U(0), intervals, U(8)):
        final = j + U(8) >= intervals
        _count_eight(x, at, chunks, scale, words, w, levels, alphabet, U(base) + j, final, symbols, to)


@njit(**COMPILED)
def _count_four(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    last = I(alphabet - U(1))
    base = I(last >> I(1))
    l0, g0 = interval(levels, alphabet, U(base))
    l1, g1 = interval(levels, alphabet, U(base) + U(1))
    l2, g2 = interval(levels, alphabet, U(base) + U(2))
    l3, g3 = interval(levels, alphabet, U(base) + U(3))
    for chunk in range(chunks):
        for p in range(U(64)):
            i = chunk * U(128) + p
            word = words[w + chunk * U(64) + p]
            u, v = x[at + i] / scale, x[at + i + U(64)] / scale
            r, q = threshold(word & LOW), threshold(word >> HALF)
            n = above_four(abs(u), r, l0, l1, l2, l3, g0, g1, g2, g3)
            m = above_four(abs(v), q, l0, l1, l2, l3, g0, g1, g2, g3)
            symbols[to + i] = mirrored(u, base, n, last)
            symbols[to + i + U(64)] = mirrored(v, base, m, last)


@njit(**COMPILED)
def _count_eight(
    x: Any,
    at: Any,
    chunks: Any,
    scale: Any,
    words: Any,
    w: Any,
    levels: Any,
    alphabet: Any,
    j: Any,
    final: Any,
    symbols: Any,
    to: Any,
) -> None:
    """Adds to what was counted before the intervals from the j-th on; in the end, that becomes a symbol."""
    last = I(alphabet - U(1))
    base = I(last >> I(1))
    l0, g0 = interval(levels, alphabet, j)
    l1, g1 = interval(levels, alphabet, j + U(1))
    l2, g2 = interval(levels, alphabet, j + U(2))
    l3, g3 = interval(levels, alphabet, j + U(3))
    l4, g4 = interval(levels, alphabet, j + U(4))
    l5, g5 = interval(levels, alphabet, j + U(5))
    l6, g6 = interval(levels, alphabet, j + U(6))
    l7, g7 = interval(levels, alphabet, j + U(7))
    for chunk in range(chunks):
        for p in range(U(64)):
            i = chunk * U(128) + p
            word = words[w + chunk * U(64) + p]
            u, v = x[at + i] / scale, x[at + i + U(64)] / scale
            r, q = threshold(word & LOW), threshold(word >> HALF)
            n = above_eight(abs(u), r, l0, l1, l2, l3, l4, l5, l6, l7, g0, g1, g2, g3, g4, g5, g6, g7)
            m = above_eight(abs(v), q, l0, l1, l2, l3, l4, l5, l6, l7, g0, g1, g2, g3, g4, g5, g6, g7)
            n, m = I(n + I(symbols[to + i])), I(m + I(symbols[to + i + U(64)]))
            symbols[to + i] = mirrored(u, base, n, last) if final else np.uint8(n)
            symbols[to + i + U(64)] = mirrored(v, base, m, last) if final else np.uint8(m)


@njit(**COMPILED)
def round_searching(
    x: Any, at: Any, chunks: Any, scale: Any, words: Any, w: Any, levels: Any, alphabet: Any, symbols: Any, to: Any
) -> None:
    """To any table, element by element, as ``round_to_levels`` does."""
    inner = alphabet - U(2)
    for k in range(chunks * U(128)):
        p = k & U(63)
        word = words[w + k // U(128) * U(64) + p]
        r = threshold(word & LOW if k & U(64) == U(0) else word >> HALF)
        u = x[at + k] / scale
        below, beyond_it = U(0), inner + U(1)
        while below + U(1) < beyond_it:
            middle = (below + beyond_it) >> U(1)
            if u >= levels[middle]:
                below = middle
            else:
                beyond_it = middle
        low, high = levels[below], levels[below + U(1)]
        way = F(high - u) if u < F(0) else F(u - low)
        outward = way > F(r * F(high - low))
        symbols[to + k] = np.uint8(below + U(outward != (u < F(0))))


@njit(**COMPILED)
def round_signs(x: Any, at: Any, n: Any, symbols: Any) -> None:
    """1 where one of the n elements from x[at] on is not below zero."""
    for p in range(n):
        symbols[p] = np.uint8(1) if x[at + p] >= F(0) else np.uint8(0)


UNIFORM, POWERS, COUNTING, SEARCHING, SIGNS = range(5)
"""Kinds of rounding: a number, looked at once for a bucket, so that one compiled loop holds them all."""
