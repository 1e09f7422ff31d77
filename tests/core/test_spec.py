"""Specs, layouts and the trees they are kept in."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from thriftgrad import QSGD, TensorSpec, TopK
from thriftgrad.core.tree import leaves, map_leaves


@pytest.mark.parametrize(
    ("spec", "nbytes"),
    [
        (TensorSpec((10, 5)), 200),
        (TensorSpec(()), 4),
        (TensorSpec((0, 5)), 0),
        (TensorSpec((7,), torch.bfloat16), 14),
        (TensorSpec((7,), torch.float64), 56),
        (TensorSpec((9,), torch.uint8, alphabet=1), 0),
        (TensorSpec((9,), torch.uint8, alphabet=2), 2),
        (TensorSpec((10,), torch.uint8, alphabet=3), 2),
        (TensorSpec((11,), torch.uint8, alphabet=3), 3),
        (TensorSpec((9,), torch.uint8, alphabet=4), 3),
        (TensorSpec((9,), torch.uint8, alphabet=5), 4),
        (TensorSpec((9,), torch.uint8, alphabet=16), 5),
        (TensorSpec((9,), torch.uint8, alphabet=17), 6),
        (TensorSpec((9,), torch.int64, alphabet=1000), 12),
    ],
)
def test_bytes(spec: TensorSpec, nbytes: int) -> None:
    assert spec.nbytes == nbytes


def test_of_and_zeros_agree() -> None:
    x = torch.ones(3, 4, dtype=torch.bfloat16)
    spec = TensorSpec.of(x, "w")
    assert spec == TensorSpec((3, 4), torch.bfloat16, torch.device("cpu"), "w")
    assert spec.numel == 12
    zeros = spec.with_dtype(torch.float64).zeros()
    assert zeros.shape == (3, 4)
    assert zeros.dtype == torch.float64
    assert not zeros.any()


def test_a_layout_counts_carrier_and_side() -> None:
    layout = (TopK(k=8) >> QSGD(bits=4)).layout(TensorSpec((1000,)))
    assert layout.carrier.nbytes == 4
    assert layout.nbytes == 4 + 10 + 4  # nibbles, indices of 10 bits, one norm
    assert layout.label == "TopK(k=8) >> QSGD(bits=4)"


class Pair(NamedTuple):
    left: object
    right: object


def test_trees() -> None:
    tree = (1, (None, Pair(2, (3,))), ())
    assert list(leaves(tree)) == [1, 2, 3]
    doubled = map_leaves(lambda leaf: 2 * leaf, tree)
    assert doubled == (2, (None, Pair(4, (6,))), ())
    assert isinstance(doubled[1][1], Pair)
    assert list(leaves(None)) == []
