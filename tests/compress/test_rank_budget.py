"""As many random coordinates as low-rank factors have numbers: ``rank=`` of RandomK and RandomBlock."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from samples import compressed, vector
from thriftgrad import BestRank, ErrorFeedback, Key, RandomBlock, RandomK, TensorSpec, parse
from thriftgrad.compress.fraction import kept_of, least_kept

BOTH = pytest.mark.parametrize("make", [RandomK, RandomBlock])


@BOTH
@pytest.mark.parametrize(
    ("shape", "rank", "kept"),
    [
        ((64, 3, 3, 3), 2, 182),
        ((64, 27), 1, 91),
        ((64, 27), 18, 1638),
        ((64, 27), 19, 1728),  # 19 * 91 = 1729
        ((10, 10), 5, 100),
        ((7,), 1, 7),
        ((1, 7), 1, 7),
        ((), 3, 1),
        ((0,), 3, 0),
        ((3, 0, 2), 1, 0),
    ],
)
def test_so_many_are_kept(make: Any, shape: tuple[int, ...], rank: int, kept: int) -> None:
    compressor = make(rank=rank)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    payload, _ = compressor.compress(x, None, Key(1))
    assert payload.carrier.numel() == kept == compressor.layout(TensorSpec(shape)).carrier.numel
    assert int(compressor.decompress(payload).count_nonzero()) == kept


@pytest.mark.parametrize("shape", [(64, 27), (100, 100), (8, 500), (3, 3)])
def test_the_budget_is_that_of_factors(shape: tuple[int, int]) -> None:
    spec = TensorSpec(shape)
    for rank in (1, 2, 7):
        assert RandomK(rank=rank).layout(spec).carrier.nbytes == BestRank(rank=rank).layout(spec).nbytes


@BOTH
def test_it_keeps_what_k_of_that_size_keeps(make: Any) -> None:
    x = vector("gaussian", 120).view(12, 10)
    assert torch.equal(compressed(make(rank=2), x, Key(3)), compressed(make(k=44), x, Key(3)))


def test_claims_are_those_of_the_least_that_any_shape_keeps() -> None:
    """2 r sqrt(n) of n, at a square; every other shape of as many elements keeps more."""
    for n, rank in ((36, 1), (144, 2), (600, 3)):
        shapes = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
        kept = [kept_of(TensorSpec(shape), None, None, rank) for shape in shapes]
        least = least_kept(n, None, None, rank)
        assert min(kept) >= least
        if n != 600:
            assert min(kept) == least == 2 * rank * n**0.5
        assert RandomBlock(rank=rank).contraction(n) == pytest.approx(min(1.0, 2 * rank / n**0.5))
        assert RandomK(rank=rank, rescale=False).contraction(n) == pytest.approx(min(1.0, 2 * rank / n**0.5))
        assert RandomK(rank=rank).variance_bound(n) == pytest.approx(max(n**0.5 / (2 * rank) - 1, 0))
    for make in (RandomK(rank=3, rescale=False), RandomBlock(rank=3)):
        assert make.contraction(36) == make.contraction(20) == make.contraction(0) == 1
    assert RandomK(rank=3).variance_bound(36) == RandomK(rank=3).variance_bound(0) == 0
    assert RandomK(rank=1, rescale=False).variance_bound(36) is None


def test_the_claims_are_attained_by_squares() -> None:
    """RandomK at 8 x 8, rank 1: 16 of 64 flat coordinates times 4, for every key."""
    x = vector("flat", 64).view(8, 8)
    error = (compressed(RandomK(rank=1), x, Key(2)) - x).square().sum() / x.square().sum()
    assert float(error) == RandomK(rank=1).variance_bound(64) == 3
    lost = (compressed(RandomBlock(rank=1), x, Key(2)) - x).square().sum() / x.square().sum()
    assert 1 - float(lost) == RandomBlock(rank=1).contraction(64) == 0.25


def test_with_feedback() -> None:
    for compressor in (ErrorFeedback(RandomK(rank=1, rescale=False)), ErrorFeedback(RandomBlock(rank=1))):
        x, state = vector("gaussian", 64).view(8, 8), compressor.init(TensorSpec((8, 8)))
        sent = torch.zeros(8, 8)
        for step in range(40):
            payload, state = compressor.compress(x, state, Key(step))
            sent += compressor.decompress(payload)
        torch.testing.assert_close(sent + state.memory, 40 * x, rtol=1e-4, atol=1e-4)
        assert parse(repr(compressor)) == compressor


@BOTH
@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({}, ValueError, "give one of fraction, k and rank, got fraction=None, k=None and rank=None."),
        ({"k": 3, "rank": 1}, ValueError, "give one of fraction, k and rank, got fraction=None, k=3 and rank=1."),
        (
            {"fraction": 0.1, "k": 3, "rank": 1},
            ValueError,
            "give one of fraction, k and rank, got fraction=0.1, k=3 and rank=1.",
        ),
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0."),
        ({"rank": 1.0}, TypeError, "rank must be an integer, got 1.0."),
    ],
)
def test_refused(make: Any, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(f'{make.__name__}: {words}')}$"):
        make(**options)
