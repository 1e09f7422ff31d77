"""The training loop against loops written out by hand."""

import math
from copy import deepcopy
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

from lab.toys import FEATURES, looked_on, normed, parameters_of, spied, toy, trained, weights
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
    assert (first.bias, first.symbol_entropy_bits, first.bits_per_coordinate, first.levels) == (None,) * 4


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
        assert at.relative_error == at.bias < 1e-6
        assert (at.variance, at.coordinate_variance, at.bias_floor) == (0, 0, 0)
        assert at.cosine == pytest.approx(1)
        assert (at.symbol_width_bits, at.symbol_entropy_bits, at.bits_per_coordinate) == (None, None, 32)


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
    evaluations = trained(task, Method(AllGather(QSGD(bits=3, bucket=100))), workers=1, steps=150)[1:]
    measured = [at.variance for at in evaluations]

    gradient = FEATURES.mean(0).double().numpy()
    norms = np.linalg.norm(gradient.reshape(3, 100), axis=1).repeat(100)
    levels = np.abs(gradient) / norms * 3  # bits=3: s = 3
    p = levels % 1
    expected = (norms**2 / 9 * p * (1 - p)).sum() / (gradient**2).sum()
    deviation = np.std(measured) / math.sqrt(len(measured))
    assert abs(fmean(measured) - expected) < 5 * deviation
    assert deviation < 0.05 * expected
    length = (gradient**2).sum()
    assert [at.coordinate_variance for at in evaluations] == pytest.approx([v * length / 300 for v in measured])


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


def test_symbols_bits_and_levels_of_an_adapted_quantiser():
    method = parse("AllGather(ALQ(bits=3, bucket=100, update_at=(0, 3), update_every=None))")
    evaluations = trained(toy(), Method(method), workers=2, steps=5)
    assert [at.levels.version for at in evaluations] == [1, 2, 2, 2, 3, 3]
    assert {at.levels.tensor for at in evaluations} == {"weight"}
    assert evaluations[1].levels != evaluations[0].levels
    for at in evaluations[1:]:
        assert at.symbol_width_bits == pytest.approx(8 * math.ceil(300 * 3 / 8) / 300)
        assert 0 < at.symbol_entropy_bits < at.symbol_width_bits
    # A header, three scales, the symbols; and where levels are agreed on, a peak and the counts.
    plain = 8 * (20 + 3 * 4 + math.ceil(300 * 3 / 8)) / 300
    bits = [at.bits_per_coordinate for at in evaluations[1:]]
    assert [bits[1], bits[2], bits[4]] == pytest.approx([plain] * 3)
    assert bits[0] == bits[3] > plain + 100


def test_bits_are_a_mean_since_the_evaluation_before():
    method = Method(parse("AllGather(ALQ(bits=3, bucket=100, update_at=(1,), update_every=None))"))
    each = [at.bits_per_coordinate for at in trained(toy(), method, steps=5)]
    seldom = [at.bits_per_coordinate for at in trained(toy(), method, steps=5, evaluate_every=3)]
    assert seldom[1:] == pytest.approx([fmean(each[1:4]), fmean(each[4:])])


ONLOOKERS = [parse(text) for text in ("qsgd(bits=3)", "top_k(fraction=0.02)", "sgd", "sign_sgd")]


def test_plain_sgd_trains_whoever_looks_on():
    alone, seen_alone = spied(DIGITS, parameters_of)
    expected = trained(alone, recipes.sgd(), steps=4)
    task, seen = spied(DIGITS, parameters_of)
    for evaluations in looked_on(task, ONLOOKERS, steps=4):
        assert [(at.step, at.quality, at.loss, at.samples) for at in evaluations] == [
            (at.step, at.quality, at.loss, at.samples) for at in expected
        ]
    assert len(seen) == len(seen_alone)  # evaluated once, for all
    assert all(torch.equal(a, b) for a, b in zip(seen, seen_alone, strict=True))


def test_onlookers_are_measured_on_the_same_gradients_whoever_else_looks_on():
    together = looked_on(toy(), ONLOOKERS, steps=3)
    for i, method in enumerate(ONLOOKERS):
        (alone,) = looked_on(toy(), [method], steps=3)
        for a, b in zip(alone, together[i], strict=True):
            assert (a.relative_error, a.variance, a.bias, a.cosine) == (b.relative_error, b.variance, b.bias, b.cosine)
            assert (a.up_bytes, a.symbol_entropy_bits) == (b.up_bytes, b.symbol_entropy_bits)


def test_on_a_gradient_that_does_not_depend_on_the_model_both_protocols_measure_the_same():
    method = parse("Method(AllGather(ErrorFeedback(TopK(k=9) >> Shrink(QSGD(bits=3)))))")
    own = trained(toy(), method, steps=4)
    (looked,) = looked_on(toy(), [method], steps=4)
    assert own[-1].variance > 0
    for a, b in zip(own, looked, strict=True):
        assert (a.relative_error, a.variance, a.bias_floor, a.bits_per_coordinate) == (
            b.relative_error,
            b.variance,
            b.bias_floor,
            b.bits_per_coordinate,
        )


def test_an_onlookers_memory_advances():
    """Top-1 of a constant gradient with feedback: what was held back is sent later, so the estimate changes."""
    method = Method(parse("AllGather(ErrorFeedback(TopK(k=1)))"))
    (evaluations,) = looked_on(toy(batch_size=64), [method], workers=1, steps=3)
    gradient = FEATURES.mean(0).double()
    memory = torch.zeros_like(gradient)
    for at in evaluations[1:]:
        memory = memory + gradient
        sent = torch.zeros_like(memory)
        sent[memory.abs().argmax()] = memory[memory.abs().argmax()]
        memory = memory - sent
        assert at.relative_error == pytest.approx(float((sent - gradient).norm() / gradient.norm()), rel=1e-5)


def test_onlookers_pay_their_own_bytes_and_not_for_being_measured():
    for method, evaluations in zip(ONLOOKERS, looked_on(toy(), ONLOOKERS, steps=2), strict=True):
        assert [at.up_bytes for at in evaluations] == [at.up_bytes for at in trained(toy(), method, steps=2)]


def test_all_onlookers_end_where_plain_sgd_diverges():
    for evaluations in looked_on(toy(), ONLOOKERS, steps=9, learning_rate=3e38, evaluate_every=4):
        assert (evaluations[-1].step, evaluations[-1].quality, evaluations[-1].bias) == (2, None, None)
