"""Grids and buckets at their edges: one coordinate, a short last bucket, zero, denormal, huge, not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.adapted import fitted, table
from samples import compressed, same_bits, vector
from thriftgrad import Key, TensorSpec, wire
from thriftgrad.compress import (
    ALQ,
    ALQ_N,
    AMQ,
    AMQ_N,
    NUQSGD,
    QSGD,
    Lloyd,
    NaturalCompression,
    OneBit,
    Quantizer,
    TernGrad,
)

LARGEST = torch.finfo(torch.float32).max
ASYMMETRIC = (-1.0, -0.7, -0.1, -0.02, 0.0, 0.3, 0.31, 1.0)

with_zero = [(make, bits, True) for make in (QSGD, NUQSGD, ALQ, AMQ) for bits in range(2, 9)]
without = [(make, bits, False) for make in (QSGD, NUQSGD, ALQ, AMQ) for bits in range(1, 9)]
GRIDS = pytest.mark.parametrize(
    ("make", "bits", "zero"), with_zero + without, ids=lambda each: getattr(each, "__name__", str(each))
)


def family(bucket: int) -> list[Any]:
    """Members of every kind, whose grids hold -1 and 1."""
    fixed: list[Any] = [
        *(QSGD(bits=b, bucket=bucket, norm=norm) for b, norm in ((2, "l2"), (5, "linf"), (8, "l2"))),
        *(QSGD(bits=b, bucket=bucket, include_zero=False) for b in (1, 8)),
        QSGD(levels=9, bucket=bucket),
        *(NUQSGD(bits=b, bucket=bucket, norm=norm) for b, norm in ((3, "l2"), (8, "linf"))),
        *(NUQSGD(bits=b, bucket=bucket, include_zero=False) for b in (1, 8)),
        *(Quantizer(levels, bucket=bucket) for levels in ((0, 1), (-1, 1), ASYMMETRIC, (-1, 0.99, 1))),
        *(make(bits=3, bucket=bucket, include_zero=z) for make in (ALQ, AMQ) for z in (True, False)),
        *(make(bits=b, bucket=bucket, include_zero=False) for make, b in ((ALQ_N, 1), (AMQ_N, 7))),
        AMQ(bits=3, bucket=bucket, include_zero=False, reference_mode="ltq"),
        TernGrad(clip=None, bucket=bucket),
        TernGrad(bucket=bucket),
    ]
    return fixed


ANY_FLOAT = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.1754942e-38, 1e38, -1e38, LARGEST, -LARGEST, 1.0]),
)


@pytest.mark.parametrize("compressor", family(1), ids=repr)
@settings(max_examples=25)
@given(values=st.lists(ANY_FLOAT, min_size=1, max_size=20), seed=st.integers(0, 2**64 - 1))
def test_a_bucket_of_one_is_exact(compressor: Any, values: list[float], seed: int) -> None:
    x = torch.tensor(values)
    assert torch.equal(compressed(compressor, x, Key(seed)), x)


@pytest.mark.parametrize("compressor", [each for each in family(1) if hasattr(each, "update_at")], ids=repr)
def test_a_bucket_of_one_is_exact_on_fitted_levels(compressor: Any) -> None:
    x = torch.tensor([1e-45, -1e-40, 0.0, 3.0, -7e37, LARGEST])
    (state,) = fitted(compressor, [x])
    payload, _ = compressor.compress(x, state, Key(1))
    assert torch.equal(compressor.decompress(payload), x)


@GRIDS
def test_the_grid_of_so_many_bits(make: Any, bits: int, zero: bool) -> None:
    """2^bits levels, one fewer with zero; sorted, symmetric, from -1 to 1 exactly; the symbols fit the bits."""
    compressor = make(bits=bits, include_zero=zero, bucket=64)
    states = [None]
    if hasattr(compressor, "update_at"):
        x = vector("heavy", 6400)
        states = [compressor.init(TensorSpec.of(x)), fitted(compressor, [x])[0]]
    for state in states:
        levels = table(compressor, state)
        assert len(levels) == 2**bits - zero
        assert (levels.diff() > 0).all()
        assert torch.equal(levels, -levels.flip(0))
        assert levels[-1] == 1.0
        assert (0.0 in levels.tolist()) == zero
        layout = compressor.layout(TensorSpec((100,)), compressor.shared(state))
        assert layout.carrier.alphabet == len(levels)
        assert layout.carrier.zero == (len(levels) // 2 if zero else None)
        symbols = compressor.compress(vector("gaussian", 6400), state, Key(0))[0].carrier
        assert symbols.min() >= 0
        assert int(symbols.max()) < len(levels)


@GRIDS
def test_what_stands_on_the_levels_stays_there(make: Any, bits: int, zero: bool) -> None:
    """With 1 among them, so that linf's scale is 1, and scaled by powers of two, which change no bit."""
    compressor = make(bits=bits, include_zero=zero, norm="linf", bucket=2**bits)
    state = compressor.init(TensorSpec((1,)))
    levels = table(compressor, state)
    x = torch.cat([levels, torch.ones(2**bits - len(levels))]) * 2.0 ** torch.arange(-140.0, 120, 13)[:, None]
    x = x.reshape(-1)
    x = x[: x.numel() // 2**bits * 2**bits]
    normal = x.view(-1, 2**bits)[x.view(-1, 2**bits).abs().amax(1) > 1e-30].reshape(-1)  # no levels lost to denormals
    payload, _ = compressor.compress(normal, state, Key(bits))
    assert torch.equal(compressor.decompress(payload), normal)


@pytest.mark.parametrize("bucket", [1, 64, 100, 2000])
def test_bytes_of_every_number_of_bits(bucket: int) -> None:
    """Symbols of ceil(log2 L) bits, five to a byte for three, and a float32 a bucket: no tail of plain floats."""
    fixed = [each for each in with_zero + without if bucket == 64 or each[0] in (QSGD, NUQSGD)]
    for n in (1, 7, 64, 100, 127, 128, 129, 1001):
        spec, scales = TensorSpec((n,)), math.ceil(n / bucket)
        for make, bits, zero in fixed:
            alphabet = 2**bits - zero
            symbols = math.ceil(n / 5) if alphabet == 3 else math.ceil(n * math.ceil(math.log2(alphabet)) / 8)
            layout = make(bits=bits, include_zero=zero, bucket=bucket).layout(spec)
            assert layout.nbytes == symbols + 4 * scales
        for levels, width in (((0, 1), 8 / 5), (ASYMMETRIC, 3), ((-1, 1), 1), (tuple(np.linspace(-1, 1, 256)), 8)):
            assert Quantizer(levels, bucket=bucket).layout(spec).nbytes == math.ceil(n * width / 8) + 4 * scales
        for bits in range(1, 9) if bucket == 64 else ():
            assert Lloyd(bits=bits, bucket=bucket).layout(spec).nbytes == math.ceil(n * bits / 8) + 4 * scales
        assert OneBit(bucket=bucket).layout(spec).nbytes == math.ceil(n / 8) + 8 * scales
        assert NaturalCompression().layout(spec).nbytes == math.ceil(9 * n / 8)


@pytest.mark.parametrize("compressor", family(16), ids=repr)
def test_the_message_is_as_long_as_the_layout_says(compressor: Any) -> None:
    for n in (16, 17, 37):
        x = vector("gaussian", n)
        payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))
        assert len(wire.pack(payload)) == wire.HEADER_BYTES + compressor.layout(TensorSpec((n,))).nbytes


