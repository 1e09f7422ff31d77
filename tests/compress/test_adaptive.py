"""Levels that follow the gradients: what is counted, when they are fitted, and that the fit is the best there is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.adapted import KEY, fitted, table
from samples import same_bits, vector
from thriftgrad import Key, TensorSpec, theory
from thriftgrad.compress import ALQ, ALQ_N, AMQ, AMQ_N, NUQSGD, QSGD, Lloyd, magnitudes
from thriftgrad.compress.adaptive import AdaptedLevels, AdaptiveQuantizer

EVERY: tuple[AdaptiveQuantizer, ...] = (
    ALQ(bits=3, bucket=64),
    ALQ(bits=3, bucket=64, weight_power=1, norm="linf"),
    ALQ_N(bits=3, bucket=64),
    AMQ(bits=3, bucket=64),
    AMQ_N(bits=3, bucket=64, norm="linf"),
    Lloyd(bits=3, bucket=64),
    Lloyd(bits=3, bucket=64, weight_power=0),
)


def laplace(n: int, seed: int, bucket: int = 64) -> Tensor:
    """Heavy tails, and buckets whose lengths differ a hundredfold."""
    generator = np.random.default_rng(seed)
    lengths = 10.0 ** generator.uniform(-1, 1, -(-n // bucket))
    return torch.from_numpy(generator.laplace(size=n) * lengths.repeat(bucket)[:n]).float()


def counted(compressor: AdaptiveQuantizer, xs: list[Tensor]) -> NDArray[np.int64]:
    """int64[2, BINS] by numpy's own histogram: every worker's |x| / c, weighed by (c / largest c)^p 2^24, and plain."""
    edges = np.array([0.0, *(2.0**o * (1 + m / 16) for o in range(-32, 0) for m in range(16)), 1.0])
    rows, scales = [], []
    for x in xs:
        v = x.numpy()
        for start in range(0, len(v), compressor.bucket):
            part = v[start : start + compressor.bucket]
            wide = part.astype(np.float64)
            scale = np.float32(np.sqrt((wide**2).sum()) if compressor.norm == "l2" else np.abs(part).max())
            if scale > 0:
                rows.append(np.minimum(np.abs(part / scale), np.float32(1)))
                scales.append(float(scale))
    weights = np.round((np.array(scales) / max(scales)) ** compressor.weight_power * 2**24).astype(np.int64)
    if compressor.weight_power == 0:
        weights = np.ones_like(weights)
    plain, weighted = np.zeros(513, np.int64), np.zeros(513, np.int64)
    for row, weight in zip(rows, weights, strict=True):
        found = np.histogram(row.astype(np.float64), edges)[0]
        plain += found
        weighted += weight * found
    return np.stack([weighted, plain])


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
@pytest.mark.parametrize("n", [64, 1000])
def test_counts_are_those_of_an_independent_histogram(compressor: AdaptiveQuantizer, n: int) -> None:
    """Over workers with buckets of zeros, denormals, and a shorter last one, whose filling counts nowhere."""
    xs = [laplace(n, seed) for seed in range(3)]
    xs[1][:64] = 0
    xs[2][: n // 2] *= 1e-30
    xs[2][n // 2 - 1] = 1e-41
    (state, *_) = fitted(compressor, xs)
    assert np.array_equal(state.counts.numpy(), counted(compressor, xs))
    assert state.counts[1].sum() == 3 * n - 64


def test_a_bin_is_the_exponent_and_four_bits_of_the_mantissa() -> None:
    edges = magnitudes.EDGES
    assert len(edges) == magnitudes.BINS + 1 == 514
    for i in (1, 2, 17, 100, 512):
        inside = np.nextafter(np.float32(edges[i]), np.float32(2))
        below = np.nextafter(np.float32(edges[i]), np.float32(0))
        row = torch.tensor([[edges[i], inside, below]], dtype=torch.float32)
        found = magnitudes.count(row, torch.tensor([5]))
        assert found[:, i].tolist() == [10, 2]
        assert found[:, i - 1].tolist() == [5, 1]
    assert magnitudes.count(torch.tensor([[1.0, 0.0, 1e-45]]), torch.tensor([1]))[1].nonzero().view(-1).tolist() == [
        0,
        512,
    ]


def test_weights_are_the_square_of_the_norm_relative_to_the_largest() -> None:
    """A bucket of a thousandth of the largest norm counts a millionth; without weights it counts alike."""
    x = torch.cat([torch.ones(4), 1e-3 * torch.tensor([1.0, 0, 0, 0])])
    for power, weight in ((0, 1), (1, 2**24 / 2000), (2, 2**24 / 4e6), (4, 0)):
        (state,) = fitted(ALQ(bits=3, bucket=4, weight_power=power), [x])
        assert state.counts[0, 512] == round(weight)  # the one coordinate that is its bucket's norm
        assert state.counts[0, magnitudes.BINS - 16] == 4 * (2**24 if power else 1)  # four halves
        assert state.counts[1, 512] == 1


def test_heavier_buckets_decide_and_without_weights_they_do_not() -> None:
    heavy, light = laplace(64 * 50, 1, bucket=64 * 50), vector("flat", 64 * 500, 2)
    both = torch.cat([heavy, 1e-4 * light])
    weighted, plain = ALQ(bits=3, bucket=64), ALQ_N(bits=3, bucket=64)
    levels = {
        (each, name): fitted(each, [x])[0].levels
        for each in (weighted, plain)
        for name, x in (("both", both), ("heavy", heavy), ("light", light))
    }
    torch.testing.assert_close(levels[weighted, "both"], levels[weighted, "heavy"], rtol=1e-4, atol=1e-6)
    off = (levels[plain, "both"] - levels[plain, "heavy"]).abs().max()
    assert off > 20 * (levels[weighted, "both"] - levels[weighted, "heavy"]).abs().max()


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_neither_the_order_of_workers_nor_the_scale_of_everything_changes_a_bit(compressor: Any) -> None:
    xs = [laplace(500, seed) for seed in range(4)]
    (first, *others) = fitted(compressor, xs)
    for state in others:
        assert state.levels.equal(first.levels)
    for order in ((3, 1, 0, 2), (1, 0, 3, 2)):
        again = fitted(compressor, [xs[i] for i in order])[0]
        assert same_bits(again.levels, first.levels)
        assert same_bits(again.probabilities, first.probabilities)
        assert same_bits(again.counts, first.counts)
    for factor in (2.0**40, 2.0**-60):  # powers of two change no normalised coordinate
        scaled = fitted(compressor, [factor * x for x in xs])[0]
        assert same_bits(scaled.levels, first.levels)
    assert same_bits(fitted(compressor, [-x for x in xs])[0].levels, first.levels)


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_a_fit_moves_version_and_step(compressor: Any) -> None:
    state = compressor.init(TensorSpec((100,)))
    assert (state.step, state.updated, state.version) == (0, -1, 1)
    assert compressor.due(state)
    (state,) = fitted(compressor, [laplace(100, 0)], [state._replace(step=7)])
    assert (state.step, state.updated, state.version) == (7, 7, 2)
    assert not compressor.due(state)
    assert state.probabilities.sum().item() == pytest.approx(1)
    _, after = compressor.compress(laplace(100, 0), state, KEY)
    assert (after.step, after.updated, after.version) == (8, 7, 2)
    assert after.levels is state.levels
    (again,) = fitted(compressor, [laplace(100, 1)], [after])
    assert (again.step, again.updated, again.version) == (8, 8, 3)


def updates(compressor: AdaptiveQuantizer, steps: range, missed: tuple[int, ...] = ()) -> list[int]:
    """The steps at which a fit is made, if nothing can be counted at some of them."""
    state = compressor.init(TensorSpec((1,)))
    found = []
    for step in steps:
        state = state._replace(step=step)
        if compressor.due(state) and step not in missed:
            found.append(step)
            state = state._replace(updated=step)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 100, 2000, 10_000, 20_000]),
        ({"update_every": None}, [0, 100, 2000]),
        ({"update_at": (), "update_every": 6000}, [0, 6000, 12_000, 18_000]),
        ({"update_at": (4,), "update_every": None}, [4]),
        ({"update_at": (19, 7, 7, 2), "update_every": None}, [2, 7, 19]),
        ({"update_at": (), "update_every": None}, []),
        ({"update_at": (3, 9999), "update_every": 10_000}, [0, 3, 9999, 10_000, 20_000]),
        ({"update_at": [0, 10], "update_every": 20_000}, [0, 10, 20_000]),
    ],
)
def test_the_schedule(options: dict[str, Any], expected: list[int]) -> None:
    assert updates(ALQ(bits=2, **options), range(20_002)) == expected


def test_a_fit_that_could_not_be_made_is_due_until_it_is() -> None:
    compressor = ALQ(bits=2, update_at=(0, 5), update_every=10)
    assert updates(compressor, range(25), missed=(0, 1, 2)) == [3, 5, 10, 20]
    assert updates(compressor, range(25), missed=tuple(range(12))) == [12, 20]  # once for all that were missed


def test_zeros_fit_nothing() -> None:
    for compressor in EVERY:
        before = compressor.init(TensorSpec((100,)))
        (state,) = fitted(compressor, [torch.zeros(100)], [before])
        assert state is before
        (state,) = fitted(compressor, [torch.full((100,), math.nan)], [before])
        assert state is before
        assert compressor.due(state)


def law(state: AdaptedLevels) -> theory.Histogram:
    return magnitudes.histogram(state.counts[0])


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
@pytest.mark.parametrize("zero", [True, False])
def test_no_small_move_of_a_level_lowers_the_expected_variance(bits: int, zero: bool) -> None:
    """Of one pair at a time, the grid being symmetric; and it is far below that of the levels before the fit."""
    for compressor in (ALQ(bits=bits, bucket=512, include_zero=zero), AMQ(bits=bits, bucket=512, include_zero=zero)):
        start = compressor.init(TensorSpec((1,))).levels.numpy()
        (state,) = fitted(compressor, [laplace(100_000, 3, bucket=512) ** 3])
        histogram, levels = law(state), state.levels.numpy()
        psi = theory.expected_variance(levels, histogram)
        before = theory.expected_variance(start, histogram)
        if isinstance(compressor, AMQ):
            assert psi <= before
            for p in np.linspace(0.02, 0.98, 97):
                assert psi <= theory.expected_variance(theory.amq_levels(p, bits, zero), histogram) * (1 + 1e-6)
            continue
        assert psi < 0.9 * before or len(levels) == 3  # -1, 0 and 1, which nothing moves
        for i, factor in itertools.product(range(len(levels) // 2 + zero, len(levels) - 1), (0.99, 1.01)):
            moved = levels.copy()
            moved[i] *= factor
            moved[len(levels) - 1 - i] = -moved[i]
            if (np.diff(moved) > 0).all():
                assert psi <= theory.expected_variance(moved, histogram) * (1 + 1e-6)


@pytest.mark.parametrize("compressor", [ALQ(bits=3, bucket=512), AMQ(bits=3, bucket=512)], ids=repr)
def test_fitted_levels_beat_the_first_ones_on_data_they_have_not_seen(compressor: Any) -> None:
    start = compressor.init(TensorSpec((1,)))
    (state,) = fitted(compressor, [laplace(50_000, 1, bucket=512) ** 3])
    (other,) = fitted(compressor, [laplace(50_000, 2, bucket=512) ** 3])
    held_out = law(other)
    before, after, best = (theory.expected_variance(each.levels.numpy(), held_out) for each in (start, state, other))
    assert best <= after < (0.6 if isinstance(compressor, ALQ) else 0.95) * before
    assert after < 1.05 * best


def relative_variance(compressor: Any, state: Any, x: Tensor, keys: int = 8) -> float:
    errors = []
    for key in range(keys):
        payload, _ = compressor.compress(x, state, Key(key))
        errors.append((compressor.decompress(payload) - x).double().square().sum().item())
    return float(np.mean(errors) / x.double().square().sum().item())


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("bucket", [512, 8192])
def test_measured_variance_at_equal_bits_on_a_heavy_tailed_sample(bits: int, bucket: int) -> None:
    """ALQ at most QSGDinf and NUQSGD, with zero and without; AMQ above ALQ, whose grid is any."""
    train, test = (
        torch.from_numpy(np.random.default_rng(seed).standard_t(3, 8 * 8192)).float() * laplace(8 * 8192, seed)
        for seed in (1, 2)
    )
    for zero in (True, False):
        found = {}
        for make in (ALQ, AMQ):
            compressor = make(bits=bits, bucket=bucket, include_zero=zero)
            (state,) = fitted(compressor, [train])
            found[make.__name__] = relative_variance(compressor, state, test)
        for name, norm in (("l2", "l2"), ("linf", "linf")):
            fixed: Any = QSGD(bits=bits, bucket=bucket, norm=norm, include_zero=zero)  # type: ignore[arg-type]
            found[name] = relative_variance(fixed, None, test)
        found["nuq"] = relative_variance(NUQSGD(bits=bits, bucket=bucket, include_zero=zero), None, test)
        assert found["ALQ"] < 0.9 * min(found["linf"], found["nuq"], found["l2"])
        assert found["ALQ"] <= 1.05 * found["AMQ"]


def test_the_measured_variance_is_the_modelled_one() -> None:
    """d Psi, exactly but for the width of the bins, and measured over keys."""
    compressor = ALQ(bits=3, bucket=512)
    x = laplace(512 * 100, 5, bucket=512)
    (state,) = fitted(compressor, [x])
    modelled = 512 * theory.expected_variance(state.levels.numpy(), law(state))
    rows, levels = x.double().numpy().reshape(-1, 512), table(compressor, state).double().numpy()
    exact = sum(theory.exact_variance(row, levels, float(np.linalg.norm(row))) for row in rows) / (rows**2).sum()
    assert exact == pytest.approx(modelled, rel=0.005)
    assert relative_variance(compressor, state, x, keys=20) == pytest.approx(exact, rel=0.05)


def test_symbols_come_as_often_as_the_codebook_says() -> None:
    compressor = ALQ(bits=3, bucket=512)
    x = laplace(512 * 100, 5, bucket=512)
    (state,) = fitted(compressor, [x])
    payload, _ = compressor.compress(x, state, KEY)
    counts = np.bincount(payload.carrier.numpy(), minlength=7)
    expected = state.probabilities.numpy() * x.numel()
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected + 1) + 0.02 * expected).all()
    assert payload.layout.carrier.probabilities == tuple(state.probabilities.tolist())


def test_a_normal_distribution_is_fitted_by_its_deviation_alone() -> None:
    """With the l2 scale that is 1 / sqrt(d) whatever the data: the levels stay near those before the fit."""
    compressor = ALQ(bits=3, bucket=512, distribution="normal")
    start = compressor.init(TensorSpec((1,))).levels
    (state,) = fitted(compressor, [laplace(51_200, 1, bucket=512) ** 3])
    torch.testing.assert_close(state.levels, start, rtol=0.03, atol=0)
    (empirical,) = fitted(ALQ(bits=3, bucket=512), [laplace(51_200, 1, bucket=512) ** 3])
    assert (empirical.levels - start).abs().max() > 0.05


def test_reference_mode_is_the_published_solver() -> None:
    """Unconverged levels, of about twice the variance on the law they are made for."""
    plain, published = (ALQ(bits=3, bucket=16384, include_zero=False, reference_mode=mode) for mode in (None, "ltq"))
    x = vector("gaussian", 16384 * 10)
    distribution = theory.TruncatedNormal(0, 1 / 128)
    start = published.init(TensorSpec((1,))).levels.tolist()
    assert start[4:7] == [pytest.approx(each, rel=0.05) for each in (0.0048, 0.0180, 0.1252)]
    psi = [theory.expected_variance(c.init(TensorSpec((1,))).levels.numpy(), distribution) for c in (plain, published)]
    assert psi[1] > 1.8 * psi[0]
    (state,) = fitted(published, [x])
    assert (state.levels.diff() > 0).all()
    amq = AMQ(bits=3, bucket=16384, reference_mode="ltq").init(TensorSpec((1,))).levels
    assert amq[-2].item() == pytest.approx(0.2317, abs=1e-3)


@pytest.mark.parametrize("compressor", EVERY, ids=repr)
def test_the_first_levels_are_for_gaussian_buckets(compressor: Any) -> None:
    """Near what a fit to Gaussian data gives."""
    start = table(compressor, compressor.init(TensorSpec((1,))))
    (state,) = fitted(compressor, [vector("gaussian", 64 * 2000)])
    inner = slice(1, -1) if not isinstance(compressor, Lloyd) else slice(None)
    torch.testing.assert_close(table(compressor, state)[inner], start[inner], rtol=0.35, atol=1e-3)
