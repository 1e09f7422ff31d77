"""Where PowerSGD is known to fail, in short: docs/when-low-rank-fails.md has the long versions."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from aggregate.power_sgd_oracle import EVERYTHING, random, started
from samples import step
from thriftgrad import Key, PowerSGD

STEPS = 150


def orthogonal(n: int, columns: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(n, columns, seed=seed))[0]


@cache
def quadratic(rate: float, steps: int = STEPS, **arguments: Any) -> float:
    """|X - X*| relative to its start for f = |X - X*|^2 / 2 on 20 x 20 matrices, all singular values alike."""
    method = PowerSGD(**arguments, min_compression_rate=EVERYTHING, check_every=None)
    error = orthogonal(20, 20, 5)
    start, states = error.norm(), started(method, [error], 1)
    for i in range(steps):
        means, states = step(method, [[error]], states, Key(i))
        error = error - rate * means[0][0]
        if error.norm() > 1e3 * start:
            break
    return float(error.norm() / start)


@pytest.mark.parametrize("warm_start", [True, False])
def test_feedback_has_a_largest_learning_rate(warm_start: bool) -> None:
    """What is sent late is sent in full: at rank 1 of 20, about 20 steps late, so that the limit is far below 2."""
    assert quadratic(0.05, warm_start=warm_start, rank=1) < 0.1
    assert quadratic(0.1, warm_start=warm_start, rank=1) < 0.3
    assert quadratic(0.5, warm_start=warm_start, rank=1) > 2


def test_a_cold_start_explodes_there() -> None:
    assert quadratic(0.5, rank=1, warm_start=False) > 1e3
    assert quadratic(0.5, rank=2, warm_start=False) > 1e3


@pytest.mark.parametrize("rank", [1, 2])
def test_the_limit_rises_with_the_rank(rank: int) -> None:
    assert (quadratic(0.2, rank=rank, warm_start=False) < 0.01) == (rank == 2)


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_without_feedback_no_learning_rate_is_too_large(rate: float) -> None:
    """Each step then shrinks what it projects on; without memory it is a descent, at a small rate a slow one."""
    assert quadratic(rate, rank=1, memory="none") < 0.5
    assert quadratic(rate / 4, rank=1, memory="none") > quadratic(rate, rank=1, memory="none")


def test_feedback_is_faster_where_it_is_stable() -> None:
    assert quadratic(0.1, rank=1) < 0.4 * quadratic(0.1, rank=1, memory="none")


@cache
def unlearned(sigma: float, steps: int = 300, rate: float = 0.05, seed: int = 9, **arguments: Any) -> float:
    """What is left of a rank-3 signal when one direction beside it carries noise of this standard deviation."""
    method = PowerSGD(**({"rank": 1} | arguments), min_compression_rate=EVERYTHING, check_every=None)
    left, right = orthogonal(20, 4, 7), orthogonal(20, 4, 8)
    signal, noise = left[:, :3] @ right[:, :3].T, left[:, 3:] @ right[:, 3:].T
    luck = random(steps, seed=seed)
    x, states = torch.zeros(20, 20), started(method, [signal], 1)
    for i in range(steps):
        means, states = step(method, [[x - signal + sigma * luck[i] * noise]], states, Key(i))
        x = x - rate * means[0][0]
    seen = left[:, :3] @ (left[:, :3].T @ x @ right[:, :3]) @ right[:, :3].T
    return float((seen - signal).norm() / signal.norm())


@pytest.mark.parametrize("sigma", [3.0, 10.0])
def test_one_direction_of_noise_hides_the_signal_from_a_warm_start_without_feedback(sigma: float) -> None:
    """The factor locks onto the noise, which is the largest singular value at nearly every step."""
    locked = unlearned(sigma, memory="none")
    assert locked > 0.4
    assert unlearned(sigma, memory="none", warm_start=False) < 0.5 * locked
    assert unlearned(sigma) < 0.5 * locked


def test_feedback_and_a_cold_start_see_through_it() -> None:
    assert unlearned(10, warm_start=False) < 0.02
    assert unlearned(10, warm_start=False) < 0.02 * unlearned(10, memory="none")


def test_a_warm_start_can_hurt_and_a_refresh_mends_it() -> None:
    def mean(**arguments: Any) -> float:
        return sum(unlearned(30, seed=1009 + 1000 * luck, **arguments) for luck in range(4)) / 4

    assert mean() > 3 * mean(warm_start=False)
    assert mean() > 1.5 * mean(refresh_every=10)
