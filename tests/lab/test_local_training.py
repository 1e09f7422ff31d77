"""Training runs of local methods against loops written out by hand."""

from copy import deepcopy
from statistics import fmean

import pytest
import torch

from lab.toys import normed, parameters_of, spied, toy, trained
from thriftgrad import QSGD, AllGather, AllReduce, ErrorFeedback, Identity, TopK, recipes
from thriftgrad.local import AsyncServer, Average, Every, InnerAdamW, InnerSGD, LocalMethod, OuterSGD, Streaming
from thriftgrad.tasks import load

DIGITS = load("digits")
TOP = ErrorFeedback(TopK(fraction=0.02))


def by_hand(task, method, workers, steps, seed=0, learning_rate=0.05):
    """Local SGD or DiLoCo of the whole model: the shared model after each step, and each step's mean loss."""
    models = [task.build(seed) for _ in range(workers)]
    optimizers = [method.inner.optimizer(model.parameters(), learning_rate) for model in models]
    batches = [task.batches(seed, rank, workers) for rank in range(workers)]
    shared, shown, losses = task.build(seed), [], []
    outer = torch.optim.SGD(
        shared.parameters(),
        lr=getattr(method.outer, "learning_rate", 1.0),
        momentum=getattr(method.outer, "momentum", 0.0),
        nesterov=getattr(method.outer, "nesterov", False),
    )
    for step in range(1, steps + 1):
        told = []
        for model, optimizer, source in zip(models, optimizers, batches, strict=True):
            optimizer.zero_grad()
            loss = task.loss(model, next(source))
            loss.backward()
            optimizer.step()
            told.append(float(loss.detach()))
        losses.append(fmean(told))
        if step % method.schedule.h == 0:
            for i, p in enumerate(shared.parameters()):
                p.grad = p.detach() - sum(list(model.parameters())[i].detach() for model in models) / workers
            outer.step()
            for model in models:
                model.load_state_dict(shared.state_dict())
        shown.append(parameters_of(shared).clone())
    return shown, losses


@pytest.mark.parametrize(
    "method",
    [
        LocalMethod(AllReduce(Identity()), Every(3), InnerSGD(0.9)),
        LocalMethod(AllGather(Identity()), Every(2), InnerAdamW(weight_decay=0.1), OuterSGD(0.7, 0.9)),
    ],
    ids=["local SGD", "DiLoCo"],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_is_the_loop_by_hand(method, workers):
    task, seen = spied(DIGITS, parameters_of)
    learning_rate = 0.05 if method.outer == Average() else 0.002
    evaluations = trained(task, method, workers=workers, steps=7, learning_rate=learning_rate)
    shown, losses = by_hand(DIGITS, method, workers, 7, learning_rate=learning_rate)
    for ours, theirs in zip(seen[1:], shown, strict=True):  # of the shared model, also between two syncs
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert torch.equal(seen[0], parameters_of(DIGITS.build(0)))
    assert [at.loss for at in evaluations[1:]] == pytest.approx(losses, abs=1e-5)
    assert [at.step for at in evaluations] == list(range(8))
    assert evaluations[-1].samples == 7 * 32 * workers


def test_an_evaluation_is_of_the_steps_since_the_last_one():
    each = trained(DIGITS, recipes.local_sgd(h=2), steps=5)
    seldom = trained(DIGITS, recipes.local_sgd(h=2), steps=5, evaluate_every=2)
    assert [at.step for at in seldom] == [0, 2, 4, 5]
    assert seldom[1].loss == pytest.approx(fmean([each[1].loss, each[2].loss]))
    assert seldom[3].loss == each[5].loss
    assert seldom[3].quality == each[5].quality


@pytest.mark.parametrize(
    "method",
    [
        LocalMethod(AllGather(TOP), Every(2), InnerSGD(0.9)),
        LocalMethod(
            AllGather(ErrorFeedback(QSGD(bits=8))), Streaming(4, 2, delay=1, mixing=0.5), InnerAdamW(), OuterSGD()
        ),
        LocalMethod(AsyncServer(TOP), Every(2)),
    ],
    ids=["synchronous", "streaming", "asynchronous"],
)
def test_looking_does_not_change_the_trajectory(method):
    ends = []
    for evaluate_every in (1, 6):
        task, seen = spied(DIGITS, parameters_of)
        last = trained(task, method, steps=6, learning_rate=0.01, evaluate_every=evaluate_every)[-1]
        ends.append((seen[-1], last.quality, last.up_bytes, last.down_bytes))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]
    assert not torch.equal(ends[0][0], parameters_of(DIGITS.build(0)))