@pytest.mark.parametrize("compressor", family(16), ids=repr)
def test_the_last_bucket_is_quantised_like_any_other(compressor: Any) -> None:
    """Five coordinates at the end: their own scale, the family's levels, and the same symbols as in a full bucket."""
    x = torch.cat([100 * vector("gaussian", 32), vector("gaussian", 5, 1)])
    payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(3))
    last = x[32:].double()
    norm = getattr(compressor, "norm", "linf")
    scale = last.norm() if norm == "l2" else last.abs().max()
    if getattr(compressor, "clip", None):
        scale = torch.minimum(scale, 2.5 * last.square().mean().sqrt())
    assert payload.side.scale.shape == (3,)
    assert payload.side.scale[2].item() == pytest.approx(scale.item(), rel=1e-6)
    filled = torch.cat([x, torch.zeros(11)])
    again, _ = compressor.compress(filled, compressor.init(TensorSpec.of(filled)), Key(3))
    if compressor != TernGrad(bucket=16):  # whose limit is over the coordinates there are
        assert torch.equal(again.carrier[:37], payload.carrier)


@pytest.mark.parametrize("compressor", [*family(16), OneBit(bucket=16), Lloyd(bits=3, bucket=16)], ids=repr)
def test_zero_denormal_and_huge_buckets(compressor: Any) -> None:
    for n in (1, 16, 37):
        assert torch.equal(compressed(compressor, torch.zeros(n)), torch.zeros(n))
        for value in (1e-45, 1e-40, 1e-38, 1e38, 3e38, LARGEST):
            x = value * vector("flat", n).sign()
            estimate = compressed(compressor, x)
            assert estimate.isfinite().all()
            # A bucket is not lost: c times the end level is somewhere, or, of few levels, in expectation.
            assert estimate.abs().sum() > 0
    hot = torch.zeros(40)
    for value in (1e-45, 1e-40, LARGEST):
        hot[20] = -value
        estimate = compressed(compressor, hot)
        assert estimate.isfinite().all()
        if "include_zero=False" not in repr(compressor) and isinstance(compressor, QSGD | NUQSGD | TernGrad):
            if compressor == TernGrad(bucket=16):
                assert 0 < -estimate[20] <= value
            else:
                assert torch.equal(estimate, hot)


