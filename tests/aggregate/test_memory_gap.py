"""What the memory is for: a sparse method without one stops short of the optimum, with one it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from samples import step
from thriftgrad import AllGather, AllReduce, ErrorFeedback, Identity, Key, Sign, TensorSpec, TopK

WORKERS, BATCH, DIMENSION, SAMPLES, STEPS = 4, 4, 30, 800, 200


def final_loss(aggregator: Any) -> float:
    """Logistic regression by SGD on WORKERS shards: the regularised loss over all data after STEPS steps."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, DIMENSION, generator=generator)
    odds = torch.sigmoid(2 * inputs @ torch.randn(DIMENSION, generator=generator))
    labels = (odds > torch.rand(SAMPLES, generator=generator)).float() * 2 - 1
    shards = torch.randperm(SAMPLES, generator=generator).view(WORKERS, -1)
    w, regularisation = torch.zeros(DIMENSION), 1e-3

    def gradient(shard: Tensor) -> Tensor:
        drawn = shard[torch.randint(len(shard), (BATCH,), generator=generator)]
        x, y = inputs[drawn], labels[drawn]
        return -(x * (torch.sigmoid(-y * (x @ w)) * y)[:, None]).mean(0) + regularisation * w

    states = [aggregator.init([TensorSpec((DIMENSION,))]) for _ in range(WORKERS)]
    for i in range(STEPS):
        means, states = step(aggregator, [[gradient(shard)] for shard in shards], states, Key(i))
        w = w - 0.5 / (1 + i / 100) * means[0][0]
    loss = torch.nn.functional.softplus(-labels * (inputs @ w)).mean() + regularisation / 2 * w.square().sum()
    return float(loss)


@pytest.mark.parametrize("compressor", [TopK(k=1), TopK(k=2) >> Sign()], ids=repr)
def test_with_memory_as_good_as_sgd_and_without_far_from_it(compressor: Any) -> None:
    plain = final_loss(AllReduce(Identity()))
    assert final_loss(AllGather(ErrorFeedback(compressor))) == pytest.approx(plain, rel=0.03)
    assert final_loss(AllGather(compressor)) > 1.25 * plain
