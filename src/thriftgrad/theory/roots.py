"""One vectorised root finder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def increasing_root(
    function: Callable[[Array], tuple[Array, Array]],
    low: Array,
    high: Array,
    guess: Array | None = None,
    steps: int = 100,
) -> Array:
    """The x in [low, high] at which a non-decreasing function changes its sign, elementwise.

    ``function`` returns value and derivative. Newton's step where it stays in the bracket and is at most half the step
    before the last one, bisection elsewhere; so a flat or kinked function costs bisections and never fails.
    Where the function is zero on an interval, some point of it.
    """
    x = (low + high) / 2 if guess is None else np.clip(guess, low, high)
    last = before = np.asarray(high - low)
    for _ in range(steps):
        value, slope = function(x)
        low, high = np.where(value < 0, x, low), np.where(value > 0, x, high)
        with np.errstate(all="ignore"):
            newton = x - value / slope
            good = (newton >= low) & (newton <= high) & (2 * np.abs(newton - x) <= before)
        moved = np.where(value == 0, x, np.where(good, newton, (low + high) / 2))
        before, last = last, np.abs(moved - x)
        x = moved
        if (last <= 4e-16 * np.abs(x)).all():
            break
    return np.asarray(x)
