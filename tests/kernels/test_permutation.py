"""The compiled permutation against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftgrad.kernels import reference
from thriftgrad.kernels.cpu import permutation, threads

SIZES = (0, 1, 2, 3, 10, 100, 999, 1000, 1025, 65_536, 1_000_003, 10**9, 2**40 + 17, 2**51 + 3, 2**52, 2**52 + 1, 2**60)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", [0, 12_345, 2**63 - 1, 2**64 - 1])
def test_it_is_the_reference(n: int, seed: int) -> None:
    for k in {0, 1, min(n, 7), min(n, 3000)}:
        k = min(k, n)
        assert torch.equal(permutation.permutation(k, n, seed), reference.permutation(k, n, seed))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_all_values_of_a_small_range(n: int, seed: int) -> None:
    """Where n is just above a square, many places lie outside and are walked on."""
    found = permutation.permutation(n, n, seed)
    assert torch.equal(found, reference.permutation(n, n, seed))
    assert torch.equal(found.sort().values, torch.arange(n))


def test_slices_are_one_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_SLICE", 1000)
    threads.set_threads(3)
    try:
        assert torch.equal(permutation.permutation(5000, 5200, 7), reference.permutation(5000, 5200, 7))
    finally:
        threads.set_threads(None)
