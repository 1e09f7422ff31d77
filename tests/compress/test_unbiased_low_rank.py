"""A projection onto random directions: uniform, unbiased, with the variance that it should have, and summable."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from samples import compressed, same_bits, vector
from thriftgrad import QSGD, AllReduce, Cast, Key, Ledger, TensorSpec, UnbiasedLowRank, parse, simulate, wire
from thriftgrad.core import LinearCompressor, Payload, Shrink

KEYS = 500


def projections(m: int, rank: int, keys: int = KEYS) -> Tensor:
    """C(I) = U U^T for many keys, float64[keys, m, m]."""
    compressor, eye = UnbiasedLowRank(rank=rank), torch.eye(m, dtype=torch.float64)
    return torch.stack([compressed(compressor, eye, Key(9).fold(i)) for i in range(keys)])


@pytest.mark.parametrize(("m", "rank"), [(4, 1), (6, 2), (7, 5)])
def test_it_projects_onto_r_directions_times_m_over_r(m: int, rank: int) -> None:
    """P = (r / m) C(I) is symmetric, P P = P, and its trace is r."""
    p = projections(m, rank, keys=20) * rank / m
    torch.testing.assert_close(p, p.mT, atol=1e-6, rtol=0)
    torch.testing.assert_close(p @ p, p, atol=1e-6, rtol=0)
    torch.testing.assert_close(p.diagonal(dim1=1, dim2=2).sum(1), torch.full((20,), rank).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("m", "rank"), [(4, 1), (6, 2)])
def test_directions_are_uniform(m: int, rank: int) -> None:
    """First and second moments of a uniformly random projection P: E P_ij = r / m if i = j; and
    E P_ii^2 = r (r + 2) / (m (m + 2)), E P_ij^2 = r (m - r) / (m (m - 1) (m + 2))."""
    p = projections(m, rank) * rank / m
    off = ~torch.eye(m, dtype=torch.bool)
    se = p.std(0) / KEYS**0.5
    assert ((p.mean(0) - torch.eye(m) * rank / m).abs() <= 5 * se).all()
    squares = p.square()
    se = squares.std(0) / KEYS**0.5
    assert ((squares.mean(0) - rank * (rank + 2) / (m * (m + 2))).abs() <= 5 * se)[~off].all()
    assert ((squares.mean(0) - rank * (m - rank) / (m * (m - 1) * (m + 2))).abs() <= 5 * se)[off].all()


@pytest.mark.parametrize("kind", ["gaussian", "one-hot", "heavy"])
@pytest.mark.parametrize("rank", [1, 2])
def test_mean_and_variance(kind: str, rank: int) -> None:
    """E|C(M) - M|^2 = (m / r - 1) |M|^2 for every M, whatever its spectrum."""
    x = vector(kind, 15).view(3, 5).double()
    c = torch.stack([compressed(UnbiasedLowRank(rank=rank), x, Key(1).fold(i)) for i in range(KEYS)])
    assert ((c.mean(0) - x).abs() <= 5 * c.std(0) / KEYS**0.5 + 1e-7 * x.abs().max()).all()
    errors = (c - x).square().sum((1, 2)) / x.square().sum()
    assert float((errors.mean() - (5 / rank - 1)).abs()) <= 5 * float(errors.std()) / KEYS**0.5
    assert UnbiasedLowRank(rank=rank).variance_bound(15) == pytest.approx(15 / rank - 1)


def test_the_bound_is_attained_by_one_row() -> None:
    x = vector("gaussian", 6).view(1, 6)
    errors = torch.stack([(compressed(UnbiasedLowRank(rank=2), x, Key(i)) - x).square().sum() for i in range(KEYS)])
    assert float(errors.mean() / x.square().sum()) == pytest.approx(2, abs=0.3)
    assert UnbiasedLowRank(rank=2).variance_bound(6) == 2
    assert UnbiasedLowRank(rank=8).variance_bound(6) == UnbiasedLowRank(rank=8).variance_bound(0) == 0


def test_of_any_matrix_it_is_the_same_projection() -> None:
    """C(M) = M C(I): the rows of all matrices of m columns see the same directions."""
    m = vector("gaussian", 24).view(4, 6)
    of_eye = compressed(UnbiasedLowRank(rank=2), torch.eye(6), Key(5))
    torch.testing.assert_close(compressed(UnbiasedLowRank(rank=2), m, Key(5)), m @ of_eye, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        compressed(UnbiasedLowRank(rank=2), m.view(4, 2, 3), Key(5)).view(4, 6), m @ of_eye, rtol=1e-5, atol=1e-5
    )


def test_the_carrier_is_as_long_as_the_estimate() -> None:
    """Isometric, which is what a later stage relies on."""
    payload, _ = UnbiasedLowRank(rank=2).compress(vector("gaussian", 60).view(10, 6), None, Key(0))
    torch.testing.assert_close(payload.carrier.norm(), UnbiasedLowRank(rank=2).decompress(payload).norm())


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]
)
def test_the_sum_of_carriers_is_the_carrier_of_the_sum(dtype: torch.dtype, precision: float) -> None:
    xs = [vector("gaussian", 60, seed).view(10, 6).to(dtype) for seed in range(4)]
    payloads = [UnbiasedLowRank(rank=2).compress(x, None, Key(4))[0] for x in xs]
    assert all(same_bits(payload.side.seed, payloads[0].side.seed) for payload in payloads)
    total = sum((payload.carrier.double() for payload in payloads), torch.zeros(())).to(dtype)
    of_sum = UnbiasedLowRank(rank=2).decompress(Payload(total, payloads[0].side, payloads[0].layout)).double()
    expected = compressed(UnbiasedLowRank(rank=2), sum(x.double() for x in xs), Key(4))
    torch.testing.assert_close(of_sum, expected, rtol=0, atol=20 * precision * float(expected.abs().max()))


@pytest.mark.parametrize("compressor", [UnbiasedLowRank(rank=2), UnbiasedLowRank(rank=2) >> Cast("bf16")], ids=repr)
def test_all_reduce_gives_the_estimate_of_the_mean(compressor: Any) -> None:
    assert isinstance(compressor, LinearCompressor)
    xs = [vector("gaussian", 120, seed).view(12, 10) for seed in range(3)]
    method, ledger = AllReduce(compressor), Ledger()
    workers = [method.aggregate([x], method.init([TensorSpec((12, 10), name="w")]), Key(3)) for x in xs]
    means = [means[0] for means, _ in simulate(workers, ledger)]
    assert all(same_bits(mean, means[0]) for mean in means)
    expected = compressed(UnbiasedLowRank(rank=2), sum(xs) / 3, Key(3).fold("w"))
    precision = 1e-5 if compressor == UnbiasedLowRank(rank=2) else 2**-6
    torch.testing.assert_close(means[0], expected, rtol=0, atol=precision * float(expected.abs().max()))
    itemsize = 4 if compressor == UnbiasedLowRank(rank=2) else 2
    assert ledger.per_worker[0].payload_up_bytes == 12 * 2 * itemsize  # the seed is known to all, and does not travel


def test_bytes() -> None:
    assert UnbiasedLowRank(rank=2).layout(TensorSpec((64, 3, 3, 3))).nbytes == 4 * 64 * 2 + 8
    assert UnbiasedLowRank(rank=2).layout(TensorSpec((64, 27), torch.bfloat16)).nbytes == 2 * 64 * 2 + 8
    assert UnbiasedLowRank(rank=2).layout(TensorSpec((64,))).nbytes == 4 * 64
    payload, _ = UnbiasedLowRank(rank=3).compress(torch.ones(5, 4), None, Key(0))
    assert len(wire.pack(payload)) == wire.HEADER_BYTES + 4 * 15 + 8


@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (7, 1), (7, 2), (0, 4), (4, 0), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_would_not_shrink_travels_as_it_is(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    payload, _ = UnbiasedLowRank(rank=2).compress(x, None, Key(0))
    assert torch.equal(UnbiasedLowRank(rank=2).decompress(payload), x)
    assert payload.side.seed.numel() == 0 or shape == (0, 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_row_alone(bad: float) -> None:
    x = vector("gaussian", 60).view(10, 6).clone()
    x[4, 4] = bad
    finite = compressed(UnbiasedLowRank(rank=2), x).isfinite()
    assert not finite[4].any()
    assert finite[[0, 1, 2, 3, 5, 6, 7, 8, 9]].all()


def test_zero_and_extreme_matrices() -> None:
    assert not compressed(UnbiasedLowRank(rank=2), torch.zeros(9, 8)).any()
    x = vector("gaussian", 72).view(9, 8)
    for scale in (1e-30, 1e30):
        scaled = compressed(UnbiasedLowRank(rank=2), x * scale)
        torch.testing.assert_close(scaled / scale, compressed(UnbiasedLowRank(rank=2), x), rtol=1e-4, atol=1e-5)


def test_composition() -> None:
    chain = UnbiasedLowRank(rank=2) >> QSGD(levels=10, bucket=4)
    assert chain.unbiased
    assert chain.variance_bound(40) == pytest.approx(20 * (1 + 4 / 100) - 1)
    assert Shrink(UnbiasedLowRank(rank=2)).contraction(40) == pytest.approx(1 / 20)
    x = vector("gaussian", 40).view(5, 8)
    c = torch.stack([compressed(chain, x, Key(i)).double() for i in range(KEYS)])
    assert ((c.mean(0) - x).abs() <= 5 * c.std(0) / KEYS**0.5).all()
    assert parse(repr(chain)) == chain


@pytest.mark.parametrize(
    ("rank", "kind", "words"),
    [
        (0, ValueError, "UnbiasedLowRank: rank must be at least 1, got 0."),
        ("2", TypeError, "UnbiasedLowRank: rank must be an integer, got '2'."),
    ],
)
def test_refused(rank: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(words)}$"):
        UnbiasedLowRank(rank=rank)
