"""The task "logreg": a convex problem whose optimum is known, so the quality is the distance to it."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from thriftgrad.tasks.names import DESCRIPTIONS
from thriftgrad.tasks.task import Batch, Task, device_of, evaluation

Float64 = NDArray[np.float64]


def minimise(features: Float64, signs: Float64, l2: float) -> tuple[Float64, float]:
    """The minimiser and the minimum of f(w) = mean log(1 + exp(-s x.w)) + l2/2 |w|^2, by damped Newton in float64.

    Args:
        features: x, float64[n, d].
        signs: s, float64[n], each -1 or +1.
        l2: positive, so f is strongly convex and the minimum is unique.

    Raises:
        ValueError: `l2` is not positive, or no optimum was found in 100 steps.

    Example:
        >>> w, f = minimise(np.array([[1.0], [1.0]]), np.array([1.0, -1.0]), l2=1.0)
        >>> float(w[0]), round(f, 6)       # the two samples cancel: w = 0 and f = log 2
        (0.0, 0.693147)
    """
    if not l2 > 0:
        raise ValueError(f"The L2 weight must be positive for a unique optimum, not {l2}.")

    def f(w: Float64) -> float:
        return float(np.logaddexp(0, -signs * (features @ w)).mean() + l2 / 2 * (w @ w))

    n, d = features.shape
    w = np.zeros(d)
    for _ in range(100):
        wrong = np.exp(-np.logaddexp(0, signs * (features @ w)))  # the probability of the other class
        gradient = -features.T @ (signs * wrong) / n + l2 * w
        hessian = (features.T * (wrong * (1 - wrong))) @ features / n + l2 * np.eye(d)
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)  # twice the decrease that the quadratic model promises
        if decrement < 1e-24:
            return w, f(w)
        damping, rounding = 1.0, 1e-14 * f(w)  # near the optimum float64 cannot tell that the whole step is right
        while f(w - damping * step) > f(w) - damping * decrement / 4 + rounding:
            damping /= 2
        w = w - damping * step
    raise ValueError(f"Newton's method did not converge in 100 steps with the L2 weight {l2}; are the features finite?")


def logreg() -> Task:
    """Breast cancer, standardised, without a bias; l2 = 1/n. Every seed starts at zero, where f = log 2."""
    import sklearn
    from sklearn.datasets import load_breast_cancer

    measured, labels = load_breast_cancer(return_X_y=True)
    standardised = (measured - measured.mean(axis=0)) / measured.std(axis=0)
    signs = 2.0 * labels - 1.0
    n, d = standardised.shape
    l2 = 1 / n
    _, optimum = minimise(standardised, signs, l2)
    problem64 = (torch.from_numpy(standardised), torch.from_numpy(signs))
    features, targets = (part.float() for part in problem64)

    def objective(margins: Tensor, weights: Tensor) -> Tensor:
        value: Tensor = F.softplus(-margins).mean() + l2 / 2 * weights.square().sum()
        return value

    def build(seed: int) -> nn.Module:
        model = nn.Linear(d, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, s = (part.to(device_of(model)) for part in batch)
        (weights,) = model.parameters()
        return objective(s * model(x).squeeze(1), weights)

    def evaluate(model: nn.Module) -> float:
        x, s = problem64
        with evaluation(model):
            (weights,) = (parameter.double().cpu() for parameter in model.parameters())
            return float(objective(s * (x @ weights[0]), weights)) - optimum

    return Task(
        name="logreg",
        description=DESCRIPTIONS["logreg"],
        quality="f - f*",
        higher_is_better=False,
        target=1e-3,
        batch_size=16,
        steps=400,
        learning_rate=0.1,
        evaluate_every=10,
        provenance={
            "source": "Breast Cancer Wisconsin, Diagnostic (UCI), sklearn.datasets.load_breast_cancer",
            "sha256": hashlib.sha256(measured.tobytes() + labels.astype(np.int64).tobytes()).hexdigest(),
            "licence": "BSD-3-Clause, with scikit-learn",
            "scikit-learn": sklearn.__version__,
            "f*": f"{optimum:.15f}",
        },
        samples=n,
        build=build,
        draw=lambda indices, _: (features[indices], targets[indices]),
        loss=loss,
        evaluate=evaluate,
    )
