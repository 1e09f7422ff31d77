"""A setting that makes no sense is refused where it is written, with the value given."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from thriftgrad import QSGD, Atomo, Cast, ChunkedTopK, RandomBlock, RandomK, Sign, SignTopK, TopK, recipes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(fraction=0), "TopK: fraction must lie in (0, 1], got 0"),
        (lambda: TopK(fraction=1.5), "TopK: fraction must lie in (0, 1], got 1.5"),
        (lambda: TopK(fraction=-0.1), "TopK: fraction must lie in (0, 1], got -0.1"),
        (lambda: TopK(fraction=float("nan")), "TopK: fraction must lie in (0, 1], got nan"),
        (lambda: TopK(k=0), "TopK: k must be at least 1, got 0"),
        (TopK, "TopK: give either fraction or k, got fraction=None and k=None"),
        (lambda: TopK(0.5, 3), "TopK: give either fraction or k, got fraction=0.5 and k=3"),
        (lambda: RandomK(fraction=2), "RandomK: fraction must lie in (0, 1], got 2"),
        (lambda: RandomK(k=-1), "RandomK: k must be at least 1, got -1"),
        (RandomK, "RandomK: give one of fraction, k and rank"),
        (lambda: recipes.top_k(fraction=0), "TopK: fraction must lie in (0, 1], got 0"),
        (lambda: QSGD(bits=1), "QSGD: bits must lie in 2 ... 8 (sign included), got 1"),
        (lambda: QSGD(bits=9), "QSGD: bits must lie in 2 ... 8 (sign included), got 9"),
        (lambda: QSGD(levels=0), "QSGD: levels must lie in 1 ... 255, got 0"),
        (lambda: QSGD(levels=256), "QSGD: levels must lie in 1 ... 255, got 256"),
        (QSGD, "QSGD: give either bits or levels, got bits=None and levels=None"),
        (lambda: QSGD(bits=4, levels=7), "QSGD: give either bits or levels, got bits=4 and levels=7"),
        (lambda: QSGD(bits=4, bucket=0), "QSGD: bucket must be at least 1, got 0"),
        (lambda: QSGD(bits=4, norm="l1"), 'QSGD: norm must be "l2" or "linf", got \'l1\''),
        (lambda: Sign(bucket=0), "Sign: bucket must be at least 1, got 0"),
        (
            lambda: Sign(bucket=8, scaled=False),
            "Sign: bucket=8 has no effect where scaled is False; leave one of them out",
        ),
        (lambda: Cast("fp8"), 'Cast: the type must be "bf16" or "fp16", got \'fp8\''),
        (lambda: recipes.sgd(precision="bf61"), "sgd: unknown precision 'bf61'; did you mean 'bf16'"),
        (lambda: recipes.sgd(precision="int8"), "sgd: unknown precision 'int8'; known: bf16, fp16, fp32"),
    ],
)
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


@pytest.mark.parametrize("make", [TopK, RandomK, RandomBlock, SignTopK, Atomo, ChunkedTopK])
@pytest.mark.parametrize("k", [1.5, 2.0, True, "3"])
def test_a_number_of_coordinates_is_an_integer(make: Callable[..., Any], k: Any) -> None:
    with pytest.raises(TypeError, match=rf": k must be an integer, got {re.escape(repr(k))}\.$"):
        make(k=k)