def test_distortion_is_that_of_the_drifts_at_a_sync():
    evaluations = trained(DIGITS, LocalMethod(AllGather(TOP), Every(3)), steps=6, learning_rate=0.05)
    errors = [at.relative_error for at in evaluations]
    assert errors[:3] == [None] * 3
    assert 0 < errors[3] < 1  # of the first drifts, of which a fiftieth was sent
    exact = trained(DIGITS, LocalMethod(AllGather(Identity()), Every(3)), steps=3, learning_rate=0.05)
    assert exact[3].relative_error == pytest.approx(0, abs=1e-5)


def test_bytes_are_those_of_the_syncs():
    elements = parameters_of(DIGITS.build(0)).numel()
    evaluations = trained(DIGITS, recipes.local_sgd(h=3), workers=2, steps=7)
    # A ring of two moves as many bytes as the model has, each way, after steps 3 and 6.
    assert [at.up_bytes for at in evaluations] == [4 * elements * syncs for syncs in (0, 0, 0, 1, 1, 1, 2, 2)]
    assert [at.down_bytes for at in evaluations] == [at.up_bytes for at in evaluations]


def test_averages_of_a_batch_norm_are_averaged_or_the_first_workers_own():
    def averages(buffers, h, steps):
        task, seen = spied(normed(), lambda model: deepcopy(model.norm.state_dict()))
        method = LocalMethod(AllReduce(Identity()), Every(h), buffers=buffers)
        trained(task, method, workers=3, steps=steps, learning_rate=0.01)
        return seen[-1]["running_mean"]

    def mine(rank, steps):
        mean, source = torch.zeros(300), normed().batches(0, rank, 3)
        for _ in range(steps):
            (x,) = next(source)
            mean = 0.9 * mean + 0.1 * x.mean(0)
        return mean

    everyone = sum(mine(rank, 4) for rank in range(3)) / 3
    torch.testing.assert_close(averages("average", 2, 4), everyone)  # averaging twice is averaging once
    torch.testing.assert_close(averages("local", 2, 4), mine(0, 4))
    torch.testing.assert_close(averages("average", 2, 5), everyone)  # as they were at the last sync


@pytest.mark.parametrize("method", [recipes.local_sgd(h=3), LocalMethod(AsyncServer(TOP), Every(3))], ids=repr)
def test_a_run_ends_where_a_worker_is_no_longer_finite(method):
    losses = iter([1.0, 1.0, 1.0, 1.0, 1.0, float("nan"), 1.0, 1.0])  # of two workers: at step 3, where all synchronise
    task = toy(loss=lambda model, batch: model(batch[0]).mean() * next(losses))
    evaluations = trained(task, method, steps=4)
    assert [at.step for at in evaluations] == [0, 1, 2, 3]
    assert evaluations[-1].quality is None
    assert evaluations[2].quality is not None


def test_a_run_ends_where_parameters_are_no_longer_finite_though_the_loss_was():
    calls = iter(range(8))

    def loss(model, batch):  # the root of zero is zero, and has no derivative there
        value = model(batch[0]).mean()
        return value + (0 * value).sqrt() if next(calls) == 5 else value

    evaluations = trained(toy(loss=loss), recipes.local_sgd(h=3), steps=4)  # of two workers: at step 3, a sync
    assert [at.step for at in evaluations] == [0, 1, 2, 3]
    assert evaluations[-1].quality is None


def test_asynchronous_workers_that_all_come_at_once_are_synchronous():
    ends = []
    for aggregator in (AllGather(TOP), AsyncServer(TOP)):
        task, seen = spied(DIGITS, parameters_of)
        trained(task, LocalMethod(aggregator, Every(2)), workers=3, steps=5, learning_rate=0.05)
        ends.append(seen)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not torch.equal(ends[0][1], ends[0][2])
