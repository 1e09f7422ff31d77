"""Tiles and their cosine transforms: which elements lie in a tile, scipy's coefficients, and back without loss."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn
from torch import Tensor

from samples import compressed, same_bits, vector
from thriftgrad import (
    DCT,
    AllGather,
    AllReduce,
    ChunkedTopK,
    ErrorFeedback,
    Key,
    Sign,
    TensorSpec,
    Tile,
    TopK,
    parse,
    simulate,
    wire,
)
from thriftgrad.compress import QSGD
from thriftgrad.compress.tile import _basis
from thriftgrad.core import LinearCompressor, Shrink

SHAPES = [
    (),
    (1,),
    (7,),
    (64,),
    (128,),
    (130,),
    (127,),
    (3, 5),
    (128, 64),
    (96, 80),
    (6, 4, 3, 3),
    (2, 65),
    (0,),
    (3, 0),
]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def carrier(compressor: Any, x: Tensor) -> Tensor:
    carried: Tensor = compressor.compress(x, None, Key(0))[0].carrier
    return carried


def divisor(length: int, chunk: int) -> int:
    return max((d for d in range(1, chunk + 1) if length % d == 0 and d <= length), default=1)


def tiles_of(x: Tensor, chunk: int) -> list[np.ndarray[Any, Any]]:
    """The oracle: slices of the matrix, row of tiles by row of tiles."""
    matrix = x.double().numpy().reshape((x.shape[0], -1) if x.dim() > 1 and x.numel() else (1, -1))
    h, w = (divisor(length, chunk) for length in matrix.shape)
    return [matrix[i : i + h, j : j + w] for i in range(0, matrix.shape[0], h) for j in range(0, matrix.shape[1], w)]


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_of_the_carrier_is_a_tile(shape: tuple[int, ...], chunk: int) -> None:
    x = normal(*shape)
    tiles = tiles_of(x, chunk) if x.numel() else []
    carried = carrier(Tile(chunk=chunk), x)
    assert carried.shape[0] == len(tiles)
    for row, tile in zip(carried, tiles, strict=True):
        assert row.double().numpy().tolist() == tile.reshape(-1).tolist()
    assert same_bits(compressed(Tile(chunk=chunk), x), x)


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coefficients_are_scipys(shape: tuple[int, ...], chunk: int) -> None:
    x = normal(*shape)
    tiles = tiles_of(x, chunk) if x.numel() else []
    carried = carrier(DCT(chunk=chunk), x)
    assert carried.shape[0] == len(tiles)
    for row, tile in zip(carried, tiles, strict=True):
        np.testing.assert_allclose(row.numpy(), dctn(tile, norm="ortho").reshape(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compressed(DCT(chunk=chunk), x), x, rtol=1e-6, atol=2e-6)


def test_in_float64_to_the_last_bits() -> None:
    x = normal(128, 192).double()
    for row, tile in zip(carrier(DCT(), x), tiles_of(x, 64), strict=True):
        np.testing.assert_allclose(row.numpy(), dctn(tile, norm="ortho").reshape(-1), rtol=0, atol=1e-13)
    torch.testing.assert_close(compressed(DCT(), x), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 3, 17, 64, 1024])
def test_the_basis_is_orthonormal(d: int) -> None:
    basis = _basis(d)
    torch.testing.assert_close(basis @ basis.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-13)
    assert basis.dtype == torch.float64


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.sampled_from([1.0, 1e-20, 1e20]))
def test_lengths_are_kept(height: int, width: int, chunk: int, scale: float) -> None:
    x = normal(height, width) * scale
    for compressor in (Tile(chunk=chunk), DCT(chunk=chunk)):
        carried = carrier(compressor, x)
        assert carried.numel() == x.numel()
        length = float(x.double().norm())
        assert float(carried.double().norm()) == pytest.approx(length, rel=1e-6)
        assert float((compressed(compressor, x) - x).double().norm()) <= 1e-6 * length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coefficients_have_the_tensors_own_type(dtype: torch.dtype) -> None:
    x = normal(64, 64).to(dtype)
    payload, _ = DCT().compress(x, None, Key(0))
    assert payload.carrier.dtype == dtype
    assert payload.nbytes == 2 * 64 * 64
    assert payload.side == ()
    relative = (DCT().decompress(payload) - x).float().norm() / x.float().norm()
    assert float(relative) < 2 * torch.finfo(dtype).eps


def test_a_smooth_tile_needs_one_coefficient() -> None:
    x = torch.full((64, 64), 0.5)
    coefficients = carrier(DCT(), x)[0]
    assert float(coefficients[0]) == pytest.approx(32)
    assert float(coefficients[1:].abs().max()) < 1e-6
    torch.testing.assert_close(compressed(DCT() >> TopK(k=1), x), x)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_tile_alone(bad: float) -> None:
    x = normal(128, 64)
    x[70, 3] = bad
    for chain in (DCT(), DCT() >> ChunkedTopK(k=2, chunk=None)):
        estimate = compressed(chain, x)
        assert estimate[:64].isfinite().all()
        assert estimate[64:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_coefficient_beyond_the_type_is_its_largest_number(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    coefficients = carrier(DCT(), torch.full((64, 64), largest / 2, dtype=dtype))
    assert float(coefficients[0, 0]) == largest
    assert coefficients.isfinite().all()


def test_a_row_of_the_carrier_is_what_a_later_stage_chooses_in() -> None:
    """32 of each tile of 64 by 64, where one tile is much larger: no other is left out."""
    x = normal(128, 64)
    x[:64] *= 1e6
    chain = DCT(chunk=64) >> ChunkedTopK(k=32, chunk=None)
    payload, _ = chain.compress(x, chain.init(TensorSpec.of(x)), Key(0))
    assert payload.carrier.shape == (64,)
    assert payload.nbytes == 64 * 4 + 64 * 12 // 8
    for tile, part in zip(tiles_of(x, 64), compressed(chain, x).split(64), strict=True):
        coefficients, kept = (dctn(each, norm="ortho").reshape(-1) for each in (tile, part.double().numpy()))
        expected = np.argsort(-np.abs(coefficients))[:32]
        assert set(np.flatnonzero(np.abs(kept) > 1e-4 * np.abs(kept).max()).tolist()) <= set(expected.tolist())
        np.testing.assert_allclose(kept[expected], coefficients[expected], rtol=1e-4)


def test_claims_and_composition() -> None:
    for compressor in (Tile(), DCT(chunk=8)):
        for n in (0, 1, 4096, 1 << 40):
            assert compressor.variance_bound(n) == 0
            assert compressor.contraction(n) == 1
        assert compressor.unbiased
        assert compressor.projection
        assert compressor.isometric
        assert isinstance(compressor, LinearCompressor)
    assert (DCT() >> QSGD(levels=4, bucket=16)).variance_bound(4096) == pytest.approx(1)
    assert (Tile() >> ChunkedTopK(k=32, chunk=None)).contraction(4096) == pytest.approx(32 / 4096)
    assert (DCT() >> ChunkedTopK(fraction=0.25, chunk=None)).contraction(10**6) == pytest.approx(0.25)
    assert (DCT() >> ChunkedTopK(k=32) >> Shrink(QSGD(levels=2, bucket=None))).contraction(4096) == pytest.approx(
        32 / 4096 / (1 + 32**0.5 / 2)
    )
    assert (DCT() >> Sign()).contraction(100) == pytest.approx(0.01)
    assert isinstance(DCT() >> Tile(chunk=4), LinearCompressor)


def test_the_measured_contraction_is_at_least_the_claim() -> None:
    for chain in (DCT(8) >> ChunkedTopK(k=5, chunk=None), Tile(8) >> TopK(k=9), DCT(8) >> ChunkedTopK(k=3, chunk=64)):
        for kind in ("gaussian", "flat", "one-hot", "heavy"):
            x = vector(kind, 32 * 16).view(32, 16)
            lost = float((x - compressed(chain, x)).double().square().sum() / x.double().square().sum())
            assert lost <= 1 - (chain.contraction(512) or 0.0) + 1e-6


def test_means_of_carriers_are_means_of_tensors() -> None:
    xs = [normal(6, 8) * (i + 1) for i in range(3)]
    for basis in (Tile(chunk=4), DCT(chunk=4)):
        aggregator = AllReduce(basis)
        workers = [aggregator.aggregate([x], aggregator.init([TensorSpec((6, 8), name="w")]), Key(0)) for x in xs]
        for means, _ in simulate(workers):
            torch.testing.assert_close(means[0], 2 * normal(6, 8), rtol=1e-5, atol=1e-5)


def test_over_the_wire() -> None:
    x = normal(12, 10)
    for compressor in (Tile(chunk=5), DCT(chunk=5), DCT(chunk=5) >> ChunkedTopK(k=3, chunk=None) >> QSGD(bits=4)):
        payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))
        again = wire.unpack(wire.pack(payload), compressor, TensorSpec.of(x))
        assert same_bits(compressor.decompress(again), compressor.decompress(payload))


@pytest.mark.parametrize("make", [Tile, DCT])
def test_refused(make: Any) -> None:
    name = make.__name__
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: chunk must be at least 1, got 0.')}$"):
        make(chunk=0)
    for chunk in (64.0, "64", None, True):
        with pytest.raises(TypeError, match=f"^{re.escape(f'{name}: chunk must be an integer, got {chunk!r}.')}$"):
            make(chunk=chunk)


def test_the_text_is_the_value() -> None:
    method = AllGather(ErrorFeedback(DCT(chunk=32) >> ChunkedTopK(k=32, chunk=None)))
    assert parse(repr(method)) == method
    assert repr(DCT()) == "DCT()"
    assert parse("Tile") == Tile()
