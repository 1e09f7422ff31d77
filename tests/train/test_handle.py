"""Which estimates DDP can take as they lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from thriftgrad.train.handle import _laid_out_as

BUCKET = torch.zeros(10)
GRADIENTS = [BUCKET[:6].view(2, 3), BUCKET[6:7], BUCKET[7:].view(3, 1)]


def cut(x: Tensor) -> list[Tensor]:
    return [x[:6].view(2, 3), x[6:7], x[7:10].view(3, 1)]


def test_end_to_end_they_are_the_vector_itself() -> None:
    x = torch.arange(12.0)
    means = cut(x)
    result = _laid_out_as(GRADIENTS, means, BUCKET)
    assert result is not None
    assert result.shape == BUCKET.shape
    assert result.data_ptr() == means[0].data_ptr()
    assert torch.equal(result, torch.cat([mean.reshape(-1) for mean in means]))


X, OTHER = torch.arange(12.0), torch.arange(100.0, 112.0)

NOT = {
    "not where the storage begins": cut(X[2:]),
    "apart": [x.clone() for x in cut(X)],
    "too short a memory": [torch.zeros(2, 3), *cut(X)[1:]],
    "in another order": [X[4:10].view(2, 3), X[3:4], X[:3].view(3, 1)],
    "with a gap": [X[:6].view(2, 3), X[7:8], X[8:11].view(3, 1)],
    "in two memories": [*cut(X)[:2], cut(OTHER)[2]],
    "transposed": [X[:6].view(3, 2).t(), *cut(X)[1:]],
}


@pytest.mark.parametrize("means", NOT.values(), ids=NOT)
def test_otherwise_they_must_be_copied(means: list[Tensor]) -> None:
    assert _laid_out_as(GRADIENTS, means, BUCKET) is None


def test_gradients_that_lie_otherwise_in_the_bucket_are_copied() -> None:
    transposed = [BUCKET[:6].view(3, 2).t(), *GRADIENTS[1:]]
    assert _laid_out_as(transposed, cut(X), BUCKET) is None
