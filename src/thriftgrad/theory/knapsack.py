"""One item of every row, so that the sum of costs is least and the sum of sizes stays within a budget."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thriftgrad.theory.checks import integer, numbers

UNITS = 10_000
"""How many pieces a budget is cut into at most."""


def allocate(errors: ArrayLike, sizes: ArrayLike, budget: int, once: ArrayLike | None = None) -> tuple[int, ...]:
    """The column of each row with which the sum of ``errors`` is least while that of ``sizes`` is within ``budget``.

    ``errors``: float[t, c], finite; ``sizes``: int[t, c], in the units of ``budget``; ``once``: int[c], what a column
    takes once if any row has it, such as the header of a message. Of equal errors the smaller size.

    A multiple-choice knapsack, by dynamic programming over what a row takes beyond its smallest size. That is counted
    in units of their common divisor, and so exactly, as long as 10 000 of them hold what the budget leaves; else in
    units u of a 10 000th of it, rounded up: then the budget is kept, and the error is at most the least there is
    within budget - t u. ``once`` is counted for every row, or for every column, and the better is taken; or one column
    for all rows, where that fits and is better still. O(10 000 t c).

    Raises ``ValueError`` for tables of other shapes, errors that are not finite, sizes below zero, and a budget that
    the smallest sizes, each with its ``once``, exceed; ``TypeError`` for sizes that are no integers.
    Differs from L-GreCo, Markov et al., 2022, arXiv:2210.17357, which bounds the error and minimises the size.

    >>> allocate([[9.0, 1.0], [4.0, 1.0]], [[10, 20], [10, 20]], budget=30)
    (1, 0)
    """
    costs, taken, fixed = _tables(errors, sizes, once)
    budget = integer(budget, "the budget", "allocate")
    smallest = int((taken + fixed).min(1).sum())
    if smallest > budget:
        raise ValueError(f"allocate: a budget of {budget} is below the {smallest} of the smallest sizes; raise it.")
    plans = [_allocated(costs, taken + fixed, budget)]
    if fixed.any() and int(taken.min(1).sum() + fixed.sum()) <= budget:
        plans.append(_allocated(costs, taken, budget - int(fixed.sum())))
    rows, columns = costs.shape
    plans += [np.full(rows, column) for column in range(columns)]
    every = np.arange(rows)
    fitting = [plan for plan in plans if taken[every, plan].sum() + fixed[np.unique(plan)].sum() <= budget]
    return tuple(min(fitting, key=lambda plan: float(costs[every, plan].sum())).tolist())


def _allocated(costs: NDArray[np.float64], taken: NDArray[np.int64], budget: int) -> NDArray[np.int64]:
    """The columns, where the smallest sizes are within the budget."""
    order = np.argsort(taken, axis=1, kind="stable")  # so that the smaller size comes first where errors are equal
    costs, taken = np.take_along_axis(costs, order, 1), np.take_along_axis(taken, order, 1)
    extra = taken - taken[:, :1]
    left = min(budget - int(taken[:, 0].sum()), int(extra.max(1, initial=0).sum()))
    divisor = gcd(*extra.ravel().tolist()) or 1
    unit = divisor * max(1, -(-left // (divisor * UNITS)))
    places = _least(costs, -(-extra // unit), left // unit)
    return np.take_along_axis(order, places[:, None], 1)[:, 0]


def _least(costs: NDArray[np.float64], units: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The columns of least cost whose units sum to at most ``most``; the first column of each row takes none."""
    best = np.zeros(most + 1)  # least cost of the rows so far, by the units that they may take
    taken = []
    for cost, need in zip(costs, units, strict=True):
        options = np.full((len(cost), most + 1), np.inf)
        for i, n in enumerate(need.tolist()):
            if n <= most:
                options[i, n:] = best[: most + 1 - n] + cost[i]
        taken.append(options.argmin(0))
        best = options.min(0)
    places = np.zeros(len(costs), dtype=np.int64)
    for row in range(len(costs) - 1, -1, -1):
        places[row] = taken[row][most]
        most -= int(units[row, places[row]])
    return places


def _tables(
    errors: ArrayLike, sizes: ArrayLike, once: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    costs, taken = numbers(errors, "the errors", "allocate"), np.asarray(sizes)
    if costs.ndim != 2 or costs.shape != taken.shape or not costs.shape[1]:
        raise ValueError(
            f"allocate: errors and sizes must be tables of one shape, got {list(costs.shape)} and {list(taken.shape)}; "
            "give a row for each tensor and a column for each choice."
        )
    fixed = np.zeros(costs.shape[1], dtype=np.int64) if once is None else np.asarray(once)
    if fixed.shape != costs.shape[1:]:
        raise ValueError(
            f"allocate: once must hold a size for each of the {costs.shape[1]} columns, got {list(fixed.shape)}."
        )
    for each in (taken, fixed):
        if each.dtype.kind not in "iu":
            raise TypeError(f"allocate: sizes must be integers, got {each.dtype}; round them up.")
        if each.min(initial=0) < 0:
            raise ValueError(f"allocate: sizes must not be negative, got {each.min()}.")
    if not np.isfinite(costs).all():
        raise ValueError("allocate: the errors must be finite, got a NaN or an infinity; leave that choice out.")
    return costs, taken.astype(np.int64), fixed.astype(np.int64)
