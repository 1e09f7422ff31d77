"""The embedded tasks: their data, their provenance, and that a short training improves each."""

import hashlib
import math
import platform
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from thriftgrad import tasks
from thriftgrad.tasks.digits import digits, digits18, digits32
from thriftgrad.tasks.language import Windows, bits_per_token
from thriftgrad.tasks.lookup import DataError
from thriftgrad.tasks.models import GPT
from thriftgrad.tasks.task import Task
from thriftgrad.tasks.text import lstm, prose, text


def train(task: Task, steps: int, world: int = 2) -> torch.nn.Module:
    """Plain SGD with momentum on the mean gradient over `world` workers."""
    model = task.build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate, momentum=0.9)
    streams = [task.batches(0, rank, world) for rank in range(world)]
    for _ in range(steps):
        optimizer.zero_grad()
        for stream in streams:
            (task.loss(model, next(stream)) / world).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module", params=tuple(tasks.EMBEDDED))
def task(request):
    return tasks.load(request.param)


# Steps of two workers, and the quality that they reach with a margin.
SHORT = {
    "digits": (60, 0.9),
    "digits18": (40, 0.6),
    "digits32": (60, 0.6),
    "logreg": (100, 0.006),
    "lstm": (60, 5.2),
    "softmax": (60, 0.85),
    "text": (30, 5.5),
}


def test_a_short_training_improves_the_quality(task):
    steps, goal = SHORT[task.name]
    before, after = task.evaluate(task.build(0)), task.evaluate(train(task, steps))
    assert (before < goal <= after) if task.higher_is_better else (after <= goal < before)


def test_loss_is_differentiable_and_evaluate_leaves_the_model_alone(task):
    model = task.build(0)
    task.loss(model, next(task.batches(0, 0, 1))).backward()
    kept = [(parameter.clone(), parameter.grad.clone()) for parameter in model.parameters()]
    quality = task.evaluate(model)
    assert isinstance(quality, float)
    assert quality == task.evaluate(model)
    assert model.training
    for parameter, (value, gradient) in zip(model.parameters(), kept, strict=True):
        assert torch.equal(parameter, value)
        assert torch.equal(parameter.grad, gradient)
        assert gradient.abs().max() > 0


def test_a_wrapped_model_is_trained_and_evaluated_alike(task):
    class Wrapped(torch.nn.Module):  # what DistributedDataParallel looks like from outside
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    model, batch = task.build(0), next(task.batches(0, 0, 1))
    assert task.evaluate(Wrapped(model)) == task.evaluate(model)
    assert torch.equal(task.loss(Wrapped(model), batch), task.loss(model, batch))


def test_loss_is_a_mean_so_equal_batches_average(task):
    if task.name == "digits":
        a, b = islice(task.batches(0, 0, 1), 2)
    else:
        a, b = next(task.batches(0, 0, 2)), next(task.batches(0, 1, 2))
    model = task.build(0).eval()  # in training, batch norm looks across the samples of a batch
    both = tuple(torch.cat(parts) for parts in zip(a, b, strict=True))
    mean = (task.loss(model, a) + task.loss(model, b)) / 2
    torch.testing.assert_close(task.loss(model, both), mean)


def test_the_same_task_loads_twice_alike(task):
    again = tasks.load(task.name)
    assert again.provenance == task.provenance
    for ours, theirs in zip(next(task.batches(7, 1, 3)), next(again.batches(7, 1, 3)), strict=True):
        assert torch.equal(ours, theirs)


def test_defaults_are_consistent(task):
    assert task.description == tasks.DESCRIPTIONS[task.name]
    parameters = sum(parameter.numel() for parameter in task.build(0).parameters())
    assert f"{parameters:,} parameters".replace(",", " ") in task.description
    assert task.steps % task.evaluate_every == 0
    assert len(task.provenance["sha256"]) == 64
    assert task.batch_size == len(next(task.batches(0, 0, 1))[0])


