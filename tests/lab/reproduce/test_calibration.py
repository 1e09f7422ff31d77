"""Qualities with batch norm's averages taken anew."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from thriftgrad import tasks
from thriftgrad.lab.reproduce.calibration import calibrated
from thriftgrad.lab.reproduce.nuqsgd import reproduction

# Sample i is the number i; "quality" is what batch norm would normalise by.
COUNTING = replace(
    tasks.load("logreg"),
    description="numbers",
    samples=9,
    build=lambda seed: nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5)),
    draw=lambda indices, generator: (torch.from_numpy(indices).float()[:, None],),
    loss=lambda model, batch: model(batch[0]).square().sum(),
    evaluate=lambda model: (float(model[0].running_mean), float(model[0].running_var), model.training),
)


def test_the_averages_are_those_of_samples_spread_over_the_training_set():
    model = COUNTING.build(0)
    model[0].running_mean.fill_(100.0)  # far from what the weights see
    mean, variance, training = calibrated(COUNTING, 3).evaluate(model)  # samples 0, 4 and 8
    assert (mean, variance) == (4.0, 16.0)
    assert calibrated(COUNTING, 9).evaluate(model)[:2] == (4.0, pytest.approx(7.5))
    assert training  # as the model came; the task's own evaluation decides about that


def test_the_model_that_trains_is_left_alone():
    model = COUNTING.build(0)
    before = torch.get_rng_state()
    calibrated(COUNTING, 9).evaluate(model)
    assert (float(model[0].running_mean), model[0].momentum, model[0].training) == (0.0, 0.1, True)
    assert torch.equal(torch.get_rng_state(), before)  # no dropout was drawn


def test_the_description_says_so():
    assert (
        calibrated(COUNTING, 9).description == "numbers; evaluated with batch norm's averages over 9 training samples"
    )


def test_a_task_without_batch_norm_stays_as_it_is():
    task = tasks.load("digits")
    assert calibrated(task, 256) is task


def test_the_residual_network_s_quality_does_not_depend_on_its_running_averages():
    task = calibrated(tasks.load("digits32"), 64)
    model = task.build(0)
    fresh = task.evaluate(model)
    for buffer in model.buffers():
        buffer.fill_(7)
    assert task.evaluate(model) == fresh


def test_studies_are_calibrated_and_their_tuning_which_looks_at_losses_is_not():
    (study, *_) = reproduction(quick=False).studies
    rates = {arm.label: 0.1 for arm in study.arms}
    comparison = study.comparison(rates)
    assert "averages over 256 training samples" in comparison.configuration.task.description
    tuning = study.tuning()
    plain = tuning.comparison({arm.label: 0.1 for arm in tuning.arms})
    assert "averages" not in plain.configuration.task.description
