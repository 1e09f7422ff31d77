"""The softmax regression against scikit-learn's, and what makes it one tensor and convex."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from thriftgrad import tasks
from thriftgrad.tasks.softmax import Softmax

TASK = tasks.load("softmax")


def whole():
    return TASK.draw(np.arange(TASK.samples), np.random.default_rng(0))


def test_one_tensor_holds_weights_and_biases_and_every_seed_starts_at_zero():
    ((name, weight),) = TASK.build(3).named_parameters()
    assert (name, weight.shape) == ("weight", (10, 65))
    assert not weight.any()
    model = Softmax()
    with torch.no_grad():
        model.weight[4, 64] = 2.5  # a bias
        model.weight[7, 9] = 1.0  # the pixel of row 1, column 1
    images = torch.rand(3, 1, 8, 8)
    logits = model(images)
    assert torch.equal(logits[:, 4], torch.full((3,), 2.5))
    assert torch.equal(logits[:, 7], images[:, 0, 1, 1])


def test_gradient_descent_comes_to_the_optimum_that_scikit_learn_finds():
    images, labels = whole()
    features = torch.nn.functional.pad(images.flatten(1), (0, 1), value=1.0).double()
    # C = 1 weighs the sum of losses against |W|^2 / 2, which is n f(W); the constant pixel is penalised like others.
    best = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=1000).fit(features, labels)
    model = TASK.build(0)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(best.coef_))
    loss = TASK.loss(model, (images, labels))
    loss.backward()
    assert model.weight.grad.abs().max() < 1e-4
    assert TASK.evaluate(model) > 0.95
    for seed in range(3):
        other = TASK.build(0)
        with torch.no_grad():
            other.weight.copy_(model.weight + 0.05 * torch.randn(10, 65, generator=torch.Generator().manual_seed(seed)))
        gap, distance = TASK.loss(other, (images, labels)) - loss, (other.weight - model.weight).square().sum()
        assert gap > distance / (2 * TASK.samples)  # strong convexity with mu = 1/n
