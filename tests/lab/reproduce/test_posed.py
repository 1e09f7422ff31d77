"""Tasks posed in another way."""

import numpy as np
import torch

from thriftgrad import tasks
from thriftgrad.lab.reproduce.posed import LocalStudy, label_sorted, on_training_loss, started_elsewhere

SOFTMAX = tasks.load("softmax")
STUDY = LocalStudy("name", "softmax", (), 1, 10, 0.001, (1.0,), 5)


def test_each_worker_sees_a_contiguous_run_of_labels_and_all_samples_are_dealt():
    task, seen, total = label_sorted(SOFTMAX), [], 0
    for rank in range(8):
        source = task.batches(seed=3, rank=rank, world=8)
        two_epochs = zip(*(next(source) for _ in range(45)), strict=True)
        images, labels = (torch.cat(part) for part in two_epochs)
        distinct = {image.numpy().tobytes() for image in images}
        total += len(distinct)
        classes = sorted(set(labels.tolist()))
        assert classes == list(range(classes[0], classes[-1] + 1))
        assert len(classes) <= 3
        seen.append(classes)
    assert [low for low, *_ in seen] == sorted(low for low, *_ in seen)
    assert seen[0][0] == 0
    assert seen[-1][-1] == 9
    everything, _ = SOFTMAX.draw(np.arange(SOFTMAX.samples), np.random.default_rng(0))
    assert total == len({image.numpy().tobytes() for image in everything})


def test_another_start_is_the_same_on_every_worker_and_differs_by_seed():
    task = started_elsewhere(SOFTMAX, 2.0)
    one, again, other = (task.build(seed).weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert abs(float(one.detach().std()) - 2.0) < 0.2


def test_the_loss_of_the_shared_model_is_a_fixed_number_and_leaves_the_model_alone():
    task = on_training_loss(SOFTMAX)
    assert (task.quality, task.higher_is_better) == ("training loss", False)
    assert abs(task.evaluate(SOFTMAX.build(0)) - np.log(10)) < 1e-6  # zero weights: uniform
    resnet = tasks.load("digits32")
    model = resnet.build(0)
    before = [value.clone() for value in model.state_dict().values()]
    posed = on_training_loss(resnet)
    assert posed.evaluate(model) == posed.evaluate(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert model.training


def test_a_study_says_how_it_poses_its_task():
    assert STUDY.posed(SOFTMAX) is SOFTMAX
    both = LocalStudy(**vars(STUDY) | {"sorted_labels": True, "deviation": 1.0, "on_loss": True}).posed(SOFTMAX)
    assert both.quality == "training loss"
    assert both.description.endswith("label-sorted, a contiguous run for each worker; started from N(0, 1^2)")
    assert next(both.batches(0, 0, 8))[1].max() <= 1
