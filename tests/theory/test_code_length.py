"""Entropy and expected code lengths against the papers' numbers and measured symbols."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from thriftgrad import theory


@pytest.mark.parametrize(("n", "s", "bits"), [(10**6, 3, 107_038), (10**6, 4, 196_789), (10**5, 2, 16_046)])
def test_nuqsgds_numbers(n: int, s: int, bits: int) -> None:
    assert round(theory.nuqsgd_code_length_bits(n, s)) == bits


def test_entropy_is_scipys() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(9))
    assert theory.entropy_bits(p) == pytest.approx(stats.entropy(p, base=2), rel=1e-12)
    assert theory.entropy_bits([1.0, 0.0]) == 0
    assert theory.entropy_bits(np.full(8, 1 / 8)) == pytest.approx(3)


def nonzero_share(x: np.ndarray, levels: np.ndarray) -> float:
    """The expected number of coordinates that are not rounded to zero."""
    r = np.abs(x) / np.linalg.norm(x)
    return float(np.minimum(r / levels[1], 1).sum())


@pytest.mark.parametrize("n", [10, 1000, 10**5])
@pytest.mark.parametrize("s", [1, 2, 4])
def test_expected_nonzeros_stay_below_their_bounds(n: int, s: int) -> None:
    rng = np.random.default_rng(n)
    for x in (rng.standard_normal(n), rng.standard_t(2, n), np.ones(n)):
        assert nonzero_share(x, np.arange(s + 1) / s) <= theory.qsgd_nonzeros_bound(n, s)
        assert nonzero_share(x, np.append(0, 2.0 ** np.arange(-s, 1))) <= theory.nuqsgd_nonzeros_bound(n, s)
    assert theory.qsgd_nonzeros_bound(n, s) <= n
    assert theory.nuqsgd_nonzeros_bound(n, s) <= n


def test_qsgds_formula() -> None:
    n, s = 10_000, 4
    k = s * (s + 100)
    assert theory.qsgd_code_length_bits(n, s) == pytest.approx((3 + 1.5 * math.log2(2 * (n + 16) / k)) * k + 32)
    assert theory.qsgd_nonzeros_bound(n, s) == k
    # In the dense regime s = sqrt(n) the general formula costs 9 bits a coordinate: no sharper claim is made.
    assert theory.qsgd_code_length_bits(n, 100) / n == pytest.approx(9.0, abs=0.01)


def test_huffmans_bound_covers_what_is_sent() -> None:
    """Entropy of the rounded magnitudes and a sign for each nonzero one, of a Gaussian bucket."""
    rng = np.random.default_rng(0)
    n = 8192
    x = rng.standard_normal(n)
    r = np.abs(x) / np.linalg.norm(x)
    law = theory.TruncatedNormal(0, n**-0.5)
    for include_zero in (True, False):
        grid = theory.alq_levels(law, 3, include_zero)
        levels = grid[grid >= 0]
        inside = np.concatenate([[-levels[0]], levels]) if levels[0] > 0 else levels
        i = np.clip(np.searchsorted(inside, r, side="right") - 1, 0, inside.size - 2)
        up = rng.random(n) < (r - inside[i]) / (inside[i + 1] - inside[i])
        sent = np.abs(np.where(up, inside[i + 1], inside[i]))
        counts = np.array([(sent == level).sum() for level in levels])
        bits = 32 + n * theory.entropy_bits(counts / n) + (sent > 0).sum()
        bound = theory.alq_code_length_bits(grid, law, n)
        assert bits <= bound
        assert bound - bits <= 1.6 * n  # the 1 of Huffman's entropy + 1, and the bound on the nonzeros


def test_alqs_formula_by_hand() -> None:
    """A uniform law on {0, 1/2, 1}: probabilities 1/4, 1/2, 1/4, entropy 1.5, and 4 + 2 sqrt(n) nonzeros."""
    law = theory.Histogram([-1, 1], [1])
    assert theory.alq_code_length_bits([0, 0.5, 1], law, 100) == pytest.approx(32 + 24 + 100 * 2.5)
    assert theory.alq_code_length_bits([-1, -0.5, 0, 0.5, 1], law, 100) == pytest.approx(32 + 24 + 100 * 2.5)
    assert theory.alq_code_length_bits([0, 0.5, 1], law, 100, q=1) == pytest.approx(32 + 4 + 100 * 2.5)
    assert theory.alq_code_length_bits([0, 0.5, 1], law, 100, q=math.inf) == pytest.approx(32 + 100 + 100 * 2.5)
    assert theory.alq_code_length_bits([0, 0.5, 1], law, 4) == pytest.approx(32 + 4 + 4 * 2.5)
    # Without a zero level every coordinate carries a sign; the magnitudes 1/2 and 1 have 3/4 and 1/4.
    entropy = theory.entropy_bits([0.75, 0.25])
    assert theory.alq_code_length_bits([-1, -0.5, 0.5, 1], law, 100) == pytest.approx(32 + 100 + 100 * (entropy + 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: theory.entropy_bits([0.5, 0.6]),
            "probabilities must be at least 0 and sum to 1, got a least of 0.5 and a",
        ),
        (lambda: theory.entropy_bits([1.5, -0.5]), "got a least of -0.5 and a sum of 1.0."),
        (lambda: theory.entropy_bits([]), "got a least of 1.0 and a sum of 0.0."),
        (
            lambda: theory.qsgd_nonzeros_bound(1, 0),
            "qsgd_nonzeros_bound: n must be at least 1 and s at least 1, got n=1",
        ),
        (
            lambda: theory.qsgd_code_length_bits(9, 1),
            "qsgd_code_length_bits: n must be at least 1 and s at least 2, got n=9",
        ),
        (
            lambda: theory.nuqsgd_nonzeros_bound(0, 1),
            "nuqsgd_nonzeros_bound: n must be at least 1 and s at least 0, got n=0",
        ),
        (
            lambda: theory.nuqsgd_code_length_bits(0, 1),
            "nuqsgd_code_length_bits: n must be at least 1 and s at least 0",
        ),
        (
            lambda: theory.nuqsgd_code_length_bits(100, 3),
            "nuqsgd_code_length_bits: the bound needs 2^(2s) + 2^s sqrt(n) <= n / e, got 144 > 37 for n=100 and s=3;",
        ),
        (
            lambda: theory.alq_code_length_bits([0, 1], theory.Histogram([0, 1], [1]), 0),
            "alq_code_length_bits: n and q must be at least 1, got n=0 and q=2.0.",
        ),
        (
            lambda: theory.alq_code_length_bits([-1, 0.5, 1], theory.Histogram([0, 1], [1]), 9),
            "alq_code_length_bits: a signed grid must be symmetric here",
        ),
        (
            lambda: theory.alq_code_length_bits([0, 1], theory.Histogram([0, 2], [1]), 9),
            "alq_code_length_bits: normalised coordinates lie in [-1, 1], and this distribution reaches from 0.0 to 2",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        make()
    assert str(caught.value).endswith(".")
