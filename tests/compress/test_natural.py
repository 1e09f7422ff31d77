"""Natural compression against ``math.frexp``, coordinate by coordinate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samples import compressed, same_bits, vector
from thriftgrad import Key, TensorSpec, wire
from thriftgrad.compress import NaturalCompression

NATURAL = NaturalCompression()
TINY = 2.0**-126
LARGEST = torch.finfo(torch.float32).max


def neighbours(x: float) -> tuple[float, float]:
    """The two powers of two around a magnitude: 0 and 2**-126 for a denormal one; above 2**127 there is none."""
    if abs(x) < TINY:
        return 0.0, TINY
    mantissa, exponent = math.frexp(abs(x))
    below = math.ldexp(1.0, exponent - 1)
    return below, below if mantissa == 0.5 or exponent == 128 else 2 * below


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers(0, 9))
def test_the_power_below_or_above_with_the_same_sign(values: list[float], seed: int) -> None:
    for x, y in zip(values, compressed(NATURAL, torch.tensor(values), Key(seed)).tolist(), strict=True):
        assert abs(y) in neighbours(x)
        assert y == 0 or math.copysign(1, y) == math.copysign(1, x)


@pytest.mark.parametrize("exponent", [-126, -125, -1, 0, 1, 60, 126, 127])
def test_powers_of_two_stay(exponent: int) -> None:
    x = torch.tensor([2.0**exponent, -(2.0**exponent)]).repeat(200)
    assert same_bits(compressed(NATURAL, x), x)


@pytest.mark.parametrize("x", [1.5, -1.001, 1.999, 3.0, 0.1, -TINY * 1.25, 1e-40, 5e-39, 3.3e37, 1.4e38])
def test_up_and_down_in_the_right_proportion(x: float) -> None:
    n = 1 << 16
    x = float(torch.tensor(x))
    below, above = neighbours(x)
    y = compressed(NATURAL, torch.full((n,), x)).double()
    up = (abs(x) - below) / (above - below)
    assert set(y.abs().tolist()) == {below, above}
    assert abs((y.abs() == above).double().mean().item() - up) <= 5 * math.sqrt(up * (1 - up) / n) + 2.0**-16


@pytest.mark.parametrize("x", [2.0**127 * 1.0001, 2.0**127 * 1.5, 3e38, LARGEST, -LARGEST])
def test_above_the_last_power_all_go_down(x: float) -> None:
    assert set(compressed(NATURAL, torch.full((1000,), x)).tolist()) == {math.copysign(2.0**127, x)}


def test_zero_and_what_is_not_finite() -> None:
    x = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0])
    y = compressed(NATURAL, x)
    assert y[[0, 1, 5]].tolist() == [0.0, 0.0, 1.0]
    assert y[2:5].isnan().all()


def test_the_wire_holds_the_sign_and_the_exponent() -> None:
    """Nine bits each, the exponent as float32 writes it, the sign above it."""
    x = torch.tensor([1.0, -1.0, 0.0, 2.0**-126, -(2.0**127), math.nan])
    payload, _ = NATURAL.compress(x, None, Key(0))
    assert payload.carrier.tolist() == [127, 256 + 127, 0, 1, 256 + 254, 255]
    assert payload.nbytes == math.ceil(6 * 9 / 8)
    again = wire.unpack(wire.pack(payload), NATURAL, TensorSpec((6,)))
    assert torch.equal(again.carrier, payload.carrier)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    x: Tensor = vector("gaussian", 500).to(dtype)
    y = compressed(NATURAL, x)
    assert y.dtype == dtype
    ratio = (y / x).double()
    assert ratio.min() > 0.5
    assert ratio.max() < 2
