"""The tasks "digits", "digits32" and "digits18": handwritten digits, with a small CNN and two residual networks."""

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from thriftgrad.tasks.classification import accuracy, cross_entropy
from thriftgrad.tasks.models import SmallCNN, cifar_resnet, initialised, resnet18
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Task


def digits() -> Task:
    """Handwritten digits, as scikit-learn ships them: 1 437 training and 360 test images of 8 x 8 pixels in [0, 1]."""
    return _on_digits("digits", SmallCNN, lambda images: images, batch_size=32, learning_rate=0.1)


def digits32() -> Task:
    """The same digits and the same split, in 32 x 32 pixels, and the ResNet-8 that papers train on CIFAR-10.

    A worker's batch is half that of ``digits``, because an image costs about thirty times as much.
    """
    return _on_digits("digits32", partial(cifar_resnet, 8), padded, batch_size=16, learning_rate=0.05)


def digits18() -> Task:
    """``digits32`` with the ResNet-18 that PowerSGD's paper trains on CIFAR-10, an eighth as wide: 62 tensors."""
    return _on_digits("digits18", partial(resnet18, width=8), padded, batch_size=8, learning_rate=0.03)


def padded(images: Tensor) -> Tensor:
    """float32[n, 1, 8, 8] to float32[n, 3, 32, 32]: zeros around the image, and three equal channels."""
    return F.pad(images, (12, 12, 12, 12)).expand(-1, 3, -1, -1)


def _on_digits(
    name: str,
    network: Callable[[], nn.Module],
    shown: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    learning_rate: float,
) -> Task:
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    targets = torch.from_numpy(labels.astype(np.int64))
    # The split is part of the task: it is the same for every seed, and holds each digit in the same share.
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    train_images, train_labels = images[train], targets[train]
    test_set = (shown(images[test]), targets[test])

    return Task(
        name=name,
        description=DESCRIPTIONS[name],
        quality="test accuracy",
        higher_is_better=True,
        target=0.95,
        batch_size=batch_size,
        steps=200,
        learning_rate=learning_rate,
        evaluate_every=10,
        provenance={
            "source": "Optical Recognition of Handwritten Digits (UCI), sklearn.datasets.load_digits",
            "sha256": hashlib.sha256(pixels.tobytes() + targets.numpy().tobytes()).hexdigest(),
            "licence": "BSD-3-Clause, with scikit-learn",
            "scikit-learn": sklearn.__version__,
        },
        samples=len(train),
        build=partial(initialised, network),
        draw=lambda indices, _: (shown(train_images[indices]), train_labels[indices]),
        loss=cross_entropy,
        evaluate=lambda model: accuracy(model, [test_set]),
    )
