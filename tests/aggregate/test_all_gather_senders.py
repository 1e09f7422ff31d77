"""The mean over those who sent a coordinate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from samples import estimates, gradients, same_bits, specs, step
from thriftgrad import QSGD, AllGather, ErrorFeedback, Identity, Key, TensorSpec, TopK


def test_coordinate_by_coordinate() -> None:
    xs = [torch.tensor([4.0, 0.0, 1.0, 0.0]), torch.tensor([2.0, 3.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, -1.0, 0.0])]
    senders = AllGather(Identity(), mean="senders")
    assert estimates(senders, [[x] for x in xs])[1][0].tolist() == [3.0, 3.0, 0.0, 0.0]
    assert estimates(AllGather(Identity()), [[x] for x in xs])[1][0].tolist() == [3.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_against_numpy(dtype: torch.dtype) -> None:
    tensors = gradients(5, dtype=dtype)
    means = estimates(AllGather(TopK(fraction=0.3), mean="senders"), tensors)[0]
    for at, mean in enumerate(means):
        assert mean.dtype == dtype
        kept = np.zeros((5, tensors[0][at].numel()))
        for worker, mine in enumerate(tensors):
            flat = mine[at].reshape(-1).double().numpy()
            chosen = np.argsort(-np.abs(flat), kind="stable")[: -(-3 * len(flat) // 10)]
            kept[worker, chosen] = flat[chosen]
        expected = kept.sum(0) / np.maximum((kept != 0).sum(0), 1)
        precision = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float64: 1e-15}[dtype]
        np.testing.assert_allclose(mean.reshape(-1).double().numpy(), expected, rtol=precision, atol=precision)


def test_where_everybody_sends_it_is_the_mean() -> None:
    for one, other in zip(
        estimates(AllGather(Identity(), mean="senders"), gradients(3))[0],
        estimates(AllGather(Identity()), gradients(3))[0],
        strict=True,
    ):
        assert same_bits(one, other)


def test_what_one_worker_sends_counts_in_full() -> None:
    """The bias it is documented with: a rare coordinate counts n times as much as in the mean."""
    tensors = [[torch.tensor([1.0, 8.0])], *([[torch.tensor([1.0, 0.0])]] * 3)]
    assert estimates(AllGather(TopK(k=1), mean="senders"), tensors)[0][0].tolist() == [1.0, 8.0]
    assert estimates(AllGather(TopK(k=1)), tensors)[0][0].tolist() == [0.75, 2.0]


def test_memories_are_those_of_the_mean_over_workers() -> None:
    memory = {}
    for mean in ("workers", "senders"):
        method: Any = AllGather(ErrorFeedback(TopK(k=1)), mean=mean)  # type: ignore[arg-type]
        states = [method.init(specs()) for _ in range(2)]
        for i in range(3):
            _, states = step(method, gradients(2, i), states, Key(i))
        memory[mean] = [entry.inner.memory for mine in states for entry in mine]
    assert all(same_bits(a, b) for a, b in zip(memory["workers"], memory["senders"], strict=True))


def test_all_tensors_as_one() -> None:
    method = AllGather(QSGD(bits=2, per_tensor=False), mean="senders")
    means = estimates(method, [[torch.zeros(3), torch.ones(2)], [torch.zeros(3), torch.zeros(2)]])[0]
    assert not means[0].any()
    level = torch.tensor(2.0).sqrt()  # of the one worker that sends anything, and not half of it
    assert all(value in (0.0, float(level)) for value in means[1].tolist())
    assert means[1].any()


def test_no_other_mean() -> None:
    with pytest.raises(ValueError, match='AllGather: mean must be "workers" or "senders", got \'median\''):
        AllGather(Identity(), mean="median")  # type: ignore[arg-type]


def test_a_nan_of_one_worker_is_everybodys() -> None:
    method = AllGather(TopK(k=1), mean="senders")
    states = [method.init([TensorSpec((3,))]) for _ in range(2)]
    bad = [[torch.tensor([0.0, torch.nan, 0.0])], [torch.ones(3)]]
    means, after = step(method, bad, states, Key(0))
    assert all(mine[0].isnan().all() for mine in means)
    assert after[0] is states[0]
