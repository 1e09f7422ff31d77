"""ATOMO: the probabilities are the best there are, the draws follow them, and nothing is drawn again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from samples import compressed, vector
from thriftgrad import QSGD, AllGather, Atomo, Cast, Key, SpectralAtomo, TensorSpec, TopK, parse, simulate, wire
from thriftgrad.compress.atomo import drawn, probabilities
from thriftgrad.core import Shrink

magnitudes = st.lists(st.sampled_from([0.0, 1e-20, 0.25, 1.0, 1.0, 3.0, 7.5, 1e3, 1e20]), min_size=1, max_size=12)


def by_the_book(coefficients: list[float], s: int) -> list[float]:
    """The rule of the paper, step by step, on exact-enough numbers."""
    order = sorted(range(len(coefficients)), key=lambda i: -abs(coefficients[i]))
    size = [abs(coefficients[i]) for i in order]
    p, i, left = [0.0] * len(size), 0, s
    while i < len(size):
        tail = sum(size[i:])
        if size[i] * left <= tail:
            for k in range(i, len(size)):
                p[order[k]] = size[k] * left / tail if tail else 0.0
            return p
        p[order[i]], left, i = 1.0, left - 1, i + 1
    return p


def variance(coefficients: Any, p: Any) -> float:
    """sum lambda_i^2 (1 / p_i - 1), where 0 stays 0."""
    return sum(float(x) ** 2 * (1 / float(q) - 1) for x, q in zip(coefficients, p, strict=True) if x)


@given(magnitudes, st.integers(1, 12), st.randoms())
def test_the_probabilities_are_those_of_the_loop(sizes: list[float], s: int, random: Any) -> None:
    s = min(s, len(sizes))
    signed = [random.choice((-1, 1)) * each for each in sizes]
    p = probabilities(torch.tensor(signed, dtype=torch.float64), s)
    assert p.dtype == torch.float64
    np.testing.assert_allclose(p.numpy(), by_the_book(signed, s), rtol=1e-9, atol=1e-15)
    assert float(p.sum()) == pytest.approx(min(s, sum(each > 0 for each in sizes)), rel=1e-9)


@pytest.mark.parametrize("s", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "flat"])
def test_no_other_probabilities_have_less_variance(kind: str, s: int) -> None:
    """Against a solver that knows nothing of the rule: it cannot do better, and from elsewhere it comes to the same."""
    x = vector(kind, 8, seed=s).double().numpy()
    p = probabilities(torch.from_numpy(x), s).numpy()
    start = np.full(8, s / 8)
    solved = minimize(
        lambda q: float((x**2 / q).sum() / (x**2).sum()),
        start,
        jac=lambda q: -(x**2) / q**2 / (x**2).sum(),
        method="SLSQP",
        bounds=[(1e-6, 1.0)] * 8,
        constraints={"type": "eq", "fun": lambda q: q.sum() - s, "jac": lambda q: np.ones(8)},
        options={"maxiter": 1000, "ftol": 1e-12},
    )
    assert variance(x, p) <= variance(x, solved.x) * (1 + 1e-9) + 1e-12
    assert variance(x, solved.x) <= variance(x, p) + 1e-3 * float((x**2).sum())


def test_large_coefficients_are_certain_one_after_the_other() -> None:
    """Only when 100 is capped does 12 exceed its share of the rest: clipping once would give it 12 * 4 / 119."""
    p = probabilities(torch.tensor([1.0, 100.0, 1.0, -12.0, 1.0, 1.0, 0.0, 3.0]), 4)
    assert p.tolist() == pytest.approx([2 / 7, 1, 2 / 7, 1, 2 / 7, 2 / 7, 0, 6 / 7])


@given(magnitudes, st.integers(1, 12), st.integers(0, 2**32))
def test_exactly_so_many_different_atoms_are_drawn(sizes: list[float], s: int, seed: int) -> None:
    s = min(s, len(sizes))
    p = probabilities(torch.tensor(sizes, dtype=torch.float64), s)
    indices = drawn(p, s, Key(seed).fold("draw"))
    assert len(indices) == s == len(set(indices.tolist()))
    assert indices.tolist() == sorted(indices.tolist())
    assert set((p >= 1).nonzero().view(-1).tolist()) <= set(indices.tolist())
    if int((p > 0).sum()) >= s:
        assert (p[indices] > 0).all()


def test_every_atom_is_drawn_with_its_probability() -> None:
    """Over a grid of u the share of draws is p_i, to the width of the grid."""
    p = probabilities(torch.tensor([5.0, 1.0, 0.5, 2.0, 0.0, 0.25, 1.25]), 3)
    grid = 1 << 9
    share = torch.zeros(7, dtype=torch.float64)
    for i in range(grid):
        share[drawn(p, 3, Key((2 * i + 1) * ((1 << 64) // (2 * grid))))] += 1 / grid
    torch.testing.assert_close(share, p, rtol=0, atol=1.5 / grid)


def test_the_ends_of_the_comb() -> None:
    """u = 0 and u as near to 1 as it can be hit an atom that has a chance, the last atoms having none."""
    for p in (torch.tensor([0.0, 0.5, 0.5, 0.0]), torch.tensor([1.0, 0.1, 0.9 - 1e-9, 0.0]), torch.full((9,), 1 / 3)):
        p = p.double()
        s = round(float(p.sum()))
        for seed in (0, (1 << 64) - 1):
            indices = drawn(p, s, Key(seed))
            assert len(set(indices.tolist())) == s
            assert (p[indices] > 0).all()


def estimates(compressor: Any, x: Tensor, keys: int) -> Tensor:
    return torch.stack([compressed(compressor, x, Key(3).fold(i)).double() for i in range(keys)])


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "one-hot"])
def test_mean_and_variance_of_atomo(kind: str) -> None:
    x = vector(kind, 12)
    keys = 1000
    c = estimates(Atomo(k=4), x, keys)
    p = probabilities(x, 4)
    each = x.double().square() * torch.where(p > 0, 1 / p - 1, 0.0)
    assert ((c.mean(0) - x.double()).abs() <= 5 * (each / keys).sqrt() + 1e-6 * x.abs().max()).all()
    exact = float(each.sum())
    assert float((c - x.double()).square().sum(1).mean()) == pytest.approx(exact, rel=0.1, abs=1e-9)
    assert exact <= Atomo(k=4).variance_bound(12) * float(x.double().square().sum())


@pytest.mark.parametrize(("n", "k"), [(12, 4), (7, 3), (100, 1)])
def test_the_variance_bound_is_attained_by_flat_vectors(n: int, k: int) -> None:
    """Whatever is drawn: k of n coordinates times n / k, so |C(x) - x|^2 is the same for every key."""
    x = vector("flat", n)
    for i in range(20):
        error = (compressed(Atomo(k=k), x, Key(i)) - x).double().square().sum() / x.double().square().sum()
        assert float(error) == pytest.approx(n / k - 1, rel=1e-5)
    assert Atomo(k=k).variance_bound(n) == pytest.approx(n / k - 1)


def test_sparse_vectors_are_exact() -> None:
    x = torch.zeros(50)
    x[[3, 20, 49]] = torch.tensor([1.0, -1e-3, 40.0])
    for k in (3, 5, 50):
        assert torch.equal(compressed(Atomo(k=k), x, Key(1)), x)
    assert torch.equal(compressed(Atomo(fraction=1.0), vector("heavy", 33)), vector("heavy", 33))
    assert not compressed(Atomo(k=4), torch.zeros(10)).any()


def test_numbers_whose_sum_leaves_the_range() -> None:
    x = torch.tensor([1e308, -1e308, 1e300, 1e-300], dtype=torch.float64)
    for i in range(10):
        estimate = compressed(Atomo(k=3), x, Key(i))
        assert estimate.isfinite().all()
        assert estimate[:2].tolist() == [1e308, -1e308]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_is_not_finite_is_sent_as_nan(dtype: torch.dtype) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = vector("gaussian", 24).to(dtype)
        x[5] = bad
        assert compressed(Atomo(k=2), x).isnan().sum() == 2
        assert compressed(SpectralAtomo(rank=1), x.view(6, 4)).isnan().all()


def test_the_wire_is_that_of_top_k() -> None:
    spec = TensorSpec((1000,))
    assert Atomo(k=7).layout(spec).nbytes == TopK(k=7).layout(spec).nbytes == 7 * 4 + 9
    payload, _ = Atomo(fraction=0.01).compress(vector("gaussian", 1000), None, Key(0))
    assert len(wire.pack(payload)) == wire.HEADER_BYTES + 10 * 4 + 13


def test_values_may_be_quantised() -> None:
    x, chain = vector("gaussian", 40), Atomo(k=10) >> QSGD(bits=8)
    assert chain.unbiased
    omega = chain.variance_bound(40)
    assert omega == pytest.approx(4 * (1 + 10 / 127**2) - 1)
    c = estimates(chain, x, 500)
    kept = [set(row.nonzero().view(-1).tolist()) for row in c]
    assert all(len(each) <= 10 for each in kept)
    error = c.mean(0) - x.double()
    assert (error.abs() <= 5 * c.std(0) / 500**0.5 + 1e-6).all()
    assert float((c - x.double()).square().sum(1).mean()) <= omega * float(x.square().sum())
    payload, _ = chain.compress(x, chain.init(TensorSpec.of(x)), Key(0))
    assert payload.nbytes == 10 + 8 + 4  # symbols of a byte, 10 indices of 6 bits, a scale


def matrix(n: int, m: int, sigma: Tensor, seed: int = 0) -> Tensor:
    """A float32 matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    q = len(sigma)
    u = torch.linalg.qr(torch.randn(n, q, dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(m, q, dtype=torch.float64, generator=generator)).Q
    return (u * sigma @ v.mT).float()


SIGMA = torch.tensor([6.0, 2.0, 1.5, 1.0, 0.5], dtype=torch.float64)


def test_mean_and_variance_of_spectral_atomo() -> None:
    x, r, keys = matrix(7, 5, SIGMA), 2, 1000
    c = estimates(SpectralAtomo(rank=r), x, keys)
    p = torch.tensor(by_the_book(SIGMA.tolist(), r), dtype=torch.float64)
    assert p.tolist() == pytest.approx([1.0, 0.4, 0.3, 0.2, 0.1])
    exact = float((SIGMA.square() * (1 / p - 1)).sum())
    assert exact == pytest.approx(4 * 1.5 + 2.25 * 7 / 3 + 4 + 0.25 * 9)
    assert float((c - x.double()).square().sum((1, 2)).mean()) == pytest.approx(exact, rel=0.08)
    bias = (c.mean(0) - x.double()).square().sum()
    assert float(bias) <= 3 * exact / keys  # E of it is exact / keys
    assert exact <= SpectralAtomo(rank=r).variance_bound(35) * float(SIGMA.square().sum())


def test_each_estimate_is_made_of_singular_triples() -> None:
    """Against numpy: every draw is the sum of two of its triples, sigma / p in place of sigma; all five are drawn."""
    x = matrix(7, 5, SIGMA)
    u, sigma, v = np.linalg.svd(x.numpy().astype(np.float64), full_matrices=False)
    p = np.array(by_the_book(sigma.tolist(), 2))
    seen = set()
    for i in range(100):
        weights = np.diag(u.T @ compressed(SpectralAtomo(rank=2), x, Key(i)).double().numpy() @ v.T)
        drawn_here = np.flatnonzero(np.abs(weights) > 1e-4)
        assert len(drawn_here) == 2
        assert drawn_here[0] == 0
        np.testing.assert_allclose(weights[drawn_here], (sigma / p)[drawn_here], rtol=1e-4)
        seen |= set(drawn_here.tolist())
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("q", "r"), [(6, 1), (6, 2), (8, 3)])
def test_the_bound_of_spectral_atomo_is_attained_by_square_orthogonal_matrices(q: int, r: int) -> None:
    x = matrix(q, q, torch.ones(q, dtype=torch.float64))
    for i in range(10):
        error = (compressed(SpectralAtomo(rank=r), x, Key(i)) - x).double().square().sum()
        assert float(error) == pytest.approx(q * (q / r - 1), rel=1e-4)
    assert SpectralAtomo(rank=r).variance_bound(q * q) == pytest.approx(q / r - 1)
    assert SpectralAtomo(rank=r).variance_bound(r * r) == SpectralAtomo(rank=r).variance_bound(0) == 0


