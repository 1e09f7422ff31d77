"""The levels of n symbols, exactly as in the table: by arithmetic or selection where a gather would be slow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.rounding import POWERS, UNIFORM
from thriftgrad.kernels.cpu.settings import COMPILED, INLINED, F, I, U


@njit(**COMPILED)
def uniform_values(symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """l / s for l = -s ... s: one rounding, as in the table."""
    zero = I(alphabet // 2)
    for p in range(n):
        values[p] = F(I(I(symbols[p]) - zero)) / F(zero)


@njit(**COMPILED)
def power_values(symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """Powers of two from 1 down, of both signs, with zero or without: the exponent is the distance from the end."""
    last = I(alphabet - 1)
    for p in range(n):
        symbol = I(symbols[p])
        mirrored = I(last - symbol)
        bits = I(I(I(127) - min(symbol, mirrored)) << I(23))
        value = I(bits).view(np.float32)
        signed = -value if symbol < mirrored else value
        values[p] = F(0) if symbol == mirrored else signed


@njit(**INLINED)
def one_of_eight(symbol: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """By the lowest three bits: a tree of selections."""
    odd, two, four = I(symbol & I(1)) != I(0), I(symbol & I(2)) != I(0), I(symbol & I(4)) != I(0)
    low = (d if odd else c) if two else (b if odd else a)
    high = (h if odd else g) if two else (f if odd else e)
    return high if four else low


@njit(**COMPILED)
def table_values(symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """Any table; up to 16 levels are selected, since they stay in registers."""
    last = alphabet - U(1)
    if last >= U(16):
        for p in range(n):
            values[p] = levels[min(U(symbols[p]), last)]
        return
    a, b, c, d = levels[0], levels[min(U(1), last)], levels[min(U(2), last)], levels[min(U(3), last)]
    e, f, g, h = (
        levels[min(U(4), last)],
        levels[min(U(5), last)],
        levels[min(U(6), last)],
        levels[min(U(7), last)],
    )
    for p in range(n):
        values[p] = one_of_eight(I(symbols[p]), a, b, c, d, e, f, g, h)
    if last < U(8):
        return
    a, b, c, d = levels[8], levels[min(U(9), last)], levels[min(U(10), last)], levels[min(U(11), last)]
    e, f, g, h = (
        levels[min(U(12), last)],
        levels[min(U(13), last)],
        levels[min(U(14), last)],
        levels[min(U(15), last)],
    )
    for p in range(n):
        symbol = I(symbols[p])
        upper = one_of_eight(symbol, a, b, c, d, e, f, g, h)
        values[p] = upper if symbol >= I(8) else values[p]


@njit(**COMPILED)
def levels_of(kind: Any, symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """By the kind of rounding."""
    if kind == UNIFORM:
        uniform_values(symbols, n, levels, alphabet, values)
    elif kind == POWERS:
        power_values(symbols, n, levels, alphabet, values)
    else:
        table_values(symbols, n, levels, alphabet, values)
