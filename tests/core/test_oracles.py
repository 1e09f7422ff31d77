"""Single methods against closed forms and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import KINDS, compressed, vector
from thriftgrad import QSGD, Cast, Key, RandomK, Shrink, Sign, TensorSpec, TopK
from thriftgrad.compress import Vote

X = torch.tensor([3.0, -1.0, 0.5, -2.0, 0.0])


def exact_variance(x: Tensor, s: int, bucket: int, norm: str) -> Tensor:
    """c^2 (l_up - r)(r - l_lo) of each coordinate: unbiased rounding between two neighbours, by numpy in float64."""
    v = x.double().numpy()
    variance = np.zeros_like(v)
    for start in range(0, len(v), bucket):
        part = v[start : start + bucket]
        c = np.linalg.norm(part) if norm == "l2" else np.abs(part).max()
        r = np.abs(part) / c * s
        variance[start : start + bucket] = (c / s) ** 2 * (np.ceil(r) - r) * (r - np.floor(r))
    return torch.from_numpy(variance)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("s", "bucket"), [(1, 50), (3, 16), (7, 64), (127, 512)])
@pytest.mark.parametrize("kind", KINDS)
def test_qsgd_has_exactly_the_variance_of_rounding_between_neighbours(
    kind: str, s: int, bucket: int, norm: str
) -> None:
    """Each row of the tensor is one trial: whole buckets, so that a single key serves all of them."""
    trials, n = 2000, bucket
    x = vector(kind, n)
    compressor = QSGD(levels=s, bucket=bucket, norm=norm)
    e = (compressed(compressor, x.repeat(trials), Key(s)).view(trials, n) - x).double()
    expected = exact_variance(x, s, bucket, norm)
    total = e.square().sum(1)
    assert abs(total.mean() - expected.sum()) <= 5 * total.std() / math.sqrt(trials) + 1e-5 * expected.sum() + 1e-12
    # Coordinate by coordinate, where its rounding up was seen often enough to speak of a normal mean.
    sigma = (expected / trials).sqrt()
    step = x.norm() / s if norm == "l2" else x.abs().max() / s
    often = expected / step**2 > 20 / trials
    assert (e.mean(0).abs() <= 5 * sigma + 2.0**-16 * step)[often].all()
    assert expected.sum() <= compressor.variance_bound(n) * x.double().square().sum() * (1 + 1e-9)


def test_the_variance_bound_of_qsgd_is_nearly_reached() -> None:
    """All coordinates half way between zero and the first level: half of the bound, so it is not one for show."""
    for s, d in ((1, 4), (4, 64), (7, 196)):
        x = torch.full((d,), 1.0)  # |x_i| / |x| = 1 / sqrt(d) = 1 / (2 s)
        assert d == (2 * s) ** 2
        reached = exact_variance(x, s, d, "l2").sum() / x.double().square().sum()
        assert reached == pytest.approx(1.0)
        assert QSGD(levels=s, bucket=d).variance_bound(d) == pytest.approx(2.0)


def test_qsgd_linf_with_one_level_is_terngrad() -> None:
    """Exact variance c |x|_1 - |x|^2, values in {-c, 0, c}."""
    x, trials = vector("gaussian", 40), 4000
    e = compressed(QSGD(levels=1, bucket=40, norm="linf"), x.repeat(trials), Key(0)).view(trials, 40)
    c = x.abs().max()
    assert {round(v, 5) for v in (e / c).unique().tolist()} == {-1.0, 0.0, 1.0}
    total = (e - x).square().sum(1).double()
    assert abs(total.mean() - (c * x.abs().sum() - x.square().sum())) <= 5 * total.std() / math.sqrt(trials)


def test_a_bucket_is_its_own_affair() -> None:
    """Changing one bucket leaves every other as it was, and the short last bucket has a norm of its own."""
    x = vector("gaussian", 70)
    y = x.clone()
    y[16:32] *= 1000
    for compressor in (QSGD(bits=4, bucket=16), QSGD(bits=4, bucket=16, norm="linf"), Sign(bucket=16)):
        a, b = compressed(compressor, x), compressed(compressor, y)
        unequal = (a != b).nonzero().view(-1).tolist()
        assert unequal
        assert set(unequal) <= set(range(16, 32))
        payload, _ = compressor.compress(x, None, Key(0))
        rows = [x[i : i + 16].double() for i in range(0, 70, 16)]
        oracle = {
            QSGD(bits=4, bucket=16): [row.norm() for row in rows],
            QSGD(bits=4, bucket=16, norm="linf"): [row.abs().max() for row in rows],
            Sign(bucket=16): [row.abs().mean() for row in rows],
        }[compressor]
        torch.testing.assert_close(payload.side.scale.double(), torch.stack(oracle), rtol=1e-6, atol=0)


def test_qsgd_norms_survive_where_squares_do_not() -> None:
    for magnitude in (1e-30, 1e30):
        x = torch.full((16,), magnitude)
        payload, _ = QSGD(bits=4, bucket=16).compress(x, None, Key(0))
        assert payload.side.scale.item() == pytest.approx(4 * magnitude)


def test_a_norm_beyond_float32_is_cut_and_the_rounding_stays_unbiased() -> None:
    """Any scale no smaller than the largest magnitude will do."""
    x = torch.full((4000,), 3e38)
    estimate = compressed(QSGD(bits=2, bucket=4000), x)
    assert estimate.isfinite().all()
    kept = 3e38 / torch.finfo(torch.float32).max
    assert (estimate != 0).double().mean().item() == pytest.approx(kept, abs=5 * math.sqrt(kept * (1 - kept) / 4000))


finite = st.floats(-1e3, 1e3, width=32)


@given(st.lists(finite, min_size=1, max_size=40))
def test_sign_loses_exactly_what_theory_says(values: list[float]) -> None:
    """|x - C(x)|^2 = |x|^2 - |x|_1^2 / d."""
    x = torch.tensor(values)
    lost = (x.double() - compressed(Sign(), x).double()).square().sum()
    expected = x.double().square().sum() - x.double().abs().sum() ** 2 / len(x)
    assert lost.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5 * (1 + x.double().square().sum().item()))


def test_sign_of_zero_is_plus_one_of_either_sign() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0])
    assert compressed(Sign(scaled=False), x).tolist() == [1.0, 1.0, 1.0, -1.0]


def test_worked_examples() -> None:
    assert compressed(TopK(k=2), X).tolist() == [3.0, 0.0, 0.0, -2.0, 0.0]
    assert compressed(TopK(k=2) >> Sign(), X).tolist() == [2.5, 0.0, 0.0, -2.5, 0.0]
    assert (X - compressed(TopK(k=2) >> Sign(), X)).square().sum().item() == 1.75
    torch.testing.assert_close(compressed(Sign(), X), 1.3 * torch.tensor([1.0, -1, 1, -1, 1]))
    assert compressed(Vote(), X).tolist() == [1.0, -1.0, 1.0, -1.0, 0.0]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 30))
def test_top_k_keeps_the_largest_and_the_first_of_equals(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]
    payload, _ = TopK(k=k).compress(torch.tensor(values, dtype=torch.float32), None, Key(0))
    assert payload.side.indices.tolist() == sorted(expected)
    assert payload.carrier.tolist() == [values[i] for i in sorted(expected)]


@pytest.mark.parametrize(
    ("fraction", "n", "k"),
    [(0.01, 1000, 10), (0.01, 1001, 11), (0.01, 5, 1), (1.0, 7, 7), (0.5, 1, 1), (0.3, 0, 0), (0.07, 100, 7)],
)
def test_a_fraction_is_rounded_up(fraction: float, n: int, k: int) -> None:
    for compressor in (TopK(fraction=fraction), RandomK(fraction=fraction)):
        assert compressor.layout(TensorSpec((n,))).carrier.numel == k


def test_a_largest_nan_comes_first() -> None:
    x = torch.tensor([1e30, torch.nan, 5.0, torch.inf])
    assert TopK(k=1).compress(x, None, Key(0))[0].side.indices.tolist() == [1]


def test_random_k_rescales_what_it_drew_and_says_so() -> None:
    x = vector("gaussian", 40)
    kept, scaled = compressed(RandomK(k=10, rescale=False), x, Key(1)), compressed(RandomK(k=10), x, Key(1))
    assert (kept != 0).sum() == 10
    assert torch.equal(kept[kept != 0], x[kept != 0])
    torch.testing.assert_close(scaled, 4 * kept)


def test_cast_rounds_to_nearest_even_and_saturates() -> None:
    bf16 = compressed(Cast("bf16"), torch.tensor([1.0 + 2**-8, 1.0 + 3 * 2**-8, 3.4e38, -3.4e38, -0.0]))
    assert bf16.tolist() == [1.0, 1.0 + 2**-6, torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).min, 0.0]
    fp16 = compressed(Cast("fp16"), torch.tensor([1.0 + 2**-11, 7e4, -1e30, 2.0**-26, torch.inf]))
    assert fp16.tolist() == [1.0, 65504.0, -65504.0, 0.0, math.inf]


@pytest.mark.parametrize("kind", KINDS)
def test_lemma_2_of_qsparse(kind: str) -> None:
    """TopK >> Shrink(QSGD): E|x - C(x)|^2 <= (1 - k / (d (1 + beta))) |x|^2, and its exact value on the kept part."""
    d, k, s, trials = 200, 20, 1, 400
    x = vector(kind, d)
    compressor = TopK(k=k) >> Shrink(QSGD(levels=s, bucket=k))
    beta = min(k / s**2, math.sqrt(k) / s)
    assert compressor.contraction(d) == pytest.approx(k / (d * (1 + beta)))
    lost = torch.stack([(x - compressed(compressor, x, Key(i))).double().square().sum() for i in range(trials)])
    y = compressed(TopK(k=k), x)
    noise = exact_variance(y[y != 0], s, k, "l2").sum()
    left_out, kept = (x - y).double().square().sum(), y.double().square().sum()
    exact = left_out + (beta**2 * kept + noise) / (1 + beta) ** 2
    assert abs(lost.mean() - exact) <= 5 * lost.std() / math.sqrt(trials) + 1e-4 * exact
    assert exact <= (1 - k / (d * (1 + beta))) * x.double().square().sum() * (1 + 1e-9)


def test_an_unscaled_quantiser_after_top_k_can_expand() -> None:
    """Why Shrink is there: without it, at one level, the error is larger than the input."""
    x, compressor = vector("gaussian", 200), TopK(k=20) >> QSGD(levels=1)
    lost = sum((x - compressed(compressor, x, Key(i))).square().sum().item() for i in range(50)) / 50
    assert lost > x.square().sum().item()
    assert compressor.contraction(200) is None
