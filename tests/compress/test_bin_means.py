"""Means of bins, against a plain loop, the identity of projections, and inputs that come near to what is claimed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samples import KINDS, compressed, vector
from thriftgrad import BinMeans, ErrorFeedback, Huffman, Key, TopK, wire

BITS = pytest.mark.parametrize("bits", range(1, 9))


def oracle(x: torch.Tensor, bits: int) -> list[float]:
    """C(x) of one bucket, from the definition: edges at mean + sigma (6 j / 2**bits - 3) for j = 1 ... 2**bits - 1."""
    values = x.double().numpy()
    sigma = values.std()
    edges = [values.mean() + sigma * (6 * j / 2**bits - 3) for j in range(1, 2**bits)]
    edges[len(edges) // 2] = values.mean()
    number = [sum(v >= edge for edge in edges) for v in values]
    return [float(np.float32(np.mean([w for w, j in zip(values, number, strict=True) if j == i]))) for i in number]


def energy(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def kept(bits: int, x: torch.Tensor) -> float:
    """The share of |x|^2 that is not lost."""
    return 1 - energy(compressed(BinMeans(bits), x).double() - x.double()) / energy(x)


@BITS
@pytest.mark.parametrize("kind", KINDS)
def test_the_definition(bits: int, kind: str) -> None:
    for n in (1, 2, 5, 60):
        x = vector(kind, n)
        assert compressed(BinMeans(bits), x).tolist() == pytest.approx(oracle(x, bits), rel=1e-6, abs=1e-12)


def test_by_hand() -> None:
    """Mean 2, variance 4: with 2 bits the edges are -1, 2 and 5, and a coordinate on an edge belongs above it."""
    x = torch.tensor([-2.0, 2.0, 2.0, 3.0, 1.0, 1.0, 5.0, 4.0])
    mean, sigma = x.mean(), x.std(correction=0)
    assert (mean.item(), sigma.item()) == (2.0, 2.0)
    payload, _ = BinMeans(bits=2).compress(x, None, Key(0))
    assert payload.carrier.tolist() == [0, 2, 2, 2, 1, 1, 3, 2]
    assert payload.side.means.tolist() == [[-2.0, 1.0, 2.75, 5.0]]


@BITS
@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_given_the_bins(bits: int, kind: str) -> None:
    x = vector(kind, 300)
    c = compressed(BinMeans(bits, bucket=100), x)
    assert energy(x.double() - c) == pytest.approx(energy(x) - energy(c), rel=1e-5, abs=1e-5 * energy(x))


@pytest.mark.parametrize(
    ("bits", "n", "delta"),
    [
        (1, 0, 1.0),
        (1, 1, 1.0),
        (1, 2, 1.0),
        (1, 3, 3 / 4),
        (1, 4, 1 / 2),
        (1, 1000, 2 / 1000),
        (2, 1000, 7 / 16 * 1.5 / 1000**0.5),
        (2, 4, 1 / 2),
        (3, 10**6, 55 / 64 * 2.25 / 1000),
        (8, 5, 1 - 9 / 4**8),  # five coordinates leave no share for the open bins
        (8, 10**6, (1 - 9 / 4**8) * (3 - 6 / 256) / 1000),
    ],
)
def test_contractions_by_their_closed_forms(bits: int, n: int, delta: float) -> None:
    assert BinMeans(bits).contraction(n) == pytest.approx(delta, rel=1e-12)
    assert BinMeans(bits, bucket=max(n, 1)).contraction(10**7) == pytest.approx(delta, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 40, 1000])
def test_one_bit_can_be_as_bad_as_is_claimed(n: int) -> None:
    """One coordinate up, one down, and next to nothing in all others, half of them on either side."""
    x = torch.full((n,), 1e-6)
    x[: n // 2] *= -1
    x[0], x[-1] = -1.0, 1.0
    x[1 if n > 2 else 0] -= x.double().sum().item()  # the mean is 0, but for rounding
    assert BinMeans(1).contraction(n) <= kept(1, x) <= BinMeans(1).contraction(n) * 1.01 + 1e-4


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_more_bits_can_be_bad_too(bits: int) -> None:
    """One huge coordinate, and as many at the edge of its bin as hurt most: a share of 1 / sqrt(n), as claimed."""
    n, alpha = 40_000, 3 - 6 / 2**bits
    worst = 1.0
    for k in np.geomspace(2, n / 8, 12).astype(int).tolist():
        x = torch.zeros(n)
        theta = min(alpha**2 * k / n, 0.5)
        x[0] = math.sqrt((1 - theta) * n)
        x[1:k] = 1.02 * alpha + 0.02
        x -= x.mean()
        worst = min(worst, kept(bits, x))
    claimed = BinMeans(bits).contraction(n)
    assert claimed <= worst <= 12 * claimed


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.integers(1, 8))
def test_the_claim_holds_for_any_floats(values: list[float], bits: int) -> None:
    x = torch.tensor(values)
    estimate = compressed(BinMeans(bits), x)
    assert estimate.isfinite().all()
    # A coordinate of the least float32 magnitude has no finer neighbour to be rounded to.
    rounding = 1e-6 * energy(x) + len(values) * 1e-89
    lost = energy(estimate.double() - x.double())
    assert lost <= (1 - BinMeans(bits).contraction(len(values))) * energy(x) + rounding


@BITS
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-45, 3.4028234663852886e38])
def test_constants_are_exact(bits: int, value: float) -> None:
    for n in (1, 30, 1000):
        x = torch.full((n,), value)
        assert torch.equal(compressed(BinMeans(bits, bucket=400), x), x)


@BITS
def test_two_values_are_exact(bits: int) -> None:
    """Either side of the mean they have a bin each, however far from one they are."""
    for scale in (1.0, 1e-30, 1e30):
        x = scale * torch.tensor([3.0, -1.0, -1.0, 3.0, -1.0])
        assert torch.equal(compressed(BinMeans(bits), x), x)


def test_far_from_one() -> None:
    x = vector("gaussian", 50)
    once = compressed(BinMeans(3), x)
    for power in (-100, 100):
        assert torch.equal(compressed(BinMeans(3), x * 2.0**power), once * 2.0**power)
    assert compressed(BinMeans(2), torch.tensor([1e30, 1e-30])).tolist() == torch.tensor([1e30, 1e-30]).tolist()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_spoils_its_bucket_alone(bad: float) -> None:
    x = vector("gaussian", 11)
    x[5] = bad
    estimate = compressed(BinMeans(2, bucket=4), x)
    assert estimate[4:8].isnan().all()
    assert torch.equal(estimate[:4], compressed(BinMeans(2), x[:4]))
    assert torch.equal(estimate[8:], compressed(BinMeans(2), x[8:]))


@BITS
def test_bytes(bits: int) -> None:
    for n, bucket, rows in ((1000, None, 1), (1000, 300, 4), (0, None, 0), (7, 300, 1)):
        payload, _ = BinMeans(bits, bucket=bucket).compress(vector("gaussian", max(n, 4))[:n], None, Key(0))
        assert payload.nbytes == math.ceil(n * bits / 8) + 4 * 2**bits * rows
        assert len(wire.pack(payload)) == payload.nbytes + wire.HEADER_BYTES


def test_behind_a_sparsifier() -> None:
    """SparseLoCo's messages: 2 bits a value that was kept, beside its index."""
    x = vector("heavy", 4096)
    chain = TopK(k=64) >> BinMeans(bits=2)
    assert chain.contraction(4096) == pytest.approx(64 / 4096 * BinMeans(2).contraction(64))
    payload, _ = chain.compress(x, (None, None), Key(0))
    assert payload.nbytes == 64 * (2 + 12) // 8 + 16
    at = x.abs().topk(64).indices.sort().values
    assert chain.decompress(payload)[at].tolist() == pytest.approx(oracle(x[at], 2), rel=1e-6)
    ErrorFeedback(chain >> Huffman(), decay=0.95)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: BinMeans(0), ValueError, "BinMeans: bits must lie in 1 ... 8, got 0."),
        (lambda: BinMeans(9), ValueError, "BinMeans: bits must lie in 1 ... 8, got 9."),
        (lambda: BinMeans(2.0), TypeError, "BinMeans: bits must be an integer, got 2.0."),  # type: ignore[arg-type]
        (lambda: BinMeans(2, bucket=0), ValueError, "BinMeans: bucket must be at least 1, got 0."),
    ],
)
def test_bad_settings(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        make()
