"""Leaving the subspace: lost columns, random and exact refreshes, and tensors that come at other steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregate.power_sgd_oracle import EVERYTHING, changed, drawn, kept, low_rank, random, started, wide
from samples import step
from thriftgrad import Key, Ledger, PowerSGD

ALTERNATING: dict[str, Any] = {"alternating": True}


def trapped() -> tuple[Tensor, Tensor]:
    """A matrix, and a right factor that is orthogonal to each of its rows."""
    x = torch.zeros(6, 8)
    x[:, :4] = low_rank(6, 4, 1)
    q = torch.zeros(8, 2)
    q[4:] = random(4, 2)
    return x, q


@pytest.mark.parametrize("form", [{}, {"residual_iterations": 2}, ALTERNATING, {"power_iterations": 3}], ids=str)
def test_a_factor_that_sees_nothing_is_drawn_anew(form: dict[str, Any]) -> None:
    """One step sends nothing and keeps everything; the next ones start from a normal factor of their own."""
    x, q = trapped()
    method = PowerSGD(rank=2, **form, min_compression_rate=EVERYTHING)
    if "residual_iterations" in form:
        q = torch.cat([q, q], 1)
    states = [changed(state, factor=q) for state in started(method, [x], 2)]
    means, states = step(method, [[x], [x]], states, Key(0))
    assert not means[0][0].any()
    torch.testing.assert_close(kept(states[0]).memory, x)
    rows = 6 if method.alternating else 8
    anew = drawn(rows, q.shape[1], Key(0).fold("lost"))
    np.testing.assert_array_equal(wide(kept(states[0]).factor), anew)
    for i in range(1, 4):
        means, states = step(method, [[x], [x]], states, Key(i))
    # A memory that a left product left behind has other columns than x, so that the one-sided form needs longer.
    assert kept(states[0]).memory.norm() < (0.3 if method.alternating else 1e-4) * x.norm()


def test_a_factor_that_is_never_drawn_anew_stays_trapped() -> None:
    """What the guard is against: put back by hand, the memory holds all that ever came."""
    x, q = trapped()
    method = PowerSGD(rank=2, min_compression_rate=EVERYTHING)
    states = started(method, [x], 1)
    for i in range(50):
        _, states = step(method, [[x]], [changed(states[0], factor=q)], Key(i))
    assert kept(states[0]).memory.norm().item() == pytest.approx(50 * x.norm().item(), rel=1e-4)


@pytest.mark.parametrize("form", [{}, {"residual_iterations": 2}, ALTERNATING, {"start_after": 1}], ids=str)
def test_a_random_refresh_starts_from_a_normal_factor_and_keeps_the_memory(form: dict[str, Any]) -> None:
    method = PowerSGD(rank=2, **form, refresh_every=3, min_compression_rate=EVERYTHING)
    states = started(method, [random(6, 8)], 2)
    for i in range(8):
        tensors = [[random(6, 8, seed=2 * i + w)] for w in range(2)]
        means, after = step(method, tensors, states, Key(i))
        redrawn, _ = step(method, tensors, [changed(state, factor=None) for state in states], Key(i))
        compressed = i - method.start_after
        assert torch.equal(means[0][0], redrawn[0][0]) == (compressed < 0 or compressed % 3 == 0)
        states = after


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"rank": 1, "residual_iterations": 2},
        ALTERNATING,
        {"rank": 1, "alternating": True, "residual_iterations": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("memory", ["local", "global", "none"])
def test_an_exact_refresh_sends_the_mean_and_starts_from_its_singular_vectors(form: Any, memory: Any) -> None:
    method = PowerSGD(**form, memory=memory, refresh="exact", refresh_every=3, min_compression_rate=EVERYTHING)
    states = started(method, [random(6, 8)], 2)
    columns = 2 if method.rank == 2 or not method.alternating else 1
    for i in range(7):
        tensors = [[random(6, 8, seed=2 * i + w)] for w in range(2)]
        ledger = Ledger()
        owed = [np.zeros((6, 8)) if kept(s).memory is None else wide(kept(s).memory) for s in states]
        means, states = step(method, tensors, states, Key(i), ledger)
        if i % 3:
            assert memory == "none" or kept(states[0]).memory.any()
            assert ledger.payload_up_bytes < 4 * 48
            continue
        mean = sum(wide(mine[0]) + e for mine, e in zip(tensors, owed, strict=True)) / 2
        np.testing.assert_allclose(wide(means[0][0]), mean, atol=1e-5)
        assert ledger.payload_up_bytes == 4 * 48
        assert dict(ledger.requests) == {"AllReduce": 1}
        for state in states:
            assert kept(state).memory is None if memory == "none" else not kept(state).memory.any()
            assert torch.equal(kept(state).factor, kept(states[0]).factor)
        left, _, right = np.linalg.svd(mean)
        next_from_left = method.alternating and (i + 1) * method.residual_iterations % 2 == 1
        vectors = left[:, :columns] if next_from_left else right[:columns].T
        found = wide(kept(states[0]).factor)
        assert found.shape == vectors.shape
        np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=1e-4)


@pytest.mark.parametrize("form", [{}, ALTERNATING], ids=str)
def test_after_an_exact_refresh_the_best_approximation_is_sent(form: dict[str, Any]) -> None:
    """Of the same matrix, one step later."""
    x = random(12, 9)
    method = PowerSGD(rank=2, **form, refresh="exact", refresh_every=100, min_compression_rate=EVERYTHING)
    states = started(method, [x], 2)
    for i in range(2):
        means, states = step(method, [[x], [x]], states, Key(i))
    left, values, right = np.linalg.svd(wide(x))
    np.testing.assert_allclose(wide(means[0][0]), (left[:, :2] * values[:2]) @ right[:2], atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 1)])
def test_an_exact_refresh_of_a_matrix_with_fewer_vectors_than_columns(shape: tuple[int, int]) -> None:
    """Three blocks of two; missing columns are drawn anew after the step that found them lost."""
    x = random(*shape)
    method = PowerSGD(residual_iterations=3, refresh="exact", refresh_every=4, min_compression_rate=EVERYTHING)
    states = started(method, [x], 2)
    for i in range(6):
        means, states = step(method, [[x], [x]], states, Key(i))
        assert (means[0][0] - x).norm() <= 1e-4 * x.norm()
        assert kept(states[0]).factor.isfinite().all()


def test_an_exact_refresh_of_zeros() -> None:
    method = PowerSGD(refresh="exact", refresh_every=2, min_compression_rate=EVERYTHING)
    zero = torch.zeros(4, 6)
    states = started(method, [zero], 2)
    for i in range(4):
        means, states = step(method, [[zero], [zero]], states, Key(i))
        assert not means[0][0].any()
        assert kept(states[0]).factor.isfinite().all()


@pytest.mark.parametrize("form", [{}, ALTERNATING], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at_step", [0, 2, 3])
def test_one_worker_that_is_not_finite_takes_the_step_back(form: dict[str, Any], bad: float, at_step: int) -> None:
    """In a step that sends all (0, 2) and in one that compresses (3): everybody keeps the state, and goes on."""
    method = PowerSGD(**form, refresh="exact", refresh_every=2, min_compression_rate=EVERYTHING)
    x, vector = random(6, 8), random(4)
    states = started(method, [x, vector], 2)
    for i in range(at_step):
        _, states = step(method, [[x, vector], [2 * x, vector]], states, Key(i))
    broken = x.clone()
    broken[1, 1] = bad
    means, after = step(method, [[x, vector], [broken, vector]], states, Key(at_step))
    assert all(not each.isfinite().all() for mine in means for each in mine)
    assert all(a is b for a, b in zip(after, states, strict=True))
    healed, after = step(method, [[x, vector], [x, vector]], after, Key(at_step))
    never, same = step(method, [[x, vector], [x, vector]], states, Key(at_step))
    assert torch.equal(healed[0][0], never[0][0])
    assert torch.equal(kept(after[0]).factor, kept(same[0]).factor)
    assert healed[0][0].isfinite().all()


@pytest.mark.parametrize(
    "form",
    [{}, ALTERNATING, {"start_after": 2}, {"refresh_every": 2}, {"refresh": "exact", "refresh_every": 2}],
    ids=str,
)
def test_a_tensor_that_comes_less_often_is_at_its_own_step(form: dict[str, Any]) -> None:
    """An unused parameter's: of one shape with the other, and yet what it would be alone."""
    method = PowerSGD(**form, check_every=None, min_compression_rate=EVERYTHING)
    both = started(method, [random(6, 8), random(6, 8)], 2)
    alone = [(state[1],) for state in both]
    for i in range(9):
        tensors = [[random(6, 8, seed=100 * i + 10 * w + at) for at in range(2)] for w in range(2)]
        if i % 3 == 2:
            _, seldom = step(method, [mine[:1] for mine in tensors], [state[:1] for state in both], Key(i))
            both = [(*new, old[1]) for new, old in zip(seldom, both, strict=True)]
            continue
        means, both = step(method, tensors, both, Key(i))
        own, alone = step(method, [mine[1:] for mine in tensors], alone, Key(i))
        assert (means[0][1] - own[0][0]).norm() <= 1e-4 * own[0][0].norm()
        assert kept(both[0], 1).step == kept(alone[0]).step
    assert (kept(both[0]).step, kept(both[0], 1).step) == (9, 6)
