"""A grid that is tuned whole and trained in part."""

from dataclasses import replace

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from lab.reproduce.test_studies import quietly
from thriftgrad.lab.load import read_configuration
from thriftgrad.lab.reproduce.halving import Halving, pareto_fronts
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.pool import work
from thriftgrad.lab.reproduce.qsparse_methods import arm
from thriftgrad.lab.runner import TUNING_SEED

SETTINGS = (Setting("SGD", memory=False), Setting("TopK", 3), Setting("TopK", 3, h=4), Setting("Sign"))
STUDY = Halving(
    name="grid",
    task="logreg",
    arms=tuple(arm(setting, 30) for setting in SETTINGS),
    seeds=2,
    steps=8,
    step_seconds=0.001,
    grid=(0.1, 1.0),
    tuning_steps=4,
    workers=2,
)


def tuned(folder, found):
    """Tuning records made up: by label, kilobytes sent and the loss at either rate."""
    tuning = STUDY.tuning()
    slugs = {each.label: each.slug for each in tuning.arms}
    runs, rows = {}, []
    for label, (sent, *losses) in found.items():
        for factor, loss in zip(STUDY.grid, losses, strict=True):
            name = f"{label} rate {factor:g}"
            rows.append(method(name, slugs[name]))
            gone = loss is None
            at = [evaluation(step, None if gone else loss, payload_up_bytes=1000 * sent * step / 4) for step in (2, 4)]
            end = {"kind": "end", "steps": 4, "wall_seconds": 1.0, "diverged": gone}
            runs[slugs[name], TUNING_SEED] = [start(slugs[name], TUNING_SEED), evaluation(0, 9.0), *at, end]
    write(folder / tuning.folder, configuration(rows, seeds=[TUNING_SEED]), runs)


def test_fronts_are_peeled_one_by_one():
    points = {"a": (1, 9), "b": (2, 3), "c": (2, 4), "d": (9, 1), "e": (9, 9), "twin of b": (2, 3)}
    assert pareto_fronts(points) == [["a", "b", "d", "twin of b"], ["c"], ["e"]]


def test_whole_fronts_are_kept_until_the_share_is_reached_and_some_always(tmp_path):
    sgd, top, rare, sign = (setting.label for setting in SETTINGS)
    tuned(tmp_path, {sgd: (100, 0.2, 0.3), top: (10, 0.5, None), rare: (3, None, 0.9), sign: (50, 0.6, 0.7)})
    assert STUDY.tried(tmp_path) == {sgd: (8e5, 0.2), top: (8e4, 0.5), rare: (24e3, 0.9), sign: (4e5, 0.6)}
    # Nobody beats SGD's loss or the bits of the rare one; TopK beats the signs in both.
    assert STUDY.kept(tmp_path) == {sgd, top, rare}
    assert replace(STUDY, share=0.9).kept(tmp_path) == {sgd, top, rare, sign}
    assert replace(STUDY, share=0.1, always=(sign,)).kept(tmp_path) == {sign}
    assert replace(STUDY, share=0.5, always=(sign,)).kept(tmp_path) == {sgd, top, rare, sign}


def test_what_diverged_at_every_rate_is_last(tmp_path):
    sgd, top, rare, sign = (setting.label for setting in SETTINGS)
    tuned(tmp_path, {sgd: (100, 0.2, 0.3), top: (10, 0.5, 0.5), rare: (3, None, None), sign: (50, 0.4, 0.7)})
    assert STUDY.tried(tmp_path)[rare] == (float("inf"), float("inf"))
    assert rare not in STUDY.kept(tmp_path)


def test_only_what_is_kept_is_trained_at_the_rates_that_tuning_found(tmp_path):
    work(STUDY.tuning_jobs(tmp_path), tmp_path, quietly, processes=1)
    study = replace(STUDY, share=0.25, always=(SETTINGS[3].label,))
    jobs = study.jobs(tmp_path)
    kept = study.kept(tmp_path)
    assert {run.slug for run in jobs} == {each.slug for each in study.arms if each.label in kept}
    assert len(jobs) == 2 * len(kept) < 2 * len(study.arms)
    work(jobs, tmp_path, quietly, processes=1)
    rows = read_configuration(tmp_path / study.folder).methods
    assert {row.label for row in rows} == kept
    for row in rows:
        assert row.tuning.loss.index(min(row.tuning.loss)) == row.tuning.grid.index(row.learning_rate)
    assert all(job.done(tmp_path) for job in study.jobs(tmp_path))


def test_rates_are_tuned_by_the_loss_of_the_shared_model(tmp_path):
    assert STUDY.tuning().on_loss
    assert not STUDY.on_loss
    work(STUDY.tuning_jobs(tmp_path), tmp_path, quietly, processes=1)
    assert read_configuration(tmp_path / STUDY.tuning().folder).task.quality == "training loss"
    with pytest.raises(ValueError, match="comparison"):
        read_configuration(tmp_path / STUDY.folder)
