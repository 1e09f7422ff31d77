"""The task "softmax": a convex problem of several hundred parameters, in one tensor."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from thriftgrad.tasks.classification import cross_entropy
from thriftgrad.tasks.digits import digits
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Batch, Task


class Softmax(nn.Module):
    """Logits W (x, 1) of images x of 8 x 8: the biases are the weights of a constant pixel, so W is one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 65))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(F.pad(images.flatten(1), (0, 1), value=1.0), self.weight)


def softmax() -> Task:
    """Softmax regression on ``digits``: f(W) = mean cross-entropy + |W|^2 / (2 n), strongly convex. Starts at zero.

    Basu et al., Qsparse-local-SGD, 2019, arXiv:1906.02367, do the same on MNIST, where W has 7,850 entries.
    """
    base = digits()
    l2 = 1 / base.samples

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        (weight,) = model.parameters()
        return cross_entropy(model, batch) + l2 / 2 * weight.square().sum()

    return replace(
        base,
        name="softmax",
        description=DESCRIPTIONS["softmax"],
        target=0.9,
        batch_size=8,
        steps=400,
        learning_rate=0.3,
        build=lambda _: Softmax(),
        loss=loss,
    )
