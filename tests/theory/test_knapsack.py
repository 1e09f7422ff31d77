"""The allocation against brute force: exactly where the units are fine enough, within their bound elsewhere."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftgrad.theory.knapsack import UNITS, allocate

Tables = tuple[list[list[float]], list[list[int]], int]


@st.composite
def tables(draw: st.DrawFn, largest: int = 60) -> Tables:
    """Errors, sizes and a budget that the smallest sizes fit in."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size, error = st.integers(0, largest), st.floats(0, 100)
    sizes = [[draw(size) for _ in range(columns)] for _ in range(rows)]
    errors = [[draw(error) for _ in range(columns)] for _ in range(rows)]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    return errors, sizes, draw(st.integers(least, most + 5))


def total(table: list[list[Any]], choice: tuple[int, ...]) -> Any:
    return sum(row[i] for row, i in zip(table, choice, strict=True))


def least_error(errors: list[list[float]], sizes: list[list[int]], budget: int) -> float:
    """By trying everything; infinite where nothing fits."""
    every = product(*(range(len(row)) for row in errors))
    return min((total(errors, each) for each in every if total(sizes, each) <= budget), default=float("inf"))


@given(tables())
def test_the_least_error_within_the_budget(drawn: Tables) -> None:
    errors, sizes, budget = drawn
    choice = allocate(errors, sizes, budget)
    assert total(sizes, choice) <= budget
    assert total(errors, choice) == pytest.approx(least_error(*drawn), rel=1e-12)


@given(tables(), st.integers(0, 40))
def test_a_larger_budget_is_never_worse(drawn: Tables, more: int) -> None:
    errors, sizes, budget = drawn
    tight, loose = (total(errors, allocate(errors, sizes, budget + each)) for each in (0, more))
    assert loose <= tight * (1 + 1e-12)


@given(tables(largest=10**8))
def test_coarse_units_keep_the_budget_and_their_bound(drawn: Tables) -> None:
    errors, sizes, budget = drawn
    choice = allocate(errors, sizes, budget)
    assert total(sizes, choice) <= budget
    unit = -(-budget // UNITS)
    assert total(errors, choice) <= least_error(errors, sizes, budget - len(sizes) * unit) * (1 + 1e-12)


def test_the_smallest_sizes_fit_whatever_the_rounding() -> None:
    """Sizes of which nearly all exceed a unit by one, and a budget without a byte to spare."""
    sizes = np.array([[10**7 + 1, 3 * 10**7 + 1]] * 7)
    errors = np.array([[2.0, 1.0]] * 7)
    assert allocate(errors, sizes, 7 * (10**7 + 1)) == (0,) * 7
    assert allocate(errors, sizes, 7 * (10**7 + 1) + 2 * 10**7 - 1) == (0,) * 7
    assert sum(allocate(errors, sizes, 7 * (10**7 + 1) + 2 * 10**7)) == 1
    assert allocate(errors, sizes, 10**12) == (1,) * 7


def test_a_common_divisor_makes_large_sizes_exact() -> None:
    """Ten million times the sizes, the same choice."""
    generator = np.random.default_rng(0)
    sizes, errors = generator.integers(1, 50, (30, 5)), generator.random((30, 5))
    budget = int(sizes.min(1).sum()) + 100
    assert allocate(errors, 10**7 * sizes, 10**7 * budget) == allocate(errors, sizes, budget)


def test_of_equal_errors_the_smaller_size() -> None:
    assert allocate([[0.0, 0.0, 0.0]] * 3, [[7, 3, 5]] * 3, 100) == (1, 1, 1)


def test_no_row_no_choice() -> None:
    assert allocate(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), 0) == ()


@pytest.mark.parametrize(
    ("errors", "sizes", "budget", "error", "words"),
    [
        ([[1.0, 2.0]], [[5, 9]], 4, ValueError, "a budget of 4 is below the 5 of the smallest sizes; raise it"),
        ([[1.0, 2.0]], [[5]], 9, ValueError, "must be tables of one shape, got [1, 2] and [1, 1]; give a row"),
        ([1.0], [5], 9, ValueError, "must be tables of one shape, got [1] and [1]"),
        ([[]], [[]], 9, ValueError, "must be tables of one shape, got [1, 0] and [1, 0]"),
        ([[1.0]], [[5.5]], 9, TypeError, "sizes must be integers, got float64; round them up"),
        ([[float("nan")]], [[5]], 9, ValueError, "the errors must be finite, got a NaN or an infinity; leave that"),
        ([[1.0]], [[-5]], 9, ValueError, "sizes must not be negative, got -5"),
        ([[1.0]], [[5]], 9.5, TypeError, "the budget must be an integer, got 9.5; pass an int"),
        ([["a"]], [[5]], 9, TypeError, "the errors must be real numbers"),
    ],
)
def test_refusals(errors: Any, sizes: Any, budget: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        allocate(errors, sizes, budget)
