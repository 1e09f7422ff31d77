"""Descent on sorted levels: sweeps that never raise the cost, and Newton steps where they lower it further."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thriftgrad.theory.distributions import Array, Distribution
from thriftgrad.theory.histogram import Histogram


def sketch(folded: Distribution) -> Histogram:
    """The distribution of a magnitude in bins, on which starts are tried at a price that no mixture raises."""
    nodes = folded.nodes()
    return Histogram(nodes, np.maximum(folded.m0(nodes[:-1], nodes[1:]), 0.0))


def starts(bins: Histogram, interior: int) -> Array:
    """Starting levels in (0, high), float64[4, interior], one start a row, for the distribution of a magnitude.

    Quantiles, levels as dense as the cube root of the density (the best there are once they are many), and uniform and
    geometric ones on the scale of the distribution: with a scale far below 1 those on [0, 1] see no mass.
    """
    share = np.arange(1, interior + 1) / (interior + 1)
    rms = max(float(np.sqrt(bins.m2(0.0, bins.high))), 1e-30)
    nodes = bins.nodes()
    dense = np.cumsum(np.append(0.0, np.cbrt(bins.density(nodes[:-1])) * np.diff(nodes)))
    rows = [
        bins.quantile(share),
        np.interp(share * dense[-1], dense, nodes),
        share * min(4 * rms, bins.high),
        np.geomspace(min(rms / 4, bins.high / 2), bins.high, interior + 1)[:-1],
    ]
    return spread(np.stack(rows), bins.high)


def spread(levels: Array, top: float = 1.0) -> Array:
    """The levels, moved by as little as makes them distinct float32 numbers in (0, top), along the last axis."""
    count = levels.shape[-1]
    step = 1 + 2.0**-21
    room = step ** np.arange(count)  # levels / room non-decreasing: neighbours differ by a factor of at least step
    rising = np.maximum.accumulate(np.maximum(levels, 1e-30) / room, axis=-1) * room
    return np.asarray(np.minimum(rising, top / step * room / room[-1] if count else top))


def tridiagonal(lower: Array, diagonal: Array, upper: Array, right: Array) -> Array:
    """Solves tridiagonal systems, one a row; a singular one gives what is not finite."""
    count = diagonal.shape[-1]
    ratio, value = np.empty_like(diagonal), np.empty_like(diagonal)
    with np.errstate(all="ignore"):
        for j in range(count):
            pivot = diagonal[:, j] - (lower[:, j - 1] * ratio[:, j - 1] if j else 0.0)
            ratio[:, j] = upper[:, j] / pivot if j < count - 1 else 0.0
            value[:, j] = (right[:, j] - (lower[:, j - 1] * value[:, j - 1] if j else 0.0)) / pivot
        for j in range(count - 2, -1, -1):
            value[:, j] -= ratio[:, j] * value[:, j + 1]
    return value


def descend(
    levels: Array,
    cost: Callable[[Array], Array],
    sweep: Callable[[Array], Array],
    newton: Callable[[Array], Array],
    rounds: int,
    tolerance: float,
    top: float,
) -> Array:
    """The row of lowest cost, after rounds of one sweep and one Newton step each, on every row at once.

    A Newton step is taken where it keeps the order and lowers the cost. Ends when no level of any row moves by more
    than ``tolerance`` relative to itself, or after ``rounds``.
    """
    value = cost(levels)
    for _ in range(rounds):
        before = levels
        swept = sweep(levels)
        levels, value = _better(levels, value, swept, cost, top)
        levels, value = _better(levels, value, newton(levels), cost, top)
        if (np.abs(levels - before) <= tolerance * levels).all():
            break
    return np.asarray(levels[int(np.argmin(value))])


def _better(
    levels: Array, value: Array, trial: Array, cost: Callable[[Array], Array], top: float
) -> tuple[Array, Array]:
    """Row by row the trial, if it is in order and not worse, else what there was."""
    with np.errstate(all="ignore"):
        ends = np.zeros((len(trial), 1)), np.full((len(trial), 1), top)
        gaps = np.diff(np.concatenate([ends[0], trial, ends[1]], axis=1), axis=1)
        ordered = gaps.min(axis=1, keepdims=True) > 0
    trial = np.where(ordered, trial, levels)
    trial_value = cost(trial)
    taken = np.less_equal(trial_value, value)
    return np.where(taken[:, None], trial, levels), np.where(taken, trial_value, value)
