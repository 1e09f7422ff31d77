"""Philox in triton's own counter layout, and what elements take of it."""

from __future__ import annotations

import pytest
import torch

from gpu.same import same
from thriftgrad.kernels import reference
from thriftgrad.kernels.gpu import compiled

CPU = torch.device("cpu")
SEEDS = (0, 1, 16, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0x9E37_79B9_7F4A_7C15)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [0, 1, 5, 1025])
def test_philox(n: int, seed: int) -> None:
    assert same(compiled.philox(n, seed, CPU), reference.philox(n, seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [0, 1, 64, 65, 127, 129, 9000])
def test_uniform16(n: int, seed: int) -> None:
    assert same(compiled.uniform16(n, seed, CPU), reference.uniform16(n, seed))
