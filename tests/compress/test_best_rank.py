"""The nearest matrix of a rank: against numpy's SVD, and what a memory makes of it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samples import compressed, vector
from thriftgrad import BestRank, ErrorFeedback, Identity, Key, TensorSpec, parse, wire


def nearest(x: Tensor, rank: int) -> Tensor:
    u, sigma, v = np.linalg.svd(x.reshape(len(x), -1).double().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * sigma[:rank]) @ v[:rank]).view(x.shape)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (20, 3), (6, 2, 3, 3), (50, 40)])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "one-hot"])
def test_it_is_the_truncated_svd(shape: tuple[int, ...], rank: int, kind: str) -> None:
    x = vector(kind, int(np.prod(shape))).view(shape)
    torch.testing.assert_close(
        compressed(BestRank(rank=rank), x).double(), nearest(x, rank), rtol=1e-4, atol=2e-5 * float(x.abs().max())
    )


@pytest.mark.parametrize(("q", "r"), [(8, 1), (8, 2), (9, 4)])
def test_the_contraction_is_attained_by_square_orthogonal_matrices(q: int, r: int) -> None:
    """All singular values equal: exactly r of q squares are kept."""
    x = torch.linalg.qr(vector("gaussian", q * q).view(q, q)).Q
    error = (compressed(BestRank(rank=r), x) - x).double().square().sum()
    assert float(error) / q == pytest.approx(1 - r / q, rel=1e-5)
    assert BestRank(rank=r).contraction(q * q) == pytest.approx(r / q)
    assert BestRank(rank=r).contraction(r * r - 1) == BestRank(rank=r).contraction(0) == 1


@pytest.mark.parametrize("shape", [(30, 20), (5, 120), (120, 5)])
def test_no_shape_loses_more_than_claimed(shape: tuple[int, int]) -> None:
    x = torch.linalg.qr(vector("gaussian", 600).view(max(shape), min(shape))).Q
    x = x if x.shape == shape else x.T
    lost = (compressed(BestRank(rank=2), x) - x).double().square().sum() / x.double().square().sum()
    assert float(lost) == pytest.approx(1 - 2 / min(shape), rel=1e-5)
    assert float(lost) <= 1 - BestRank(rank=2).contraction(600)


def test_exact_on_matrices_of_its_rank() -> None:
    x = vector("gaussian", 24).view(12, 2) @ vector("gaussian", 20, 1).view(2, 10)
    torch.testing.assert_close(compressed(BestRank(rank=2), x), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compressed(BestRank(rank=3), x), x, rtol=1e-5, atol=1e-5)
    assert not compressed(BestRank(rank=2), torch.zeros(12, 10)).any()


def test_it_projects() -> None:
    x = vector("gaussian", 120).view(12, 10)
    once = compressed(BestRank(rank=3), x)
    assert float(((x - once) * once).sum()) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(compressed(BestRank(rank=3), once), once, rtol=1e-4, atol=1e-5)


def test_bytes() -> None:
    assert BestRank(rank=2).layout(TensorSpec((64, 3, 3, 3))).nbytes == 4 * 2 * (64 + 27)
    assert BestRank(rank=2).layout(TensorSpec((64, 3, 3, 3), torch.bfloat16)).nbytes == 4 * 2 * (64 + 27)
    assert BestRank(rank=19).layout(TensorSpec((64, 27))).nbytes == 4 * 64 * 27 == 4 * 1728  # 19 * 91 = 1729
    assert BestRank(rank=18).layout(TensorSpec((64, 27))).nbytes == 4 * 18 * 91
    payload, _ = BestRank(rank=1).compress(torch.ones(10, 8), None, Key(0))
    assert len(wire.pack(payload)) == wire.HEADER_BYTES + 4 * 18


@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (1, 7), (7, 1), (2, 2), (0, 4), (4, 0)])
def test_what_would_not_shrink_travels_as_it_is(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(compressed(BestRank(rank=2), x), x)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_sent_as_nan(bad: float) -> None:
    x = vector("gaussian", 63).view(9, 7).clone()
    x[4, 4] = bad
    assert compressed(BestRank(rank=1), x).isnan().all()


def test_the_input_is_untouched_and_a_view_is_like_its_copy() -> None:
    x = vector("gaussian", 80).view(10, 8)
    kept = x.clone()
    assert torch.equal(compressed(BestRank(rank=1), x.T), compressed(BestRank(rank=1), x.T.contiguous()))
    assert torch.equal(x, kept)


def test_with_feedback_every_direction_is_sent_in_its_turn() -> None:
    """A constant matrix of eight equal singular values, one a step: the memory never exceeds its bound, 2 / delta |x|
    with delta = 1 / 8, and what was sent follows what came in."""
    x = torch.linalg.qr(vector("gaussian", 64).view(8, 8)).Q
    feedback = ErrorFeedback(BestRank(rank=1))
    state, sent = feedback.init(TensorSpec((8, 8))), torch.zeros(8, 8)
    for step in range(80):
        payload, state = feedback.compress(x, state, Key(step))
        sent += feedback.decompress(payload)
    torch.testing.assert_close(sent + state.memory, 80 * x, rtol=1e-4, atol=1e-3)
    assert float(state.memory.norm()) <= 2 * 8 * float(x.norm())
    assert float((sent / 80 - x).norm() / x.norm()) < 0.2
    assert float(torch.linalg.matrix_norm(sent, 2)) < 1.2 * 80


def test_the_text_is_the_value() -> None:
    for compressor in (ErrorFeedback(BestRank(rank=3)), BestRank(rank=1) >> Identity()):
        assert parse(repr(compressor)) == compressor


@pytest.mark.parametrize(
    ("rank", "kind", "words"),
    [
        (0, ValueError, "BestRank: rank must be at least 1, got 0."),
        (-2, ValueError, "BestRank: rank must be at least 1, got -2."),
        (2.0, TypeError, "BestRank: rank must be an integer, got 2.0."),
        (None, TypeError, "BestRank: rank must be an integer, got None."),
    ],
)
def test_refused(rank: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(words)}$"):
        BestRank(rank=rank)
