"""From an owed element to its symbol, by the rules of ``quantised``."""

from __future__ import annotations

import triton
import triton.language as tl

UNIFORM = tl.constexpr(0)
LEVELS = tl.constexpr(1)
SIGN = tl.constexpr(2)
"""How a symbol is found."""

MAGIC = tl.constexpr(8388608.0)
"""2**23: from there to 2**24 a float32's last bits are the integer above 2**23, and adding it rounds to the nearest."""

SIGN_BIT = tl.constexpr(-(2**31))

SMALLEST = tl.constexpr(2.0**-64)
GREATEST = tl.constexpr(2.0**126)
"""Between them a scale has a reciprocal, and what its remainders lose to underflow is far below any threshold."""


FMA_ROUNDS_ONCE = tl.constexpr(not triton.knobs.runtime.interpret)
"""As it must, on a device; triton's interpreter rounds the product too."""


@triton.jit
def ordinary(scale):
    """Whether ``over`` may take the short way with all of these scales; what belongs to a zero is zero."""
    return tl.min(((scale == 0) | ((scale >= SMALLEST) & (scale <= GREATEST))).to(tl.int32)) == 1


@triton.jit
def over(value, divisor, reciprocal, SHORT: tl.constexpr):
    """|value| / divisor, rounded as IEEE says, at most 1; NaN becomes 0.

    The short way is Markstein's: the remainder of the product with the reciprocal, both rounded to nearest, corrects
    it; three instructions instead of eleven. It is exact for every pair of float32 (no quotient comes closer to the
    middle of two than its error), if nothing underflows that counts.
    """
    if SHORT:
        product = value * reciprocal
        share = tl.minimum(tl.abs(tl.fma(tl.fma(product, -divisor, value), reciprocal, product)), 1.0)
    else:
        share = tl.div_rn(tl.abs(value), divisor)
        share = tl.where(share <= 1.0, share, tl.where(share > 1.0, 1.0, 0.0))
    return share


@triton.jit
def symbol_of(
    value,
    divisor,
    reciprocal,
    limit,
    levels,
    RULE: tl.constexpr,
    SIZE: tl.constexpr,
    STEPS: tl.constexpr,
    SHORT: tl.constexpr,
):
    """The symbol, in the low 16 bits of an int32, and anything above.

    limit: ``philox.threshold``; SIZE: s, or how many levels there are; STEPS: of the search in them.
    """
    if RULE == SIGN:
        symbol = (value >= 0).to(tl.int32)
    else:
        share = over(value, divisor, reciprocal, SHORT)
        if RULE == UNIFORM:
            symbol = _uniform(value, share, limit, SIZE)
        else:
            symbol = _level(tl.where(value < 0, -share, share), limit, levels, SIZE, STEPS)
    return symbol


@triton.jit
def _uniform(value, share, limit, S: tl.constexpr):
    at = share * S
    if S > 127:
        nearest = (at + MAGIC) - MAGIC
        at = tl.where(tl.abs(at - nearest) <= 2.0**-16, nearest, at)
    low = tl.floor(at)
    rounded = tl.where(at - low > limit, low + 1.0, low).to(tl.int32, bitcast=True)
    signed = (rounded | (value.to(tl.int32, bitcast=True) & SIGN_BIT)).to(tl.float32, bitcast=True)
    return (signed + (MAGIC + S)).to(tl.int32, bitcast=True)


@triton.jit
def _level(u, limit, levels, SIZE: tl.constexpr, STEPS: tl.constexpr):
    below = tl.zeros_like(u).to(tl.int32)
    for step in tl.static_range(STEPS):  # the last of levels 0 ... SIZE - 2 that is not above u
        tried = below + (1 << (STEPS - 1 - step))
        if (1 << STEPS) - (1 << (STEPS - 1 - step)) < SIZE:
            level = tl.load(levels + tried)
        else:
            level = tl.load(levels + tried, mask=tried < SIZE, other=2.0)
        below = tl.where(level <= u, tried, below)
    below = tl.minimum(below, SIZE - 2)
    low, high = tl.load(levels + below), tl.load(levels + below + 1)
    negative = u < 0
    way = tl.where(negative, high - u, u - low)
    outward = way > limit * (high - low)
    return below + (outward != negative).to(tl.int32)
