"""The levels of n symbols, exactly as in the table: by arithmetic or selection where a gather would be slow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from thriftgrad.kernels.cpu.rounding import POWERS, UNIFORM
from thriftgrad.kernels.cpu.settings import COMPILED, F, I, U


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


@njit(**COMPILED)
def table_values(symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """Any table; up to 16 levels by a tree of selections, whose leaves stay in registers."""
    if alphabet > 16:
        for p in range(n):
            values[p] = levels[U(symbols[p])]
        return
    last = alphabet - 1
    a, b, c, d = levels[0], levels[min(1, last)], levels[min(2, last)], levels[min(3, last)]
    e, f, g, h = levels[min(4, last)], levels[min(5, last)], levels[min(6, last)], levels[min(7, last)]
    for p in range(n):
        symbol = symbols[p]
        odd, two, four = symbol & np.uint8(1) != 0, symbol & np.uint8(2) != 0, symbol & np.uint8(4) != 0
        low = (d if odd else c) if two else (b if odd else a)
        high = (h if odd else g) if two else (f if odd else e)
        values[p] = high if four else low
    if last < 8:
        return
    a, b, c, d = levels[8], levels[min(9, last)], levels[min(10, last)], levels[min(11, last)]
    e, f, g, h = levels[min(12, last)], levels[min(13, last)], levels[min(14, last)], levels[min(15, last)]
    for p in range(n):
        symbol = symbols[p]
        odd, two, four = symbol & np.uint8(1) != 0, symbol & np.uint8(2) != 0, symbol & np.uint8(4) != 0
        low = (d if odd else c) if two else (b if odd else a)
        high = (h if odd else g) if two else (f if odd else e)
        upper = high if four else low
        values[p] = upper if symbol & np.uint8(8) != 0 else values[p]


@njit(**COMPILED)
def levels_of(kind: Any, symbols: Any, n: Any, levels: Any, alphabet: Any, values: Any) -> None:
    """By the kind of rounding."""
    if kind == UNIFORM:
        uniform_values(symbols, n, levels, alphabet, values)
    elif kind == POWERS:
        power_values(symbols, n, levels, alphabet, values)
    else:
        table_values(symbols, n, levels, alphabet, values)
