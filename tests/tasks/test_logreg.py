"""The optimum of the convex task against scipy, closed forms and the number that others measured."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from thriftgrad.tasks.logreg import logreg, minimise


def objective(w, features, signs, l2):
    margins = signs * (features @ w)
    value = np.logaddexp(0, -margins).mean() + l2 / 2 * w @ w
    gradient = -features.T @ (signs / (1 + np.exp(margins))) / len(signs) + l2 * w
    return value, gradient


def lbfgs(features, signs, l2):
    options = {"ftol": 0, "gtol": 1e-12, "maxiter": 10_000, "maxcor": 30}
    return minimize(
        objective, np.zeros(features.shape[1]), (features, signs, l2), "L-BFGS-B", jac=True, options=options
    )


@pytest.fixture(scope="module")
def problem():
    from sklearn.datasets import load_breast_cancer

    raw, labels = load_breast_cancer(return_X_y=True)
    return (raw - raw.mean(axis=0)) / raw.std(axis=0), 2.0 * labels - 1


def test_the_optimum_of_the_task_is_the_known_one_and_lbfgs_agrees(problem):
    features, signs = problem
    weights, optimum = minimise(features, signs, 1 / 569)
    assert optimum == pytest.approx(0.066569008008947, abs=1e-14)
    found = lbfgs(features, signs, 1 / 569)
    assert abs(found.fun - optimum) < 1e-12
    assert np.abs(found.x - weights).max() < 1e-5
    assert np.abs(objective(weights, features, signs, 1 / 569)[1]).max() < 1e-12


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 6), st.floats(1e-3, 10), st.floats(0.1, 30), st.integers(0, 2**32))
def test_newton_finds_the_minimum_of_any_such_problem(n, d, l2, scale, seed):
    generator = np.random.default_rng(seed)
    features, signs = scale * generator.normal(size=(n, d)), generator.choice([-1.0, 1.0], size=n)
    weights, optimum = minimise(features, signs, l2)
    value, gradient = objective(weights, features, signs, l2)
    assert value == pytest.approx(optimum, rel=1e-12)
    # f is l2-strongly convex: f(w) - f* <= |gradient|^2 / (2 l2).
    assert gradient @ gradient / (2 * l2) < 1e-12 * max(1, scale**2)


def test_newton_refuses_what_has_no_optimum():
    features, signs = np.ones((2, 1)), np.ones(2)
    with pytest.raises(ValueError, match=r"The L2 weight must be positive for a unique optimum, not 0\."):
        minimise(features, signs, 0)
    message = r"Newton's method did not converge in 100 steps with the L2 weight 1\.0; are the features finite\?"
    with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
        minimise(features * np.nan, signs, 1.0)


def test_every_seed_starts_at_zero_where_f_is_log_2():
    task = logreg()
    assert torch.equal(task.build(0).weight, torch.zeros(1, 30))
    assert task.evaluate(task.build(3)) == pytest.approx(math.log(2) - 0.066569008008947, abs=1e-14)


def test_quality_is_the_distance_to_the_optimum_in_float64(problem):
    task = logreg()
    weights, _ = minimise(*problem, 1 / 569)
    model = task.build(0)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weights)[None])
    assert 0 <= task.evaluate(model) < 1e-13  # what rounding the weights to float32 costs
    moved = weights + np.linspace(-0.1, 0.1, 30)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(moved)[None])
    value, _ = objective(moved.astype(np.float32).astype(np.float64), *problem, 1 / 569)
    assert task.evaluate(model) == pytest.approx(value - 0.066569008008947, abs=1e-12)


def test_training_loss_is_the_objective_with_its_l2_term(problem):
    task = logreg()
    model = task.build(0)
    nn.init.constant_(model.weight, 0.1)
    whole = task.draw(np.arange(569), np.random.default_rng())
    value, gradient = objective(np.full(30, np.float32(0.1), dtype=np.float64), *problem, 1 / 569)
    loss = task.loss(model, whole)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert np.abs(model.weight.grad[0].numpy() - gradient).max() < 1e-6
