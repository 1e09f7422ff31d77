"""No compressor of matrices falls back unheard: aggregators name what travels as it is, warn, or refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from thriftgrad import (
    QSGD,
    AllGather,
    AllReduce,
    BestRank,
    Cast,
    ErrorFeedback,
    Identity,
    ParameterServer,
    ScatterReduce,
    Shrink,
    Sign,
    SpectralAtomo,
    TensorSpec,
    TopK,
    UnbiasedLowRank,
)
from thriftgrad.core import Compressor

MATRIX, SMALL, VECTOR = (
    TensorSpec((20, 30), name="matrix"),
    TensorSpec((4, 2), name="small"),
    TensorSpec((5000,), name="vector"),
)
SPECS = [MATRIX, SMALL, VECTOR]
WHY = "they are vectors, or too small for {} to save anything; all travel as they are."

OF_MATRICES = [
    BestRank(rank=2),
    SpectralAtomo(rank=2),
    UnbiasedLowRank(rank=2),
    ErrorFeedback(BestRank(rank=2)),
    Shrink(UnbiasedLowRank(rank=2)),
    BestRank(rank=2) >> Cast("bf16"),
    Identity() >> Identity() >> ErrorFeedback(BestRank(rank=2)),
]


@pytest.mark.parametrize("compressor", OF_MATRICES[:-1], ids=repr)
def test_what_is_left_alone_has_the_size_of_what_it_stands_for(compressor: Compressor[Any, Any]) -> None:
    assert [compressor.leaves_alone(spec) for spec in SPECS] == [False, True, True]
    for spec in SPECS:
        assert (compressor.layout(spec).carrier.numel == spec.numel) == compressor.leaves_alone(spec)


def test_a_flat_carrier_is_left_alone_behind_what_loses_nothing() -> None:
    assert all(OF_MATRICES[-1].leaves_alone(spec) for spec in SPECS)
    assert not any(c.leaves_alone(spec) for c in (Identity(), TopK(k=1) >> QSGD(bits=4)) for spec in SPECS)


@pytest.mark.parametrize(
    "aggregator",
    [
        AllGather(SpectralAtomo(rank=2)),
        AllReduce(UnbiasedLowRank(rank=2)),
        ParameterServer(ErrorFeedback(BestRank(rank=2)), QSGD(bits=8)),
    ],
    ids=repr,
)
def test_aggregators_name_what_travels_as_it_is(aggregator: Any) -> None:
    assert aggregator.uncompressed(SPECS) == ("small", "vector")
    aggregator.init(SPECS)  # without a warning, since one is compressed
    aggregator.init([])


@pytest.mark.parametrize("aggregator", [AllGather(QSGD(bits=4)), AllReduce(Identity())], ids=repr)
def test_others_leave_nothing_alone(aggregator: Any) -> None:
    assert aggregator.uncompressed(SPECS) == ()
    aggregator.init(SPECS[1:])


@pytest.mark.parametrize(
    ("aggregator", "who", "which"),
    [
        (AllGather(BestRank(rank=2)), "AllGather(BestRank(rank=2))", "BestRank(rank=2)"),
        (AllReduce(UnbiasedLowRank(rank=2)), "AllReduce(UnbiasedLowRank(rank=2))", "UnbiasedLowRank(rank=2)"),
        (ParameterServer(BestRank(rank=2), QSGD(bits=8)), "ParameterServer (up)", "BestRank(rank=2)"),
        (ParameterServer(QSGD(bits=8), BestRank(rank=2)), "ParameterServer (down)", "BestRank(rank=2)"),
    ],
)
def test_a_compressor_without_effect_is_warned_of(aggregator: Any, who: str, which: str) -> None:
    who = who.replace("(BestRank", "(compressor=BestRank").replace("(UnbiasedLowRank", "(compressor=UnbiasedLowRank")
    sentence = f"{who} compresses none of the 2 tensors: {WHY.format(which)}"
    with pytest.warns(UserWarning, match=f"^{re.escape(sentence)}$") as caught:
        aggregator.init(SPECS[1:])
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("compressor", OF_MATRICES, ids=repr)
def test_shards_are_flat(compressor: Compressor[Any, Any], way: str) -> None:
    ways = {"up": Identity(), "down": Identity(), way: compressor}
    sentence = (
        f"ScatterReduce ({way}): {compressor!r} compresses matrices, and shards are flat, so they would travel as they "
        "are; use AllGather or ParameterServer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ScatterReduce(**ways)


@pytest.mark.parametrize(
    ("make", "chain", "second", "first"),
    [
        (
            lambda: TopK(k=9) >> UnbiasedLowRank(rank=2),
            "TopK(k=9) >> UnbiasedLowRank(rank=2)",
            "UnbiasedLowRank(rank=2)",
            "TopK(k=9)",
        ),
        (
            lambda: Cast("bf16") >> (BestRank(rank=1) >> Identity()),
            "Cast(to='bf16') >> BestRank(rank=1)",
            "BestRank(rank=1)",
            "Cast(to='bf16')",
        ),
    ],
)
def test_carriers_are_flat(make: Callable[[], Any], chain: str, second: str, first: str) -> None:
    sentence = (
        f"{chain}: {second} compresses matrices, and the carrier of {first} is flat, so it would travel as it is; put "
        "the compressor of matrices first."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()


def test_all_reduce_advises_nothing_that_is_refused() -> None:
    with pytest.raises(TypeError, match=r"of the tensors\. Use AllGather\(BestRank\(rank=2\)\)\.$"):
        AllReduce(BestRank(rank=2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"AllGather\(Sign\(\)\) or ScatterReduce\(Sign\(\), Sign\(\)\)\.$"):
        AllReduce(Sign())  # type: ignore[arg-type]
