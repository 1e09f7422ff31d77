"""Unbiased rounding has exactly the variance that its grid says, and no vector more than the worst case."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from compress.adapted import fitted, table
from samples import KINDS, compressed, vector
from thriftgrad import Key, TensorSpec, theory
from thriftgrad.compress import ALQ, ALQ_N, AMQ, AMQ_N, NUQSGD, QSGD, NaturalCompression, Quantizer
from thriftgrad.compress.adaptive import AdaptiveQuantizer

Floats = NDArray[np.float64]
N = 32
ASYMMETRIC = (-1.0, -0.7, -0.1, -0.02, 0.0, 0.3, 0.31, 1.0)

FIXED = (
    *(QSGD(bits=b, bucket=N) for b in range(2, 9)),
    *(QSGD(bits=b, bucket=N, include_zero=False) for b in range(1, 9)),
    *(QSGD(bits=b, bucket=N, norm="linf", include_zero=zero) for b in (2, 4) for zero in (True, False)),
    *(NUQSGD(bits=b, bucket=N) for b in range(2, 9)),
    *(NUQSGD(bits=b, bucket=N, include_zero=False) for b in range(1, 9)),
    NUQSGD(bits=3, bucket=N, norm="linf"),
    NUQSGD(bits=3, bucket=N, norm="linf", include_zero=False),
    QSGD(levels=5, bucket=N),
    Quantizer(levels=ASYMMETRIC, bucket=N),
    Quantizer(levels=ASYMMETRIC, bucket=N, norm="linf"),
    Quantizer(levels=(0, 1), bucket=N),
    Quantizer(levels=(-1, 1), bucket=N),
    Quantizer(levels=(-1, 0.9, 1), bucket=N),
)
ADAPTED = (
    *(ALQ(bits=b, bucket=N, include_zero=zero) for zero in (True, False) for b in range(1 + zero, 9)),
    *(AMQ(bits=b, bucket=N, include_zero=zero) for zero in (True, False) for b in range(1 + zero, 9)),
    ALQ_N(bits=3, bucket=N, norm="linf"),
    AMQ_N(bits=3, bucket=N, norm="linf"),
    ALQ(bits=3, bucket=N, distribution="normal", include_zero=False),
)


def scale_of(x: Floats, norm: str) -> float:
    return float(np.linalg.norm(x) if norm == "l2" else np.abs(x).max())


def variances(x: Floats, levels: ArrayLike, scale: float) -> Floats:
    """scale^2 (up - r)(r - down) of each coordinate, neighbours found by looking at all levels."""
    grid = np.asarray(levels, dtype=np.float64)
    out = np.empty_like(x)
    for i, r in enumerate(np.clip(x / scale, -1, 1)):
        up, down = grid[grid >= r].min(), grid[grid <= r].max()
        out[i] = scale**2 * (up - r) * (r - down)
    return out


def trials(compressor: Any, state: Any, x: Tensor, count: int) -> Floats:
    """float64[count, n]: one bucket a row, so that one key serves them all."""
    payload, _ = compressor.compress(x.repeat(count), state, Key(11))
    return compressor.decompress(payload).view(count, -1).double().numpy()


def check(compressor: Any, state: Any, kind: str, count: int = 800) -> None:
    x = vector(kind, N)
    v, norm = x.double().numpy(), compressor.norm
    levels = table(compressor, state).double().numpy()
    c = scale_of(v, norm)
    expected = variances(v, levels, c)
    assert expected.sum() == pytest.approx(theory.exact_variance(v, levels, c), rel=1e-9, abs=1e-12)
    error = trials(compressor, state, x, count) - v
    total = (error**2).sum(1)
    assert (
        abs(total.mean() - expected.sum()) <= 5 * total.std() / math.sqrt(count) + 1e-4 * expected.sum() + 1e-9 * c**2
    )
    # Coordinate by coordinate, where either neighbour was seen often enough to speak of a normal mean.
    gap = np.array([levels[levels >= r].min() - levels[levels <= r].max() for r in np.clip(v / c, -1, 1)]) * c
    often = expected > gap**2 * 20 / count
    allowed = 5 * np.sqrt(expected / count) + 2.0**-16 * gap
    assert (np.abs(error.mean(0)) <= allowed)[often].all()
    # Measured at most the exact worst case, and that at most the bound that is claimed.
    square = (v**2).sum()
    worst = theory.worst_case_variance(levels, N)
    assert expected.sum() <= worst * square * (1 + 1e-9) + 1e-12 * square
    assert total.mean() <= worst * square + 5 * total.std() / math.sqrt(count) + 1e-4 * square
    bound = compressor.variance_bound(N)
    # 255 gaps of uniform levels are equal to the precision of a float32.
    assert expected.sum() <= bound * square * (1 + 1e-5)
    if norm == "l2":
        assert worst <= bound * (1 + 1e-5)


@pytest.mark.parametrize("compressor", FIXED, ids=repr)
def test_fixed_levels(compressor: Any) -> None:
    for kind in KINDS:
        check(compressor, None, kind)


@pytest.mark.parametrize("compressor", ADAPTED, ids=repr)
def test_fitted_levels(compressor: AdaptiveQuantizer) -> None:
    (state,) = fitted(compressor, [vector("heavy", 30 * N, 9)])
    assert state.version == 2
    for kind in ("gaussian", "heavy"):
        check(compressor, state, kind)


@pytest.mark.parametrize("kind", ["gaussian", "flat", "heavy"])
def test_natural_compression(kind: str) -> None:
    """(2^(e + 1) - |x|)(|x| - 2^e) with 2^e the power of two below, at most |x|^2 / 8."""
    x, count = vector(kind, N), 3000
    v = x.double().numpy()
    mantissa, exponent = np.frexp(np.abs(v))
    below = np.ldexp(0.5, exponent)
    expected = (2 * below - np.abs(v)) * (np.abs(v) - below)
    assert ((mantissa >= 0.5) & (expected <= v**2 / 8 * (1 + 1e-12))).all()
    error = trials(NaturalCompression(), None, x, count) - v
    total = (error**2).sum(1)
    assert abs(total.mean() - expected.sum()) <= 5 * total.std() / math.sqrt(count) + 1e-4 * expected.sum()
    assert (np.abs(error.mean(0)) <= 5 * np.sqrt(expected / count) + 2.0**-16 * below).all()
    assert NaturalCompression().variance_bound(N) == 1 / 8


WORST = (
    *(QSGD(levels=s, bucket=n) for s, n in ((1, 16), (3, 512), (7, 64), (127, 512), (3, 16384))),
    *(NUQSGD(bits=b, bucket=n) for b, n in ((2, 100), (3, 16384), (4, 512), (8, 64))),
    *(QSGD(bits=b, bucket=n, include_zero=False) for b, n in ((1, 100), (3, 512))),
    *(NUQSGD(bits=b, bucket=n, include_zero=False) for b, n in ((2, 100), (4, 512))),
    *(Quantizer(levels=levels, bucket=512) for levels in ((0, 0.01, 0.02, 1), (0, 1), ASYMMETRIC)),
)


@pytest.mark.parametrize("compressor", WORST, ids=repr)
def test_some_vector_comes_near_the_worst_case(compressor: Any) -> None:
    """So neither the worst case nor the bound is there for show."""
    n, levels = compressor.bucket, compressor.table().double().numpy()
    worst = theory.worst_case_variance(levels, n)
    x = torch.from_numpy(theory.worst_case_vector(levels, n)).float()
    v = x.double().numpy()
    exact = theory.exact_variance(v, levels, float(np.linalg.norm(v))) / (v**2).sum()
    assert 0.95 * worst <= exact <= worst * (1 + 1e-5)
    assert exact == pytest.approx(variances(v, levels, float(np.linalg.norm(v))).sum() / (v**2).sum(), rel=1e-6)
    errors = [(compressed(compressor, x, Key(i)) - x).double().square().sum().item() for i in range(40)]
    measured = np.array(errors) / (v**2).sum()
    assert measured.mean() >= 0.95 * worst - 5 * measured.std() / math.sqrt(40)
    assert measured.mean() <= worst + 5 * measured.std() / math.sqrt(40)


@pytest.mark.parametrize(
    ("s", "n", "value", "bound"), [(2, 16384, 31.00, 31.125), (3, 64, 0.341, 0.375)], ids=["nuqsgd", "nuqsgd, dense"]
)
def test_known_worst_cases_of_nuqsgd(s: int, n: int, value: float, bound: float) -> None:
    compressor = (
        NUQSGD(bits=int(math.log2(s + 2)) + 1, bucket=n) if s == 2 else Quantizer((0, 1 / 8, 1 / 4, 1 / 2, 1), n)
    )
    assert theory.worst_case_variance(compressor.table().numpy(), n) == pytest.approx(value, abs=5e-3)
    if s == 2:
        assert compressor.variance_bound(n) == bound
    assert theory.nuqsgd_variance_bound(n, s) == bound


def test_known_worst_case_of_qsgd() -> None:
    assert theory.worst_case_variance(QSGD(levels=3).table().numpy(), 16384) == pytest.approx(41.67, abs=5e-3)
    assert QSGD(levels=3, bucket=16384).variance_bound(16384) == pytest.approx(42.67, abs=5e-3)


# Relative variance on one bucket of 16384 independent coordinates, with zero and without.
TABLE = {
    ("normal", 2): {"nuq": (101, 4095), "l2": (101, 1819), "linf": (2.31, 1.34)},
    ("normal", 3): {"nuq": (24.5, 255), "l2": (33.0, 333), "linf": (0.320, 0.235)},
    ("normal", 4): {"nuq": (0.664, 0.551), "l2": (13.6, 71.8), "linf": (0.0588, 0.0511)},
    ("normal", 5): {"nuq": (0.0819, 0.0819), "l2": (5.81, 16.1), "linf": (0.0128, 0.0120)},
    ("laplace", 3): {"nuq": (21.6, 255), "l2": (29.2, 333), "linf": (0.757, 0.718)},
    ("t3", 3): {"nuq": (19.3, 255), "l2": (26.1, 333)},
}


@pytest.mark.parametrize(("law", "bits"), TABLE)
def test_the_table_of_zero_against_no_zero(law: str, bits: int) -> None:
    generator, draws = np.random.default_rng(bits), 12
    sample = {"normal": generator.standard_normal, "laplace": generator.laplace, "t3": None}[law]
    for name, cells in TABLE[law, bits].items():
        for zero, cell in zip((True, False), cells, strict=True):
            norm: Any = "linf" if name == "linf" else "l2"
            compressor: Any = (NUQSGD if name == "nuq" else QSGD)(bits, bucket=16384, norm=norm, include_zero=zero)
            levels = compressor.table().double().numpy()
            found = []
            for _ in range(draws):
                x = generator.standard_t(3, 16384) if sample is None else sample(size=16384)
                found.append(theory.exact_variance(x, levels, scale_of(x, norm)) / (x**2).sum())
            assert np.mean(found) == pytest.approx(cell, rel=0.1), (name, zero)


def test_the_papers_bounds_do_not_hold_without_zero() -> None:
    x = np.random.default_rng(0).standard_normal(16384)
    for compressor, published in (
        (QSGD(bits=3, bucket=16384, include_zero=False), 42.67),
        (NUQSGD(bits=3, bucket=16384, include_zero=False), 31.125),
    ):
        relative = theory.exact_variance(x, compressor.table().numpy(), float(np.linalg.norm(x))) / (x**2).sum()
        assert published < 0.2 * relative
        assert relative <= compressor.variance_bound(16384)


def test_the_empirical_table_cell() -> None:
    """One cell through the compressor itself and not through a formula: QSGD, 3 bits, l2, with zero."""
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(16384)).float()
    compressor = QSGD(bits=3, bucket=16384)
    errors = [(compressed(compressor, x, Key(i)) - x).square().sum().item() for i in range(100)]
    assert np.mean(errors) / x.square().sum().item() == pytest.approx(33.0, rel=0.1)


def test_a_shorter_last_bucket_has_the_variance_of_its_own_scale() -> None:
    x, count = vector("heavy", 21), 500
    v = x.double().numpy()
    compressor = NUQSGD(bits=3, bucket=16)
    levels = compressor.table().double().numpy()
    expected = sum(variances(part, levels, float(np.linalg.norm(part))).sum() for part in (v[:16], v[16:]))
    errors = np.array([(compressed(compressor, x, Key(i)).double().numpy() - v) ** 2 for i in range(count)]).sum(1)
    assert abs(errors.mean() - expected) <= 5 * errors.std() / math.sqrt(count)
    assert compressor.layout(TensorSpec((21,))).side.scale.numel == 2
