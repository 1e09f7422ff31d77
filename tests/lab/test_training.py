"""The training loop against loops written out by hand."""

import math
from copy import deepcopy
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

from lab.toys import FEATURES, normed, parameters_of, spied, toy, trained, weights
from thriftgrad import (
    QSGD,
    AllGather,
    Key,
    Ledger,
    LinkModel,
    TensorSpec,
    parse,
    recipes,
    simulate,
)
from thriftgrad.comm import Round
from thriftgrad.lab.training import Meter
from thriftgrad.tasks import load
from thriftgrad.train.method import Method

DIGITS = load("digits")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_sgd_is_torchs_own_on_the_mean_gradient(workers):
    task, seen = spied(DIGITS, parameters_of)
    evaluations = trained(task, recipes.sgd(), workers=workers, steps=5, seed=3, learning_rate=0.05)

    model = DIGITS.build(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = [DIGITS.batches(3, rank, workers) for rank in range(workers)]
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = sum(DIGITS.loss(model, next(source)) for source in batches) / workers
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    torch.testing.assert_close(seen[-1], parameters_of(model), rtol=0, atol=1e-6)
    assert [at.loss for at in evaluations[1:]] == pytest.approx(losses, abs=1e-6)
    assert evaluations[-1].quality == DIGITS.evaluate(model)
    assert evaluations[-1].samples == 5 * 32 * workers


def test_the_first_evaluation_is_of_the_untrained_model():
    first, *_ = trained(DIGITS, recipes.sgd(), steps=1, seed=5)
    assert (first.step, first.samples, first.up_bytes, first.compute_seconds) == (0, 0, 0, 0)
    assert first.quality == DIGITS.evaluate(DIGITS.build(5))
    assert (first.loss, first.relative_error, first.variance) == (None, None, None)


def test_a_loss_is_the_mean_over_the_steps_since_the_last_evaluation():
    each = trained(DIGITS, recipes.sgd(), steps=5)
    seldom = trained(DIGITS, recipes.sgd(), steps=5, evaluate_every=2)
    assert [at.step for at in seldom] == [0, 2, 4, 5]
    assert seldom[1].loss == pytest.approx(fmean([each[1].loss, each[2].loss]))
    assert seldom[3].loss == each[5].loss


@pytest.mark.parametrize("text", ["qsgd", "top_k", "power_sgd", "signum"])
def test_looking_does_not_change_the_trajectory(text):
    final = []
    for evaluate_every in (1, 5):
        task, seen = spied(DIGITS, parameters_of)
        last = trained(task, parse(text), steps=5, evaluate_every=evaluate_every)[-1]
        final.append((seen[-1], last.quality, last.up_bytes, last.relative_error, last.variance))
    assert torch.equal(final[0][0], final[1][0])
    assert final[0][1:] == final[1][1:]


def test_buffers_follow_worker_0():
    task, seen = spied(normed(), lambda model: deepcopy(model.norm.state_dict()))
    trained(task, recipes.sgd(), workers=3, steps=4)
    mean, variance = torch.zeros(300), torch.ones(300)
    mine = task.batches(0, 0, 3)
    for _ in range(4):
        (x,) = next(mine)
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.var(0)
    torch.testing.assert_close(seen[-1]["running_mean"], mean)
    torch.testing.assert_close(seen[-1]["running_var"], variance)
    assert seen[-1]["num_batches_tracked"] == 4


class Counting(nn.Module):
    """A forward pass that depends on a buffer and changes it."""

    def __init__(self):
        super().__init__()
        self.inner = weights()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.inner(x) + self.passes


def test_every_worker_starts_a_step_from_the_same_buffers():
    evaluations = trained(toy(build=lambda seed: Counting()), recipes.sgd(), workers=3, steps=2, learning_rate=1e-9)
    assert [at.loss for at in evaluations[1:]] == pytest.approx([1, 2], abs=1e-6)


def test_seconds_are_one_workers(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("thriftgrad.lab.training.perf_counter", lambda: clock[0])

    def loss(model, batch):
        clock[0] += 1
        return model(batch[0]).mean()

    evaluations = trained(toy(loss=loss), recipes.sgd(), workers=4, steps=3)
    assert [at.compute_seconds for at in evaluations] == [0, 1, 2, 3]


def test_what_comes_before_a_collective_is_encoding_and_what_follows_the_last_is_decoding():
    meter = Meter({})
    for _ in range(2):
        meter(Round("Gather", 2, {}, {0: 1.0, 1: 3.0}))
        meter(Round("Broadcast", 2, {}, {0: 5.0, 1: 0.0}))
        meter(Round("end", 2, {}, {0: 1.0, 1: 2.0}))
    assert (meter.encode_seconds, meter.decode_seconds) == (9.0, 3.0)


def test_bytes_are_those_of_as_many_exchanges_driven_by_hand():
    method = recipes.top_k(fraction=0.02)
    evaluations = trained(DIGITS, method, workers=3, steps=4, evaluate_every=2)
    specs = [TensorSpec.of(p, name) for name, p in DIGITS.build(0).named_parameters()]
    ledger, states = Ledger(), [method.aggregator.init(specs) for _ in range(3)]
    simulate([method.aggregator.aggregate([s.zeros() for s in specs], state, Key(0)) for state in states], ledger)
    for at in evaluations:
        assert (at.up_bytes, at.down_bytes) == (at.step * ledger.up_bytes, at.step * ledger.down_bytes)
        assert at.payload_up_bytes == at.step * ledger.payload_up_bytes
        assert at.payload_down_bytes == at.step * ledger.payload_down_bytes
    assert ledger.up_bytes > 0


def test_link_seconds_are_the_alpha_beta_models():
    links = {"slow": LinkModel(1e6, 2e6, latency_seconds=0.01), "fast": LinkModel(1e9)}
    last = trained(toy(), recipes.sgd(), workers=4, steps=3, links=links)[-1]
    ring = 2 * 3 / 4 * 1200  # bytes a step, each way
    assert last.up_bytes == 3 * ring
    assert last.link_seconds["slow"] == pytest.approx(3 * (6 * 0.01 + 8 * ring / 1e6))
    assert last.link_seconds["fast"] == pytest.approx(3 * 8 * ring / 1e9)


def mean_of_batches(task, workers, seed=0):
    """The toy's gradients of the first step, float64[workers, 300]."""
    return np.stack([next(task.batches(seed, rank, workers))[0].mean(0).double().numpy() for rank in range(workers)])


def test_plain_sgd_has_no_error_and_no_variance():
    for at in trained(DIGITS, recipes.sgd(), workers=3, steps=3)[1:]:
        assert at.relative_error < 1e-6
        assert at.variance == 0


def test_relative_error_is_that_of_the_estimate_against_the_mean():
    task, seed, workers = toy(), 11, 3
    at = trained(task, Method(AllGather(QSGD(bits=3, bucket=100))), workers=workers, steps=1, seed=seed)[-1]

    gradients = mean_of_batches(task, workers, seed)
    aggregator, spec = AllGather(QSGD(bits=3, bucket=100)), TensorSpec((1, 300), name="weight")
    key = Key(seed).fold(0)
    comms = [
        aggregator.aggregate([torch.from_numpy(g).float().view(1, 300)], aggregator.init([spec]), key)
        for g in gradients
    ]
    estimate = simulate(comms)[0][0][0].double().numpy().reshape(-1)
    mean = gradients.mean(0)
    assert at.relative_error == pytest.approx(np.linalg.norm(estimate - mean) / np.linalg.norm(mean), rel=1e-5)
    assert at.relative_error > 0.1


def test_variance_is_the_closed_form_of_stochastic_rounding():
    # One worker owns all 64 samples and a batch is all of them, so the gradient is one vector at every step.
    task = toy(batch_size=64)
    measured = [
        at.variance for at in trained(task, Method(AllGather(QSGD(bits=3, bucket=100))), workers=1, steps=400)[1:]
    ]

    gradient = FEATURES.mean(0).double().numpy()
    norms = np.linalg.norm(gradient.reshape(3, 100), axis=1).repeat(100)
    levels = np.abs(gradient) / norms * 3  # bits=3: s = 3
    p = levels % 1
    expected = (norms**2 / 9 * p * (1 - p)).sum() / (gradient**2).sum()
    deviation = np.std(measured) / math.sqrt(len(measured))
    assert abs(fmean(measured) - expected) < 5 * deviation
    assert deviation < 0.05 * expected


def test_variance_of_the_mean_falls_with_the_workers():
    method = Method(AllGather(QSGD(bits=3, bucket=100)))
    spread = {
        workers: fmean(
            at.variance for at in trained(toy(batch_size=64 // workers), method, workers=workers, steps=60)[1:]
        )
        for workers in (1, 4)
    }
    # The mean gradient is that of all samples both times; each worker's own is longer than it.
    assert spread[1] > 0
    gradients = mean_of_batches(toy(batch_size=16), 4)
    longer = (gradients**2).sum() / 4 / (gradients.mean(0) ** 2).sum()
    assert spread[4] == pytest.approx(spread[1] * longer / 4, rel=0.25)


def test_a_zero_gradient_has_no_relative_error():
    flat = toy(loss=lambda model, batch: 0 * model(batch[0]).mean())
    assert [(at.relative_error, at.variance) for at in trained(flat, recipes.sgd(), steps=2)] == [(None, None)] * 3


def test_a_run_ends_where_a_parameter_is_no_longer_finite():
    evaluations = trained(toy(), recipes.sgd(), steps=9, learning_rate=3e38, evaluate_every=4)
    assert evaluations[-1].step < 9
    assert evaluations[-1].quality is None
    assert all(math.isfinite(at.up_bytes) for at in evaluations)


def test_a_run_ends_where_one_workers_loss_is_no_longer_finite():
    def draw(indices, _):
        return FEATURES[indices], torch.tensor(math.inf if 0 in indices else 0.0)

    task = toy(draw=draw, loss=lambda model, batch: model(batch[0]).mean() + batch[1])
    evaluations = trained(task, recipes.sgd(), steps=3)
    assert (evaluations[-1].step, evaluations[-1].quality, evaluations[-1].loss) == (1, None, None)


def test_a_quality_that_is_no_number_is_none():
    assert trained(toy(evaluate=lambda model: math.nan), recipes.sgd(), steps=1)[0].quality is None


def test_the_second_estimate_leaves_no_trace():
    """The second estimate, for the variance, must leave the memory alone: sent + memory = all that was ever input."""
    method = parse("Method(AllReduce(ErrorFeedback(RandomK(k=30, rescale=False))), momentum=0.0)")
    task, seen = spied(toy(batch_size=64), parameters_of)
    trained(task, method, workers=1, steps=6, learning_rate=1.0)
    moved = -seen[-1]  # the sum of the estimates
    gradient = FEATURES.mean(0)
    # Every coordinate has moved by a whole number of gradients: what was held back came along when it was drawn.
    times = moved / gradient
    torch.testing.assert_close(times, times.round(), rtol=0, atol=1e-3)
    assert times.max() > 1
    assert times.min() >= 0
