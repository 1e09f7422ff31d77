"""Exact on inputs in the range: what a compressor can express it sends without loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import compressed, same_bits, vector
from thriftgrad import QSGD, Cast, ErrorFeedback, Identity, Key, RandomK, Sign, TopK
from thriftgrad.compress import Vote
from thriftgrad.core import Compressor


def sparse(n: int, k: int) -> Tensor:
    x = torch.zeros(n)
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k]
    x[places] = vector("gaussian", k)
    return x


@pytest.mark.parametrize(
    ("compressor", "x"),
    [
        (Identity(), vector("gaussian")),
        (TopK(k=7), sparse(100, 7)),
        (TopK(k=7), sparse(100, 3)),
        (TopK(fraction=0.07), sparse(100, 7)),
        (TopK(k=100), vector("heavy", 100)),
        (ErrorFeedback(TopK(k=7)), sparse(100, 7)),
        (TopK(k=9) >> TopK(k=7), sparse(100, 7)),
        (RandomK(fraction=1.0), vector("gaussian", 100)),
        (RandomK(k=1000, rescale=False), vector("gaussian", 100)),
        (Sign(), vector("flat")),
        (Sign(bucket=4), vector("flat")[:8].abs() * torch.tensor([1, -1, 1, 1, -2, 2, -2, 2])),
        (Sign(scaled=False), vector("flat") / 3),
        (TopK(k=5) >> Sign(), torch.tensor([0.0, 2, 0, -2, 2, 2, 0, -2])),
        (Vote(), torch.tensor([1.0, 0, -1, -1, 0, 1, 1])),
        (Cast("bf16"), vector("gaussian").bfloat16().float()),
        (Cast("fp16"), vector("gaussian").half().float()),
        (QSGD(bits=2), vector("one-hot")),
        (QSGD(bits=8, norm="linf"), vector("flat")),
    ],
    ids=repr,
)
def test_exact(compressor: Compressor[Any, Any], x: Tensor) -> None:
    estimate = compressed(compressor, x, Key(1))
    assert torch.equal(estimate, x)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.integers(2, 8))
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_bucket_of_one_is_exact_bit_for_bit(norm: Any, values: list[float], number: int) -> None:
    x = torch.tensor(values)
    assert torch.equal(compressed(QSGD(bits=number, bucket=1, norm=norm), x, Key(number)), x)


@pytest.mark.parametrize("s", [*range(1, 20), 31, 63, 64, 100, 126, 127, 128, 200, 254, 255])
def test_values_on_the_levels_stay_there(s: int) -> None:
    """Whatever the last bits of the division are: s = 64 ... 255 has levels a last bit or less from a threshold."""
    generator = torch.Generator().manual_seed(s)
    scales = torch.rand(400, 1, generator=generator) * 10 ** torch.randint(-8, 8, (400, 1), generator=generator).float()
    levels = torch.arange(-s, s + 1).float() / s
    x = levels * scales
    compressor = QSGD(levels=s, bucket=2 * s + 1, norm="linf")
    assert same_bits(compressed(compressor, x, Key(s)), x)


def test_what_was_decompressed_compresses_without_loss() -> None:
    for compressor in (
        QSGD(bits=4, bucket=16, norm="linf"),
        TopK(k=9),
        Sign(bucket=8),
        Cast("bf16"),
        TopK(k=6) >> Sign(),
    ):
        once = compressed(compressor, vector("heavy", 200), Key(1))
        torch.testing.assert_close(compressed(compressor, once, Key(2)), once, rtol=1e-6, atol=0)
