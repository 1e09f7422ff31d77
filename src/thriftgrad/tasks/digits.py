"""The task "digits": handwritten digits and a small convolutional network."""

import hashlib
from functools import partial

import numpy as np
import torch

from thriftgrad.tasks.classification import accuracy, cross_entropy
from thriftgrad.tasks.models import SmallCNN, initialised
from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Task


def digits() -> Task:
    """Handwritten digits, as scikit-learn ships them: 1 437 training and 360 test images of 8 x 8 pixels in [0, 1]."""
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    targets = torch.from_numpy(labels.astype(np.int64))
    # The split is part of the task: it is the same for every seed, and holds each digit in the same share.
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    train_images, train_labels = images[train], targets[train]
    test_set = (images[test], targets[test])

    return Task(
        name="digits",
        description=DESCRIPTIONS["digits"],
        quality="test accuracy",
        higher_is_better=True,
        target=0.95,
        batch_size=32,
        steps=200,
        learning_rate=0.1,
        evaluate_every=10,
        provenance={
            "source": "Optical Recognition of Handwritten Digits (UCI), sklearn.datasets.load_digits",
            "sha256": hashlib.sha256(pixels.tobytes() + targets.numpy().tobytes()).hexdigest(),
            "licence": "BSD-3-Clause, with scikit-learn",
            "scikit-learn": sklearn.__version__,
        },
        samples=len(train),
        build=partial(initialised, SmallCNN),
        draw=lambda indices, _: (train_images[indices], train_labels[indices]),
        loss=cross_entropy,
        evaluate=lambda model: accuracy(model, [test_set]),
    )
