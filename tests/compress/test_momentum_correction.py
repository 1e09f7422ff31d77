"""Momentum correction against Deep Gradient Compression as it is written down, in NumPy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from samples import same_bits, vector
from thriftgrad import QSGD, Cast, ErrorFeedback, Key, MomentumCorrection, RandomK, Shrink, Sign, TensorSpec, TopK
from thriftgrad.core import Compressor
from thriftgrad.core.tree import leaves

N, K, STEPS = 40, 5, 20


def dgc(gradients: list[Any], mu: float, nesterov: bool, masking: bool) -> Iterator[tuple[Any, Any, Any]]:
    """What is sent, the velocity and the accumulation after each step of the published algorithm."""
    u, v = np.zeros(N), np.zeros(N)
    for g in gradients:
        if nesterov:
            u = mu * (u + g)
            v = v + u + g
        else:
            u = mu * u + g
            v = v + u
        chosen = np.argsort(-np.abs(v), kind="stable")[:K]
        sent = np.zeros(N)
        sent[chosen] = v[chosen]
        v = v.copy()
        v[chosen] = 0
        if masking:
            u = u.copy()
            u[chosen] = 0
        yield sent, u, v


@pytest.mark.parametrize("masking", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-14), (torch.float32, 1e-5)], ids=str)
def test_the_published_algorithm(nesterov: bool, masking: bool, dtype: torch.dtype, precision: float) -> None:
    compressor = MomentumCorrection(TopK(k=K), momentum=0.7, nesterov=nesterov, masking=masking)
    gradients = [vector("gaussian", N, seed).to(dtype) for seed in range(STEPS)]
    state = compressor.init(TensorSpec((N,), dtype))
    expected = dgc([g.double().numpy() for g in gradients], 0.7, nesterov, masking)
    for i, (sent, u, v) in enumerate(expected):
        payload, state = compressor.compress(gradients[i], state, Key(i))
        for ours, theirs in ((compressor.decompress(payload), sent), (state.velocity, u), (state.memory, v)):
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=precision, atol=precision)


def test_without_momentum_it_is_error_feedback() -> None:
    for nesterov in (False, True):
        one, other = MomentumCorrection(TopK(k=3), momentum=0.0, nesterov=nesterov), ErrorFeedback(TopK(k=3))
        states = [each.init(TensorSpec((N,))) for each in (one, other)]
        for i in range(5):
            x = vector("heavy", N, i)
            (a, states[0]), (b, states[1]) = (
                each.compress(x, state, Key(i)) for each, state in zip((one, other), states, strict=True)
            )
            assert same_bits(one.decompress(a), other.decompress(b))
            assert same_bits(states[0].memory, states[1].memory)


def test_all_that_came_in_is_sent_or_kept_with_the_weight_of_momentum() -> None:
    """Without masking: sent so far + v = sum over t of g_t (1 + mu + ... + mu^(now - t))."""
    compressor, mu = MomentumCorrection(TopK(k=2) >> Sign(), momentum=0.5, masking=False), 0.5
    gradients = [vector("gaussian", N, seed).double() for seed in range(STEPS)]
    state, total = compressor.init(TensorSpec((N,), torch.float64)), torch.zeros(N, dtype=torch.float64)
    for i, g in enumerate(gradients):
        payload, state = compressor.compress(g, state, Key(i))
        total += compressor.decompress(payload)
        owed = sum(
            (x * (1 - mu ** (i - t + 1)) / (1 - mu) for t, x in enumerate(gradients[: i + 1])), torch.zeros(N).double()
        )
        torch.testing.assert_close(total + state.memory, owed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nothing_bad_enters(bad: float) -> None:
    compressor = MomentumCorrection(TopK(k=1))
    _, state = compressor.compress(vector("gaussian", N), compressor.init(TensorSpec((N,))), Key(0))
    x = vector("gaussian", N, 1)
    x[11] = bad
    payload, after = compressor.compress(x, state, Key(1))
    assert compressor.decompress(payload).isnan().any()
    assert all(same_bits(a, b) for a, b in zip(leaves(after), leaves(state), strict=True))


def test_a_velocity_beyond_its_type_does_not_enter() -> None:
    compressor = MomentumCorrection(TopK(k=1))
    huge = torch.tensor([3e38, 1.0])
    _, state = compressor.compress(torch.tensor([2e38, 1.0]), compressor.init(TensorSpec((2,))), Key(0))
    state = state._replace(velocity=torch.tensor([3e38, 0.0]))
    payload, after = compressor.compress(huge, state, Key(1))
    assert compressor.decompress(payload).isnan().any()
    assert after is state


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_must_lie_in_its_range(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"MomentumCorrection: momentum must lie in \[0, 1\), got {momentum}\."):
        MomentumCorrection(TopK(k=1), momentum=momentum)


@pytest.mark.parametrize(
    "compressor", [RandomK(k=3), QSGD(bits=4), Cast("fp16"), ErrorFeedback(TopK(k=1)), MomentumCorrection(TopK(k=1))]
)
def test_it_needs_a_contraction(compressor: Compressor[Any, Any]) -> None:
    words = re.escape(f"MomentumCorrection needs a contraction, E|C(x) - x|^2 <= (1 - delta)|x|^2, and {compressor!r}")
    with pytest.raises(ValueError, match=words):
        MomentumCorrection(compressor)


def test_it_needs_each_tensor_by_itself_and_a_compressor() -> None:
    with pytest.raises(ValueError, match=r"MomentumCorrection keeps a memory for each tensor, and Shrink.* as one"):
        MomentumCorrection(Shrink(QSGD(bits=4, per_tensor=False)))
    with pytest.raises(TypeError, match="MomentumCorrection needs a compressor such as"):
        MomentumCorrection(3)  # type: ignore[arg-type]
