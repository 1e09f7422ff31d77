"""What every compressor promises about shapes, types, keys and numbers at the edge."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import zoo
from samples import compressed, same_bits, vector
from thriftgrad import Key, RandomBlock, RandomK, TensorSpec
from thriftgrad.core import Compressor, LinearCompressor
from thriftgrad.core.tree import leaves

SHAPES = [(), (1,), (0,), (7,), (33,), (3, 0, 2), (3, 5, 2), (2, 65)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EVERY = pytest.mark.parametrize("compressor", zoo.COMPRESSORS, ids=repr)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shape_and_type_are_kept_and_the_layout_is_right(compressor: Compressor[Any, Any], dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = normal(*shape, dtype=dtype)
        spec = TensorSpec.of(x)
        payload, _ = compressor.compress(x, compressor.init(spec), Key(1))
        estimate = compressor.decompress(payload)
        assert estimate.shape == x.shape
        assert estimate.dtype == dtype
        layout = compressor.layout(spec)
        assert payload.layout == layout
        tensors = list(leaves((payload.carrier, payload.side)))
        announced = list(leaves((layout.carrier, layout.side)))
        for tensor, each in zip(tensors, announced, strict=True):
            assert tensor.dtype == each.dtype
            assert tensor.shape == each.shape or (each.variable and tensor.dim() == 1 and len(tensor) <= each.numel)


@EVERY
def test_input_is_untouched(compressor: Compressor[Any, Any]) -> None:
    x = normal(40)
    before, version = x.clone(), x._version
    payload, state = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(1))
    compressor.decompress(payload)
    compressor.compress(x, state, Key(2))
    assert torch.equal(x, before)
    assert x._version == version


@EVERY
def test_history_of_autograd_ends_here(compressor: Compressor[Any, Any]) -> None:
    x = normal(40).requires_grad_()
    payload, state = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(1))
    tensors = [*leaves((payload.carrier, payload.side, state)), compressor.decompress(payload)]
    assert not any(tensor.requires_grad for tensor in tensors if isinstance(tensor, torch.Tensor))


@EVERY
def test_a_view_compresses_like_its_copy(compressor: Compressor[Any, Any]) -> None:
    for view in (normal(6, 9).T, normal(80)[::2], normal(4, 5, 6).transpose(0, 2)[1:]):
        assert not view.is_contiguous()
        assert same_bits(compressed(compressor, view), compressed(compressor, view.contiguous()))


@EVERY
def test_one_key_one_result(compressor: Compressor[Any, Any]) -> None:
    x = vector("gaussian", 200)
    assert same_bits(compressed(compressor, x, Key(5)), compressed(compressor, x, Key(5)))


@pytest.mark.parametrize("compressor", zoo.RANDOM, ids=repr)
def test_another_key_another_result(compressor: Compressor[Any, Any]) -> None:
    if re.search(r"bucket=1\b", repr(compressor)):
        x = vector("gaussian", 5)  # a bucket of one is exact whatever the key
        assert same_bits(compressed(compressor, x, Key(5)), compressed(compressor, x, Key(6)))
        return
    x = vector("gaussian", 200).view(20, 10)  # low rank leaves vectors alone
    assert not torch.equal(compressed(compressor, x, Key(5)), compressed(compressor, x, Key(6)))
    assert not torch.equal(compressed(compressor, x, Key(5).private(0)), compressed(compressor, x, Key(5).private(1)))


@pytest.mark.parametrize("compressor", zoo.DETERMINISTIC, ids=repr)
def test_the_key_is_for_random_ones_alone(compressor: Compressor[Any, Any]) -> None:
    x = vector("gaussian", 200).view(20, 10)
    assert same_bits(compressed(compressor, x, Key(5)), compressed(compressor, x, Key(6)))


@EVERY
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 1e30, -1e30])
def test_finite_at_the_edges(compressor: Compressor[Any, Any], value: float) -> None:
    for x in (torch.full((30,), value), torch.full((1,), value), torch.tensor([1.0, value, 0.0, -value, 1e-3])):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            estimate = compressed(compressor, x.to(dtype))
            assert estimate.isfinite().all()
            assert estimate.abs().max() <= 40 * x.abs().max() or not claims_something(compressor)


def claims_something(compressor: Compressor[Any, Any]) -> bool:
    inner = getattr(compressor, "compressor", compressor)
    return compressor.unbiased or inner.contraction(5) is not None


@EVERY
def test_zero_maps_to_zero_where_the_claims_say_so(compressor: Compressor[Any, Any]) -> None:
    estimate = compressed(compressor, torch.zeros(30))
    if claims_something(compressor):
        assert (estimate == 0).all()
    else:
        assert estimate.abs().unique().tolist() in ([0.0], [1.0])


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_comes_out_so(compressor: Compressor[Any, Any], bad: float) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = normal(30, dtype=dtype)
        x[17] = bad
        estimate = compressed(compressor, x)
        if not drawn_at_random(compressor) or estimate[17] != 0:
            assert not estimate.isfinite().all()
        assert not compressed(compressor, torch.full_like(x, bad)).isfinite().all()


def drawn_at_random(compressor: Compressor[Any, Any]) -> bool:
    """RandomK and RandomBlock look at no coordinate but those they draw, so one bad coordinate may stay behind. The
    aggregators therefore replace all of a worker's tensors by NaN as soon as one coordinate is bad."""
    return any(isinstance(part, RandomK | RandomBlock) for part in zoo.parts(compressor))


