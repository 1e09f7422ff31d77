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


def taken(sizes: list[list[int]], once: list[int], choice: tuple[int, ...]) -> int:
    return int(total(sizes, choice)) + sum(once[i] for i in set(choice))


@given(tables(), st.lists(st.integers(0, 30), min_size=4, max_size=4), st.integers(0, 100))
def test_what_a_column_takes_once(drawn: Tables, drawn_once: list[int], more: int) -> None:
    """Within the budget; no worse than one column for all, nor than the best that leaves room to count it too often."""
    errors, sizes, _ = drawn
    rows, columns = len(errors), len(errors[0])
    once = drawn_once[:columns]
    budget = sum(min(a + b for a, b in zip(row, once, strict=True)) for row in sizes) + more
    choice = allocate(errors, sizes, budget, once)
    found = total(errors, choice)
    assert taken(sizes, once, choice) <= budget
    for column in range(columns):
        if taken(sizes, once, (column,) * rows) <= budget:
            assert found <= total(errors, (column,) * rows) * (1 + 1e-12)
    assert found <= least_error(errors, sizes, budget - sum(once)) * (1 + 1e-12)
    alone = [[a + b for a, b in zip(row, once, strict=True)] for row in sizes]
    assert found <= least_error(errors, alone, budget) * (1 + 1e-12)


def test_a_header_is_counted_once() -> None:
    """Three rows of the better column take 3 * 11 + 20 with one header, and 3 * 31 with three."""
    assert allocate([[2.0, 1.0]] * 3, [[10, 11]] * 3, 90, once=[20, 20]) == (1, 1, 1)
    assert sum(allocate([[2.0, 1.0]] * 3, [[10, 11]] * 3, 90 + 2, once=[20, 1000])) == 0


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
    ("errors", "sizes", "budget", "once", "error", "words"),
    [
        ([[1.0, 2.0]], [[5, 9]], 4, None, ValueError, "a budget of 4 is below the 5 of the smallest sizes; raise it"),
        ([[1.0, 2.0]], [[5]], 9, None, ValueError, "must be tables of one shape, got [1, 2] and [1, 1]; give a row"),
        ([1.0], [5], 9, None, ValueError, "must be tables of one shape, got [1] and [1]"),
        ([[]], [[]], 9, None, ValueError, "must be tables of one shape, got [1, 0] and [1, 0]"),
        ([[1.0]], [[5.5]], 9, None, TypeError, "sizes must be integers, got float64; round them up"),
        (
            [[float("nan")]],
            [[5]],
            9,
            None,
            ValueError,
            "the errors must be finite, got a NaN or an infinity; leave that",
        ),
        ([[1.0]], [[-5]], 9, None, ValueError, "sizes must not be negative, got -5"),
        ([[1.0]], [[5]], 9.5, None, TypeError, "the budget must be an integer, got 9.5; pass an int"),
        ([[1.0]], [[5]], 9, [5], ValueError, "a budget of 9 is below the 10 of the smallest sizes"),
        ([[1.0]], [[5]], 9, [5, 5], ValueError, "once must hold a size for each of the 1 columns, got [2]"),
        ([[1.0]], [[5]], 9, [0.5], TypeError, "sizes must be integers, got float64"),
        ([["a"]], [[5]], 9, None, TypeError, "the errors must be real numbers"),
    ],
)
def test_refusals(errors: Any, sizes: Any, budget: Any, once: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        allocate(errors, sizes, budget, once)