@pytest.mark.parametrize("compressor", [each for each in family(4000) if each.unbiased], ids=repr)
@pytest.mark.parametrize("value", [1e-40, 1e-30, 3e38])
def test_rounding_is_unbiased_where_squares_leave_float32(compressor: Any, value: float) -> None:
    """4000 equal coordinates are 4000 draws of one; the norm of the largest is cut to float32, the mean is not."""
    x = torch.full((4000,), value)
    payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))
    estimate = compressor.decompress(payload).double() / value
    sigma = estimate.std().item() / math.sqrt(4000)
    scale = payload.side.scale.double().item() / value
    assert abs(estimate.mean().item() - 1) <= 5 * sigma + 2.0**-16 * scale + 1e-5
    if value == 3e38 and getattr(compressor, "norm", "linf") == "l2":
        assert payload.side.scale.item() == LARGEST


@pytest.mark.parametrize("compressor", [*family(16), OneBit(bucket=16), Lloyd(bits=3, bucket=16)], ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bucket_that_is_not_finite_is_nan_and_no_other_is(compressor: Any, bad: float) -> None:
    x = vector("gaussian", 40)
    for at, nan in ((20, slice(16, 32)), (39, slice(32, 40))):
        y = x.clone()
        y[at] = bad
        estimate = compressed(compressor, y)
        assert estimate[nan].isnan().all()
        estimate[nan] = 0
        assert estimate.isfinite().all()
        clean = compressed(compressor, x)
        clean[nan] = 0
        assert same_bits(estimate, clean)


def test_an_infinite_norm_of_float64_is_nan() -> None:
    x = torch.tensor([1e300, 1.0], dtype=torch.float64)
    for compressor in (QSGD(bits=4), NUQSGD(bits=4), ALQ(bits=3), TernGrad(), OneBit()):
        assert not compressed(compressor, x).isfinite().any()
