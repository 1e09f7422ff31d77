"""Clipping before the exchange: threshold / sqrt(n) for each tensor of each of n workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samples import estimates, gradients, same_bits, specs, step
from thriftgrad import AllGather, AllReduce, Identity, Key, MomentumCorrection, TensorSpec, TopK
from thriftgrad.aggregate import LocalClip, PowerSGD


@pytest.mark.parametrize("world", [1, 4])
def test_each_tensor_of_each_worker_by_itself(world: int) -> None:
    threshold = 6.0
    tensors = gradients(world)
    limit = threshold / world**0.5
    expected = []
    for at in range(len(tensors[0])):
        mine = [x[at].double() for x in tensors]
        expected.append(torch.stack([x * min(1.0, limit / float(x.norm())) for x in mine]).mean(0))
    norms = [float(x.norm()) for mine in tensors for x in mine]
    assert min(norms) < limit < max(norms)  # some are clipped, some are not
    means = estimates(LocalClip(AllReduce(Identity()), threshold), tensors)[0]
    for mean, oracle in zip(means, expected, strict=True):
        torch.testing.assert_close(mean.double(), oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_what_is_short_enough_is_left_as_it_is(dtype: torch.dtype) -> None:
    x = torch.tensor([3.0, 0.0, -4.0], dtype=dtype)
    for threshold in (5.0, 1e30):
        assert same_bits(estimates(LocalClip(AllGather(Identity()), threshold), [[x]])[0][0], x)
    zeros = torch.zeros(3, dtype=dtype)
    assert same_bits(estimates(LocalClip(AllGather(Identity()), 1.0), [[zeros]])[0][0], zeros)
    half = estimates(LocalClip(AllGather(Identity()), 2.5), [[x]])[0][0]
    assert same_bits(half, x / 2)


def test_a_length_whose_square_is_no_float32() -> None:
    mean = estimates(LocalClip(AllReduce(Identity()), 1.0), [[torch.tensor([3e30, -4e30])]])[0][0]
    torch.testing.assert_close(mean, torch.tensor([0.6, -0.8]))


def test_it_clips_before_anything_is_accumulated() -> None:
    method = LocalClip(AllGather(MomentumCorrection(TopK(k=1), momentum=0.5)), 1.0)
    states = [method.init([TensorSpec((2,))])]
    for i in range(2):
        _, states = step(method, [[torch.tensor([30.0, 40.0])]], states, Key(i))
    state = states[0][0].inner
    torch.testing.assert_close(state.velocity, torch.tensor([0.0, 0.8]))  # 0.6 + 0.6 (1 + 0.5) > 0.8: sent and masked
    torch.testing.assert_close(state.memory, torch.tensor([0.0, 0.8]))


def test_the_rest_is_the_aggregators() -> None:
    method = LocalClip(PowerSGD(rank=1), 1.0)
    assert method.uncompressed(specs()) == PowerSGD(rank=1).uncompressed(specs())
    with pytest.warns(UserWarning, match="compresses none of the 1 tensors"):
        method.init([TensorSpec((4,))])
    one, other = (step(each, gradients(2), [each.init(specs())] * 2, Key(0)) for each in (method, PowerSGD(rank=1)))
    assert [type(entry.inner) for entry in one[1][0]] == [type(entry.inner) for entry in other[1][0]]


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_the_threshold_is_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match=rf"LocalClip: threshold must be a positive number, got {threshold}\."):
        LocalClip(AllReduce(Identity()), threshold)


def test_it_needs_an_aggregator() -> None:
    wrong: Any = Identity()
    with pytest.raises(TypeError, match=r"LocalClip needs an aggregator such as .*, got Identity\(\)"):
        LocalClip(wrong, 1.0)