def test_digits_split_is_stratified_disjoint_and_scaled():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    task = digits()
    assert task.samples == 1437
    train_images, train_labels = task.draw(np.arange(1437), np.random.default_rng())
    assert train_images.shape == (1437, 1, 8, 8)
    assert (train_images.min(), train_images.max()) == (0, 1)
    shares = np.bincount(train_labels, minlength=10) / np.bincount(labels)
    assert np.abs(shares - 1437 / 1797).max() < 0.005
    # Every image of the set is a training image or not; the 360 that are not are the test set.
    rows = {image.tobytes() for image in (pixels / 16).astype(np.float32)}
    assert {image.numpy().tobytes() for image in train_images} < rows


def test_digits32_is_digits_with_zeros_around():
    small, large, everything = digits(), digits32(), np.arange(1437)
    images, labels = small.draw(everything, np.random.default_rng())
    shown, same_labels = large.draw(everything, np.random.default_rng())
    assert shown.shape == (1437, 3, 32, 32)
    assert torch.equal(labels, same_labels)
    for channel in shown.unbind(1):
        assert torch.equal(channel[:, None, 12:20, 12:20], images)
        assert channel.sum() == images.sum()  # pixels are not negative: nothing outside
    assert small.provenance["sha256"] == large.provenance["sha256"]


def test_digits18_is_digits32_for_another_network():
    other, same, everything = digits18(), digits32(), np.arange(1437)
    for ours, theirs in zip(*(each.draw(everything, np.random.default_rng()) for each in (other, same)), strict=True):
        assert torch.equal(ours, theirs)
    assert len(list(other.build(0).parameters())) == 62
    assert other.provenance == same.provenance


def test_digits_accuracy_counts_right_answers_on_the_test_images():
    class Constant(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.logits = torch.nn.Parameter(F.one_hot(torch.tensor(answer), 10).float())

        def forward(self, images):
            assert len(images) == 360
            return self.logits.expand(len(images), 10)

    shares = [digits().evaluate(Constant(answer)) for answer in range(3)]
    assert all(share == pytest.approx(0.1, abs=0.006) for share in shares)  # the test set is stratified


def test_text_is_the_prose_of_this_python():
    task = text()
    assert task.provenance["python"] == platform.python_version()
    assert task.provenance["sha256"] == hashlib.sha256(prose()).hexdigest()
    assert prose().startswith(b'The "assert" statement')
    inputs, targets = task.draw(np.arange(task.samples), np.random.default_rng())
    cut = len(prose()) * 9 // 10
    assert bytes(inputs.flatten().tolist()) == prose()[: task.samples * 64]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert cut - 64 <= task.samples * 64 < cut  # the last tenth is not trained on


def test_lstm_reads_the_text_in_windows_of_32_bytes():
    task = lstm()
    assert task.provenance == text().provenance
    inputs, targets = task.draw(np.arange(task.samples), np.random.default_rng())
    assert inputs.shape == (task.samples, 32)
    assert bytes(inputs.flatten().tolist()) == prose()[: task.samples * 32]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    cut = len(prose()) * 9 // 10
    assert cut - 32 <= task.samples * 32 < cut


def test_text_needs_a_complete_python(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(
        DataError, match=r"This Python has no pydoc_data.topics, .*; install Python's complete standard"
    ):
        text()


def test_bits_of_a_model_that_knows_nothing():
    model = GPT(vocabulary=8, context=4, width=4, depth=1, heads=1)
    torch.nn.init.zeros_(model.output.weight)
    windows = Windows([np.arange(8, dtype=np.uint8)], context=4)
    assert bits_per_token(model, windows.sample(1)) == pytest.approx(3)


def test_windows_of_several_streams_never_straddle_them():
    streams = [np.arange(7, dtype=np.uint8), np.arange(3, dtype=np.uint8), np.arange(100, 109, dtype=np.uint8)]
    windows = Windows(streams, context=3)
    assert len(windows) == 2 + 0 + 2
    inputs, targets = windows.batch(np.array([3, 0, 1, 2]))
    assert inputs.tolist() == [[103, 104, 105], [0, 1, 2], [3, 4, 5], [100, 101, 102]]
    assert torch.equal(targets, inputs + 1)
    assert windows.sample(10)[0].shape == (4, 3)
    assert windows.sample(2)[0].tolist() == [[0, 1, 2], [103, 104, 105]]


def test_log2_of_the_vocabulary_is_where_text_starts():
    assert text().evaluate(text().build(0)) == pytest.approx(math.log2(256), abs=0.8)
