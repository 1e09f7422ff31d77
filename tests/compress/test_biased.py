"""Quantisers for error feedback: one bit with two means, and Lloyd's nearest levels with the best scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.adapted import fitted, table
from samples import KINDS, compressed, step, vector
from thriftgrad import AllGather, ErrorFeedback, Key, TensorSpec
from thriftgrad.compress import Lloyd, OneBit
from thriftgrad.core import Payload

finite = st.floats(-1e3, 1e3, width=32)


@given(st.lists(finite, min_size=1, max_size=50), st.sampled_from([None, 1, 8, 64]))
def test_one_bit_is_the_two_means_of_each_bucket(values: list[float], bucket: int | None) -> None:
    x = torch.tensor(values)
    estimate = compressed(OneBit(bucket=bucket), x).double().numpy()
    width = bucket or len(values)
    for start in range(0, len(values), width):
        part = x[start : start + width].double().numpy()
        below, above = part[part < 0], part[part >= 0]
        expected = np.where(part < 0, below.mean() if below.size else 0.0, above.mean() if above.size else 0.0)
        np.testing.assert_allclose(estimate[start : start + width], expected, rtol=1e-6, atol=3e-45)  # denormals
        # |x - C(x)|^2 = |x|^2 less (sum of either half)^2 / their number.
        lost = ((part - estimate[start : start + width]) ** 2).sum()
        exact = (part**2).sum() - sum(half.sum() ** 2 / half.size for half in (below, above) if half.size)
        assert lost == pytest.approx(exact, rel=1e-5, abs=1e-5 * (1 + (part**2).sum()))
        assert lost <= (1 - 1 / len(part)) * (part**2).sum() + 1e-5 * (1 + (part**2).sum())


def test_one_bit_means_are_the_best_two_values() -> None:
    x = vector("heavy", 64)
    payload, _ = OneBit(bucket=64).compress(x, None, Key(0))

    def error(below: float, above: float) -> float:
        side = type(payload.side)(payload.side.below * below, payload.side.above * above)
        y = OneBit(bucket=64).decompress(Payload(payload.carrier, side, payload.layout))
        return float((y - x).double().square().sum())

    assert error(1, 1) < min(error(0.99, 1), error(1.01, 1), error(1, 0.99), error(1, 1.01))


def test_one_bit_of_huge_and_tiny() -> None:
    for value in (1e-40, 3e38):
        x = value * torch.tensor([1.0, -1, 1, 1, -1])
        torch.testing.assert_close(compressed(OneBit(), x), x, rtol=1e-6, atol=0)
    assert compressed(OneBit(), torch.tensor([0.0, -0.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_lloyd_takes_the_nearest_level_and_the_best_scale(kind: str, norm: Any, bits: int) -> None:
    compressor = Lloyd(bits=bits, bucket=50, norm=norm)
    x = vector(kind, 137)
    for state in (compressor.init(TensorSpec((137,))), *fitted(compressor, [vector("heavy", 5000)])):
        levels = table(compressor, state).double().numpy()
        payload, _ = compressor.compress(x, state, Key(0))
        estimate = compressor.decompress(payload).double().numpy()
        for i, start in enumerate(range(0, 137, 50)):
            part = x[start : start + 50].double().numpy()
            c = np.linalg.norm(part) if norm == "l2" else np.abs(part).max()
            away = np.abs(part[:, None] / (c or 1.0) - levels)
            chosen = payload.carrier[start : start + 50].numpy()
            assert (away[range(len(part)), chosen] <= away.min(1) + 1e-6).all()
            q = levels[chosen]
            best = part @ q / (q @ q)
            np.testing.assert_allclose(payload.side.scale[i].item(), best, rtol=1e-5, atol=1e-12)
            square = (part**2).sum()
            error = [((part - s * best * q) ** 2).sum() for s in (1.0, 0.99, 1.01)]
            assert error[0] <= min(error)
            assert error[0] <= (1 - 1 / len(part)) * square + 1e-9 * square
            np.testing.assert_allclose(estimate[start : start + 50], best * q, rtol=1e-5, atol=1e-6 * (c or 1.0))


def test_lloyd_beats_any_other_grid_on_what_it_was_fitted_to() -> None:
    """Held-out data of the same law: less squared error than the levels it began with, for a Gaussian."""
    compressor = Lloyd(bits=3, bucket=512)
    train, test = (vector("heavy", 20_000, seed).clamp(-50, 50) for seed in (1, 2))
    (state,) = fitted(compressor, [train])
    errors = []
    for each in (state, compressor.init(TensorSpec((1,)))):
        payload, _ = compressor.compress(test, each, Key(0))
        errors.append((compressor.decompress(payload) - test).square().sum().item())
    assert errors[0] < 0.7 * errors[1]


def test_lloyds_scale_stays_within_float32() -> None:
    """Coordinates near the end of float32 and levels that are all small: less than the best scale, and finite."""
    compressor = Lloyd(bits=2, bucket=512)
    x = torch.full((512,), 3e38)
    estimate = compressed(compressor, x)
    assert estimate.isfinite().all()
    assert (estimate > 0).all()
    payload, _ = compressor.compress(x, compressor.init(TensorSpec((512,))), Key(0))
    assert payload.side.scale.item() == torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    "inner", [Lloyd(bits=1, bucket=16), Lloyd(bits=3, bucket=16, update_at=(0, 9)), OneBit(bucket=16)]
)
def test_with_error_feedback_a_quadratic_is_solved(inner: Any) -> None:
    """Two workers, each with its own minimum; between them is where the sum of both is least."""
    targets, curvature = [vector("gaussian", 40, seed) for seed in range(2)], torch.linspace(0.3, 1.0, 40)
    best = (targets[0] + targets[1]) / 2

    def away(aggregator: AllGather) -> float:
        w, states = torch.zeros(40), [aggregator.init([TensorSpec((40,))]) for _ in targets]
        for t in range(200):
            means, states = step(aggregator, [[curvature * (w - target)] for target in targets], states, Key(t))
            w = w - (0.2 if t < 100 else 0.03) * means[0][0]
        return (w - best).norm().item() / best.norm().item()

    assert away(AllGather(ErrorFeedback(inner))) < 0.02
    assert away(AllGather(inner)) > 0.05  # without it each worker's bias stays
