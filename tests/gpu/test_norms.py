"""Sums in their defined order, and norms from them."""

from __future__ import annotations

import math

import pytest
import torch

from gpu.same import same
from thriftgrad.kernels import quantised
from thriftgrad.kernels.gpu import compiled

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN and infinity in the interpreter

SHAPES = [(0, 5), (3, 1), (2, 63), (2, 64), (1, 65), (5, 512), (9, 100), (2, 8192), (2, 8193), (1, 30_000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_have_the_same_bits(shape: tuple[int, int]) -> None:
    """Of numbers from 1e-30 to 1e30, whose sum any other order changes."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(shape, generator=generator) * 10 ** (60 * torch.rand(shape, generator=generator) - 30)
    for squared in (False, True):
        assert same(compiled.lane_sums(rows, squared), quantised.lane_sums(rows, squared))
    for norm in ("l2", "linf"):
        assert same(compiled.bucket_norms(rows, norm), quantised.bucket_norms(rows, norm))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e-40, 3.4e38])
@pytest.mark.parametrize("shape", [(3, 100), (1, 9000)], ids=str)
def test_norms_at_the_edges(shape: tuple[int, int], value: float) -> None:
    for rows in (torch.full(shape, value), torch.randn(shape, generator=torch.Generator().manual_seed(2))):
        rows[-1, 70] = value
        for norm in ("l2", "linf"):
            assert same(compiled.bucket_norms(rows, norm), quantised.bucket_norms(rows, norm))
