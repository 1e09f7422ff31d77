"""The algebra of compressors: chains associate, Identity is the unit, memories stand outermost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from samples import compressed, same_bits, vector
from thriftgrad import QSGD, Cast, ErrorFeedback, Identity, Key, RandomK, Shrink, Sign, TensorSpec, TopK, wire
from thriftgrad.core import Chain, Compressor, LinearChain, LinearCompressor

TRIPLES: list[tuple[Compressor[Any, Any], ...]] = [
    (TopK(fraction=0.5), TopK(fraction=0.5), QSGD(bits=4)),
    (RandomK(fraction=0.5), RandomK(fraction=0.5, rescale=False), Cast("bf16")),
    (Identity(), TopK(k=9), Sign()),
    (RandomK(fraction=0.5), QSGD(bits=4, norm="linf"), Identity()),
    (TopK(k=20), RandomK(k=10, rescale=False), Shrink(QSGD(bits=2))),
    (ErrorFeedback(TopK(k=4)), Identity(), Identity()),
]


@pytest.mark.parametrize("triple", TRIPLES, ids=repr)
def test_chains_associate(triple: tuple[Compressor[Any, Any], ...]) -> None:
    a, b, c = triple
    assert (a >> b) >> c == a >> (b >> c)
    left, right = Chain(Chain(a, b), c), Chain(a, Chain(b, c))
    assert repr(left) == repr(right)
    assert left.contraction(100) == pytest.approx(right.contraction(100))
    assert left.variance_bound(100) == pytest.approx(right.variance_bound(100))
    x = vector("gaussian", 100)
    spec, key = TensorSpec.of(x), Key(3)
    one, two = left.compress(x, left.init(spec), key)[0], right.compress(x, right.init(spec), key)[0]
    assert same_bits(wire.pack(one), wire.pack(two))
    assert same_bits(left.decompress(one), right.decompress(two))


@pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)
def test_identity_is_the_unit(compressor: Compressor[Any, Any]) -> None:
    x, key = vector("gaussian", 60), Key(3)
    alone = compressed(compressor, x, key)
    for chain in (Identity() >> compressor, compressor >> Identity()):
        assert same_bits(compressed(chain, x, key), alone)
        assert chain.layout(TensorSpec.of(x)).nbytes == compressor.layout(TensorSpec.of(x)).nbytes
        assert chain.unbiased == compressor.unbiased
        assert chain.has_memory == compressor.has_memory
        assert isinstance(chain, LinearCompressor) == isinstance(compressor, LinearCompressor)
        for claim in ("variance_bound", "contraction"):
            assert getattr(chain, claim)(60) == pytest.approx(getattr(compressor, claim)(60))


def test_the_second_stage_sees_the_carrier_of_the_first() -> None:
    x, key = vector("heavy", 80), Key(3)
    kept = x.abs().topk(8).indices.sort().values
    expected = torch.zeros(80)
    expected[kept] = compressed(QSGD(bits=4), x[kept], key)
    assert same_bits(compressed(TopK(k=8) >> QSGD(bits=4), x, key), expected)


def test_a_chain_of_linear_compressors_is_linear() -> None:
    linear = RandomK(fraction=0.5) >> Cast("bf16")
    assert type(linear) is LinearChain
    assert type(linear >> Identity()) is LinearChain
    assert type(RandomK(fraction=0.5) >> QSGD(bits=4)) is Chain
    assert isinstance(ErrorFeedback(RandomK(k=1, rescale=False)), LinearCompressor)
    assert not isinstance(ErrorFeedback(TopK(k=1)), LinearCompressor)
    assert isinstance(Shrink(RandomK(k=1)), LinearCompressor)
    assert not isinstance(Shrink(QSGD(bits=4)), LinearCompressor)


def test_shrink_divides_by_one_plus_omega() -> None:
    x, key = vector("gaussian", 64), Key(3)
    inner = QSGD(bits=2, bucket=64)  # omega = sqrt(64) / 1
    torch.testing.assert_close(compressed(Shrink(inner), x, key), compressed(inner, x, key) / 9)
    assert Shrink(inner).layout(TensorSpec.of(x)).nbytes == inner.layout(TensorSpec.of(x)).nbytes


def test_only_compressors_are_chained() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        TopK(k=1) >> 3  # type: ignore[operator]


@pytest.mark.parametrize("second", [TopK(k=1), QSGD(bits=4), Sign(), Cast("bf16"), RandomK(k=1)], ids=repr)
@pytest.mark.parametrize("first", [QSGD(bits=4), Sign(), TopK(k=3) >> Sign()], ids=repr)
def test_nothing_lossy_after_symbols(first: Compressor[Any, Any], second: Compressor[Any, Any]) -> None:
    with pytest.raises(TypeError, match=r"carries integer symbols, which the lossy .* cannot compress; swap the two"):
        first >> second


@pytest.mark.parametrize(
    "chain",
    [
        lambda: TopK(k=3) >> ErrorFeedback(TopK(k=1)),
        lambda: ErrorFeedback(TopK(k=3)) >> QSGD(bits=8),
        lambda: (ErrorFeedback(TopK(k=3)) >> Identity()) >> TopK(k=1),
        lambda: RandomK(k=3) >> (Identity() >> ErrorFeedback(TopK(k=1))),
    ],
)
def test_a_memory_stands_outermost(chain: Any) -> None:
    with pytest.raises(ValueError, match=r"a memory must stand outermost, .* write ErrorFeedback"):
        chain()