@EVERY
def test_integers_are_refused(compressor: Compressor[Any, Any]) -> None:
    x = torch.arange(10)
    if compressor.lossless:
        assert torch.equal(compressed(compressor, x), x)
        return
    with pytest.raises(TypeError, match=r"floating-point tensors, got torch.int64: convert it with .float"):
        compressor.compress(x, compressor.init(TensorSpec.of(x.float())), Key(0))


@EVERY
def test_an_empty_tensor_costs_at_most_a_seed(compressor: Compressor[Any, Any]) -> None:
    x = torch.empty(0)
    payload, _ = compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(0))
    assert payload.nbytes in (0, 8, 16) or (payload.layout.variable and payload.nbytes <= 32)
    assert torch.equal(compressor.decompress(payload), x)


def test_linearity_is_a_type() -> None:
    linear = {repr(each) for each in zoo.LINEAR}
    assert linear == {
        "Identity()",
        "Cast(to='bf16')",
        "Cast(to='fp16')",
        "Cast(to='fp16') >> Identity()",
        "RandomK(fraction=0.25)",
        "RandomK(k=3)",
        "RandomK(fraction=0.25, rescale=False)",
        "Shrink(compressor=RandomK(fraction=0.25))",
        "RandomK(fraction=0.25) >> Cast(to='bf16')",
        "Shrink(compressor=RandomK(fraction=0.25)) >> Cast(to='bf16')",
        "RandomK(fraction=0.5, rescale=False) >> RandomK(fraction=0.5, rescale=False)",
        "Tile()",
        "DCT()",
        "RandomBlock(fraction=0.25)",
        "RandomBlock(k=60) >> Cast(to='bf16')",
        "ErrorFeedback(compressor=RandomBlock(fraction=0.25))",
        "UnbiasedLowRank(rank=1)",
        "RandomK(rank=1)",
        "RandomBlock(rank=1)",
        "ErrorFeedback(compressor=RandomK(rescale=False, rank=1))",
        "ErrorFeedback(compressor=Cast(to='bf16'))",
        "ErrorFeedback(compressor=RandomK(fraction=0.25, rescale=False))",
    }


@pytest.mark.parametrize("compressor", zoo.LINEAR, ids=repr)
def test_the_sum_of_carriers_decompresses_to_the_sum(compressor: LinearCompressor[Any, Any]) -> None:
    from thriftgrad import Payload

    xs = [vector("gaussian", 60, seed).round(decimals=1).view(10, 6) for seed in range(3)]
    payloads = [compressor.compress(x, compressor.init(TensorSpec.of(x)), Key(4))[0] for x in xs]
    first = payloads[0]
    for other in payloads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(leaves(first.side), leaves(other.side), strict=True))
    total = sum((p.carrier.double() for p in payloads), torch.zeros(())).to(first.carrier.dtype)
    of_sum = compressor.decompress(Payload(total, first.side, first.layout))
    sum_of = sum((compressor.decompress(p).double() for p in payloads), torch.zeros(()))
    precision = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[first.carrier.dtype]
    torch.testing.assert_close(of_sum.double(), sum_of, rtol=precision, atol=1e-6)