def test_low_rank_is_exact_and_convolutions_are_matrices() -> None:
    one = matrix(8, 18, torch.tensor([3.0, 1.0], dtype=torch.float64)).view(8, 2, 3, 3)
    for i in range(5):
        torch.testing.assert_close(compressed(SpectralAtomo(rank=2), one, Key(i)), one, rtol=1e-5, atol=1e-5)
    assert SpectralAtomo(rank=2).layout(TensorSpec((8, 2, 3, 3))).nbytes == 4 * 2 * (8 + 18)


@pytest.mark.parametrize("shape", [(), (1,), (9,), (1, 1), (1, 9), (9, 1), (2, 2), (4, 4), (3, 0, 2), (0, 5), (3, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_would_not_shrink_travels_as_it_is(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Vectors, matrices with n < r or m < r, and r (n + m) >= n m: 3 * 103 >= 300 too."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(compressed(SpectralAtomo(rank=3), x), x)
    assert SpectralAtomo(rank=3).layout(TensorSpec.of(x)).nbytes == x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_are_factored_in_float32_or_wider(dtype: torch.dtype) -> None:
    x = matrix(12, 10, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).to(dtype)
    payload, _ = SpectralAtomo(rank=1).compress(x, None, Key(0))
    assert payload.carrier.dtype == torch.float32
    assert payload.nbytes == 4 * 22
    estimate = SpectralAtomo(rank=1).decompress(payload)
    assert estimate.dtype == dtype
    wide = x.double() if dtype == torch.float64 else x.float()
    expected = compressed(SpectralAtomo(rank=1), wide, Key(0)).to(dtype)
    torch.testing.assert_close(estimate, expected, rtol=0, atol=0)


def test_zero_and_extreme_matrices() -> None:
    assert not compressed(SpectralAtomo(rank=2), torch.zeros(9, 8)).any()
    x = matrix(9, 8, torch.tensor([1.0, 0.5], dtype=torch.float64))
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(compressed(SpectralAtomo(rank=2), x * scale) / scale, x, rtol=1e-4, atol=1e-5)


def test_factors_may_be_cast() -> None:
    x = matrix(20, 20, torch.tensor([4.0, 2.0], dtype=torch.float64))
    chain = SpectralAtomo(rank=2) >> Cast("bf16")
    assert chain.layout(TensorSpec.of(x)).nbytes == 2 * 2 * 40
    torch.testing.assert_close(compressed(chain, x), x, rtol=0, atol=0.02 * 4)
    assert not chain.unbiased  # a product of rounded factors claims nothing


def test_workers_draw_on_their_own_so_the_variance_of_their_mean_falls() -> None:
    x = matrix(12, 12, torch.ones(12, dtype=torch.float64))
    spec = TensorSpec((12, 12), name="w")
    method = AllGather(SpectralAtomo(rank=1))

    def error(world: int, step: int) -> float:
        workers = [method.aggregate([x], method.init([spec]), Key(step)) for _ in range(world)]
        return float((simulate(workers)[0][0][0] - x).double().square().sum())

    one, eight = (sum(error(world, step) for step in range(30)) / 30 for world in (1, 8))
    assert one == pytest.approx(12 * 11, rel=1e-4)
    assert eight == pytest.approx(12 * 11 / 8, rel=0.15)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (Atomo, ValueError, "Atomo: give either fraction or k, got fraction=None and k=None."),
        (lambda: Atomo(0.1, 3), ValueError, "Atomo: give either fraction or k, got fraction=0.1 and k=3."),
        (lambda: Atomo(k=0), ValueError, "Atomo: k must be at least 1, got 0."),
        (lambda: Atomo(fraction=1.5), ValueError, "Atomo: fraction must lie in (0, 1], got 1.5."),
        (lambda: SpectralAtomo(rank=0), ValueError, "SpectralAtomo: rank must be at least 1, got 0."),
        (lambda: SpectralAtomo(rank=1.5), TypeError, "SpectralAtomo: rank must be an integer, got 1.5."),  # type: ignore[arg-type]
        (lambda: SpectralAtomo(rank=True), TypeError, "SpectralAtomo: rank must be an integer, got True."),
    ],
)
def test_refused(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(words)}$"):
        make()


def test_the_text_is_the_value() -> None:
    for compressor in (Atomo(fraction=0.5), Shrink(SpectralAtomo(rank=2)), Atomo(k=3) >> QSGD(bits=4)):
        assert parse(repr(compressor)) == compressor
