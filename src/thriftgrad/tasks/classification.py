"""Loss and accuracy of image classifiers."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from thriftgrad.tasks.task import Batch, device_of, evaluation


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of images float32[batch, c, h, w] with labels int64[batch]."""
    device = device_of(model)
    images, labels = batch
    return F.cross_entropy(model(images.to(device)), labels.to(device))


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The share of images whose largest logit is that of their label, between 0 and 1."""
    device = device_of(model)
    right = total = 0
    with evaluation(model):
        for images, labels in batches:
            predictions = model(images.to(device)).argmax(dim=1)
            right += int((predictions == labels.to(device)).sum())
            total += len(labels)
    return right / total
