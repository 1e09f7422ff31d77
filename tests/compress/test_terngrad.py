"""TernGrad: clipped, then scaled by what clipping left; three values; one scale for all workers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import KINDS, compressed, estimates, same_bits, vector
from thriftgrad import AllGather, Key, TensorSpec, parse
from thriftgrad.compress import TernGrad

ALONE = TernGrad(shared_scale=False)
PLAIN = TernGrad(clip=None, shared_scale=False)


def trials(compressor: TernGrad, x: Tensor, count: int) -> np.ndarray:
    """float64[count, n]: one bucket a row, so that one key serves them all."""
    assert compressor.bucket == len(x)
    return compressed(compressor, x.repeat(count), Key(3)).view(count, -1).double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_the_largest_magnitude_after_clipping(kind: str) -> None:
    x = vector(kind, 300)
    v = x.double().numpy()
    rms, largest = math.sqrt(np.mean(v**2)), np.abs(v).max()
    for clip in (0.5, 2.5, 4, 100.0):
        payload, _ = TernGrad(clip=clip).compress(x, TernGrad(clip=clip).init(TensorSpec((300,))), Key(0))
        assert payload.side.scale.tolist() == [pytest.approx(min(largest, clip * rms), rel=1e-6)]
    payload, _ = PLAIN.compress(x, PLAIN.init(TensorSpec((300,))), Key(0))
    assert payload.side.scale.tolist() == [largest]


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_what_was_clipped_is_always_sent(kind: str) -> None:
    """Clip first, then scale: the published code scales first, and what it clipped is sent less often than it could."""
    x = vector(kind, 300)
    limit = 2.5 * x.double().square().mean().sqrt()
    clipped = x.abs() >= limit
    assert clipped.any()
    for key in range(50):
        estimate = compressed(ALONE, x, Key(key))
        assert estimate[clipped].abs().allclose(limit.float())
        assert torch.equal(estimate[clipped].sign(), x[clipped].sign())


@pytest.mark.parametrize("value", [0.25, -7.0, 1e-30, 1e-40, 3e38])
@pytest.mark.parametrize("n", [1, 2, 64, 1001])
def test_a_constant_gradient_is_unharmed(value: float, n: int) -> None:
    """Its deviation from the mean is zero; from zero it is not, so nothing is clipped and all of it is sent."""
    x = torch.full((n,), value)
    assert same_bits(compressed(ALONE, x), x)
    assert same_bits(compressed(TernGrad(bucket=10, shared_scale=False), x), x)


def test_clipping_biases_and_without_it_there_is_no_bias() -> None:
    n, count = 200, 5000
    x = vector("gaussian", n)
    v, limit = x.double().numpy(), 1.0 * x.double().square().mean().sqrt().item()
    for clip, expected, scale in ((None, v, np.abs(v).max()), (1.0, np.clip(v, -limit, limit), limit)):
        compressor = TernGrad(clip=clip, shared_scale=False, bucket=n)
        mean = trials(compressor, x, count).mean(0)
        sigma = np.sqrt((scale * np.abs(expected) - expected**2).clip(0) / count)
        assert (np.abs(mean - expected) <= 5 * sigma + 2.0**-16 * scale).all()
        assert compressor.unbiased == (clip is None)
    assert np.abs(mean - v).max() > 1  # coordinates beyond one deviation lose what is beyond it


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_variance(kind: str) -> None:
    """s |x|_1 - |x|^2."""
    n, count = 100, 4000
    x = vector(kind, n)
    v = x.double().numpy()
    error = ((trials(TernGrad(clip=None, shared_scale=False, bucket=n), x, count) - v) ** 2).sum(1)
    exact = np.abs(v).max() * np.abs(v).sum() - (v**2).sum()
    assert abs(error.mean() - exact) <= 5 * error.std() / math.sqrt(count) + 1e-5 * abs(exact) + 1e-9
    assert exact <= PLAIN.variance_bound(n) * (v**2).sum()  # type: ignore[operator]


def test_the_variance_bound_is_reached() -> None:
    """One large coordinate and d - 1 that balance it: |x| sqrt(d) - |x|^2 = (sqrt(d) - 1) |x|^2, to order 1 / d."""
    for d in (4, 100, 10_000):
        bound = PLAIN.variance_bound(d)
        assert bound == pytest.approx(math.sqrt(d) - 1)
        best = 0.0
        for small in np.linspace(0.1, 1, 200) / math.sqrt(d):
            v = np.full(d, small)
            v[0] = 1
            best = max(best, (v.sum() - (v**2).sum()) / (v**2).sum())
        # The scale of a vector cannot be its length: half of the bound is what this family of vectors reaches.
        assert bound / 2 - 0.5 <= best <= bound


def test_claims() -> None:
    assert PLAIN.variance_bound(100) == 9
    assert TernGrad(clip=None, shared_scale=False, bucket=25).variance_bound(100) == 4
    for none in (TernGrad(), TernGrad(clip=None), ALONE):  # biased, or on a scale of somebody else's
        assert none.variance_bound(100) is None
        assert none.contraction(100) is None


@pytest.mark.parametrize("clip", [None, 1, 2.5, 3.0])
def test_the_name_always_says_whether_it_clips(clip: float | None) -> None:
    for compressor in (TernGrad(clip=clip), TernGrad(clip=clip, bucket=16), TernGrad(clip, per_tensor=False)):
        assert f"(clip={clip}" in repr(compressor)
        assert parse(repr(compressor)) == compressor
    assert repr(TernGrad()) == "TernGrad(clip=2.5)"
    assert repr(TernGrad(bucket=16)) == "TernGrad(clip=2.5, bucket=16)"


@pytest.mark.parametrize("n", [1, 4, 5, 6, 16, 17, 1000])
@pytest.mark.parametrize("bucket", [None, 1, 16])
def test_bytes(n: int, bucket: int | None) -> None:
    """Five symbols to a byte, four bytes a bucket; the last, shorter bucket is one like the others."""
    layout = TernGrad(bucket=bucket).layout(TensorSpec((n,)))
    assert layout.nbytes == math.ceil(n / 5) + 4 * (math.ceil(n / bucket) if bucket else 1)


def test_every_bucket_is_clipped_and_scaled_by_itself() -> None:
    """The short last one too, whose deviation is over its own coordinates and not over what fills it up."""
    x = torch.cat([vector("gaussian", 16), 100 * vector("gaussian", 16, 1), 0.01 * vector("gaussian", 5, 2)])
    payload, _ = TernGrad(clip=1.0, bucket=16).compress(x, TernGrad().init(TensorSpec((37,))), Key(0))
    parts = [part.double().numpy() for part in (x[:16], x[16:32], x[32:])]
    expected = [min(np.abs(v).max(), math.sqrt(np.mean(v**2))) for v in parts]
    np.testing.assert_allclose(payload.side.scale.numpy(), expected, rtol=1e-6)
    assert same_bits(compressed(TernGrad(clip=2.5, bucket=16), x[:32]), compressed(TernGrad(bucket=16), x)[:32])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers())
def test_three_values_with_the_signs_of_the_input(values: list[float], seed: int) -> None:
    x = torch.tensor(values)
    for compressor in (PLAIN, ALONE):
        estimate = compressed(compressor, x, Key(seed % 2**64))
        largest = estimate.abs().max()
        assert set(estimate.abs().tolist()) <= {0.0, largest.item()}
        assert (estimate * x.sign() >= 0).all()
        # The largest magnitude stands for itself, so not all of a gradient can vanish in one draw.
        assert largest == x.abs().max() or compressor is ALONE


@pytest.mark.parametrize("world", [2, 3, 4, 16])
def test_workers_share_the_largest_scale(world: int) -> None:
    xs = [vector("gaussian", 500, seed) * (1 + seed) for seed in range(world)]
    shared = max(min(x.abs().max().item(), 2.5 * x.double().square().mean().sqrt().item()) for x in xs)
    (mean,) = estimates(AllGather(TernGrad()), [[x] for x in xs])[0]
    steps = mean.double().numpy() / shared * world
    assert np.abs(steps - np.round(steps)).max() < 1e-4
    assert np.abs(steps).max() < world + 1e-4
    assert len(np.unique(np.round(steps))) <= 2 * world + 1
    (own,) = estimates(AllGather(ALONE), [[x] for x in xs])[0]
    assert len(np.unique(own.numpy())) > len(np.unique(mean.numpy()))  # each scale apart makes more values


def test_a_shared_scale_is_unbiased_without_clipping() -> None:
    """Worker 0's symbols are on worker 1's scale, ten times its own."""
    x, count = vector("gaussian", 50), 2000
    xs = [x.repeat(count), 10 * x.repeat(count)]
    (mean,) = estimates(AllGather(TernGrad(clip=None, bucket=50)), [[each] for each in xs])[0]
    v, s = x.double().numpy(), 10 * x.double().abs().max().item()
    variance = (s * np.abs(v) - v**2 + s * np.abs(10 * v) - (10 * v) ** 2) / 4
    error = mean.view(count, 50).double().numpy() - 5.5 * v
    assert (np.abs(error.mean(0)) <= 5 * np.sqrt(variance / count) + 2.0**-16 * s).all()
    total = (error**2).sum(1)
    assert abs(total.mean() - variance.sum()) <= 5 * total.std() / math.sqrt(count)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bucket_that_is_not_finite_is_nan_and_no_other(bad: float) -> None:
    x = vector("gaussian", 40)
    x[20] = bad
    estimate = compressed(TernGrad(bucket=16), x)
    assert estimate[16:32].isnan().all()
    assert estimate[:16].isfinite().all()
    assert estimate[32:].isfinite().all()


def test_zeros_stay_zeros() -> None:
    for compressor in (TernGrad(), PLAIN, TernGrad(bucket=4)):
        assert compressed(compressor, torch.zeros(10)).tolist() == [0.0] * 10
