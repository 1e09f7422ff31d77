"""Training runs of a reproduction: comparison folders, rates tuned on one grid."""

from dataclasses import replace

import pytest
import torch

from lab.reproduce.toy_reproduction import ADAM, TUNED
from thriftgrad.lab.load import load, read_configuration
from thriftgrad.lab.reproduce.pool import work
from thriftgrad.lab.reproduce.studies import AdamMethod, tuned_rates
from thriftgrad.lab.runner import TUNING_SEED
from thriftgrad.lab.summary import read_summary
from thriftgrad.recipes import sgd


def quietly(sign):
    """Nobody looks."""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Tuning, then the runs of both studies."""
    folder = tmp_path_factory.mktemp("studies")
    for study in (TUNED, ADAM):
        work(study.tuning_jobs(folder), folder, quietly, processes=1)
        work(study.jobs(folder), folder, quietly, processes=1)
    return folder


def test_every_arm_tries_the_same_grid_with_the_same_budget(done):
    configuration, runs = load(done / "studies" / "main" / "tuning")
    assert configuration.seeds == (TUNING_SEED,)
    rates = {row.label: row.learning_rate for row in configuration.methods}
    assert rates == {
        "SGD rate 0.1": 0.01,
        "SGD rate 1": 0.1,
        "QSGD, 4 bits rate 0.1": 0.01,
        "QSGD, 4 bits rate 1": 0.1,
    }
    assert {run.evaluations[-1].step for run in runs} == {6}
    assert {run.status for run in runs} == {"finished"}


def test_the_rate_of_the_lowest_training_loss_is_taken_and_said(done):
    configuration = read_configuration(done / "studies" / "main")
    for row in configuration.methods:
        assert row.tuning.grid == (0.01, 0.1)
        assert row.learning_rate == row.tuning.grid[row.tuning.loss.index(min(row.tuning.loss))]
        assert row.tuning.edge  # a grid of two has only edges
        assert (row.tuning.steps, row.tuning.seed) == (6, TUNING_SEED)
    assert all(row.learning_rate == 0.1 for row in configuration.methods)  # ten steps at a tenth of it get nowhere


def test_a_rate_that_diverges_is_never_taken(tmp_path):
    bold = replace(TUNED, grid=(1.0, 1e30), arms=TUNED.arms[:1])
    work(bold.tuning_jobs(tmp_path), tmp_path, quietly, processes=1)
    tuning = tuned_rates(bold, tmp_path)["SGD"]
    assert tuning.loss[1] is None
    (job, _) = bold.jobs(tmp_path)
    assert job.rate == 0.1


def test_a_study_has_an_optimizer_and_a_batch_of_its_own(done):
    (row,) = read_configuration(done / "studies" / "adam").methods
    assert row.expression.startswith("AdamMethod(")
    assert read_configuration(done / "studies" / "adam").batch_size == 8


def test_a_study_is_a_comparison_that_can_be_summarised(done):
    summary = read_summary(done / "studies" / "main")
    assert [method.method.label for method in summary.methods] == ["SGD", "QSGD, 4 bits"]
    assert all(len(method.seeds("finished")) == 2 for method in summary.methods)
    assert all(method.quality.mean < 0.7 for method in summary.methods)  # f - f* at the start is 0.63


def test_runs_that_are_done_are_not_done_again(done):
    jobs = TUNED.jobs(done)
    assert all(job.done(done) for job in jobs)
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.jsonl")}
    work(jobs, done, quietly, processes=1)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.jsonl")} == before


def test_adam_takes_the_estimates():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = AdamMethod(sgd().aggregator).optimizer([parameter], 0.1)
    parameter.grad = torch.tensor([1e-3, -5.0])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1]))  # the first step of Adam: the signs
