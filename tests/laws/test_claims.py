"""The claims are measured: bias, variance and contraction, on inputs of four kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from samples import KINDS, compressed, vector
from thriftgrad import QSGD, Cast, Identity, Key, RandomK, Shrink, Sign, TensorSpec, TopK
from thriftgrad.compress import Vote
from thriftgrad.core import Compressor

KEYS = 30
SIZES = {"gaussian": (200, 5, 1), "flat": (200,), "one-hot": (200,), "heavy": (200, 5)}
PLAIN = [each for each in zoo.COMPRESSORS if not each.has_memory]


def errors(compressor: Compressor[Any, Any], x: Tensor) -> Tensor:
    """C(x) - x for many keys, float64[keys, n]; one key for compressors that need none."""
    keys = KEYS if compressor in zoo.RANDOM else 1
    x = x.view(10, 20) if x.numel() == 200 else x  # a matrix, since low rank leaves vectors alone
    estimates = torch.stack([compressed(compressor, x, Key(7).fold(i)) for i in range(keys)])
    return (estimates.double() - x.double()).flatten(1)


def five_sigma(samples: Tensor) -> Tensor:
    """Five standard errors of the mean of each column."""
    return 5 * samples.std(0) / len(samples) ** 0.5 if len(samples) > 1 else torch.zeros(samples.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compressor", PLAIN, ids=repr)
def test_claims_hold(compressor: Compressor[Any, Any], kind: str) -> None:
    for n in SIZES[kind]:
        x = vector(kind, n)
        e, x = errors(compressor, x), x.double()
        omega, delta = compressor.variance_bound(n), compressor.contraction(n)

        relative = e.square().sum(1, keepdim=True) / x.square().sum()
        measured, spread = relative.mean().item(), five_sigma(relative).item() + 1e-6
        if omega is not None:
            assert measured <= omega + spread
        if delta is not None:
            assert 0 < delta <= 1
            assert measured <= 1 - delta + spread

        if compressor.unbiased:
            signs = torch.randn(6, n, generator=torch.Generator().manual_seed(1)).sign().double()
            directions = torch.cat((signs, torch.stack((x, x.sign(), torch.ones_like(x)))))
            along = e @ (directions / directions.norm(dim=1, keepdim=True)).T
            # Where few coordinates are nearly all there is, a rare draw may not be seen: there, sigma as claimed.
            claimed = 5 * ((omega or 0.0) / len(e)) ** 0.5 * x.norm().expand(len(directions))
            sigma = five_sigma(along) if kind in ("gaussian", "flat") or omega is None else claimed
            assert (along.mean(0).abs() <= sigma + 1e-5 * x.norm()).all()


@pytest.mark.parametrize("compressor", PLAIN, ids=repr)
def test_claims_agree_with_each_other(compressor: Compressor[Any, Any]) -> None:
    for n in (1, 17, 10_000):
        omega = compressor.variance_bound(n)
        assert omega is None or compressor.unbiased
        assert omega is None or omega >= 0


@pytest.mark.parametrize("compressor", zoo.WITH_MEMORY, ids=repr)
def test_a_map_with_memory_claims_nothing(compressor: Compressor[Any, Any]) -> None:
    assert not compressor.unbiased
    assert compressor.variance_bound(100) is None
    assert compressor.contraction(100) is None


@pytest.mark.parametrize("compressor", [each for each in PLAIN if each.projection and each.isometric], ids=repr)
def test_projections_are_orthogonal(compressor: Compressor[Any, Any]) -> None:
    x = vector("gaussian", 100)
    once = compressed(compressor, x)
    torch.testing.assert_close((x - once) @ once, torch.tensor(0.0), atol=1e-4, rtol=0)
    payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))
    torch.testing.assert_close(payload.carrier.norm(), once.norm())


@pytest.mark.parametrize("compressor", [each for each in PLAIN if each.elementwise], ids=repr)
def test_what_becomes_of_an_element_does_not_depend_on_the_others(compressor: Compressor[Any, Any]) -> None:
    x = vector("gaussian", 100)
    parts = torch.cat([compressed(compressor, part) for part in x.split([1, 37, 62])])
    assert torch.equal(compressed(compressor, x), parts)


@pytest.mark.parametrize(
    ("compressor", "n", "omega"),
    [
        (Identity(), 10, 0.0),
        (QSGD(bits=4), 100, 10 / 7),
        (QSGD(bits=4), 10_000, 512**0.5 / 7),
        (QSGD(bits=8, bucket=64), 1000, 64 / 127**2),
        (QSGD(levels=2, bucket=4, norm="linf"), 100, 4 / 16),
        (RandomK(fraction=0.25), 100, 3.0),
        (RandomK(k=5), 100, 19.0),
        (RandomK(k=5), 0, 0.0),
        (RandomK(fraction=0.25) >> QSGD(bits=8, bucket=4), 100, 4 * (1 + 4 / 127**2) - 1),
        (TopK(k=5), 100, None),
        (Sign(), 100, None),
        (Shrink(QSGD(bits=4)), 100, None),
        (RandomK(k=5, rescale=False), 100, None),
    ],
    ids=repr,
)
def test_variance_bounds_by_their_closed_forms(compressor: Compressor[Any, Any], n: int, omega: float | None) -> None:
    assert compressor.variance_bound(n) == (None if omega is None else pytest.approx(omega))


@pytest.mark.parametrize(
    ("compressor", "n", "delta"),
    [
        (Identity(), 10, 1.0),
        (TopK(k=5), 100, 0.05),
        (TopK(k=5), 3, 1.0),
        (TopK(fraction=0.01), 150, 2 / 150),
        (RandomK(k=5, rescale=False), 100, 0.05),
        (RandomK(k=5), 100, None),
        (RandomK(fraction=0.8), 100, 0.75),
        (Sign(), 50, 1 / 50),
        (Sign(bucket=8), 50, 1 / 8),
        (Sign(scaled=False), 50, None),
        (Vote(), 50, None),
        (Cast("bf16"), 50, 1 - 2**-16),
        (Cast("fp16"), 50, None),
        (QSGD(bits=8), 16, 1 - 16 / 127**2),
        (QSGD(bits=4), 512, None),
        (Shrink(QSGD(bits=2)), 100, 1 / 11),
        (TopK(k=16) >> Shrink(QSGD(bits=2)), 100, 16 / (100 * 5)),  # Lemma 2: k / (d (1 + beta)), beta = sqrt(k) / s
        (TopK(k=4) >> QSGD(bits=4, bucket=4), 100, 0.04 * (1 - 4 / 49)),  # Lemma 1
        (TopK(k=10) >> Sign(), 100, 0.1 * 0.1),
        (TopK(k=10) >> TopK(k=5), 100, 0.1 * 0.5),
        (Sign() >> Identity(), 50, 1 / 50),
    ],
    ids=repr,
)
def test_contractions_by_their_closed_forms(compressor: Compressor[Any, Any], n: int, delta: float | None) -> None:
    assert compressor.contraction(n) == (None if delta is None else pytest.approx(delta))
