"""The reproduction of Qsparse-local-SGD: its plan is consistent, and every claim finds its evidence."""

import random

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from lab.reproduce.fabricated import check_whole, rows
from thriftgrad import parse
from thriftgrad.lab.reproduce import qsparse, qsparse_savings, qsparse_work
from thriftgrad.lab.reproduce.halving import Halving
from thriftgrad.lab.reproduce.labels import read_label
from thriftgrad.lab.reproduce.page import html, markdown
from thriftgrad.lab.reproduce.reproduction import judge
from thriftgrad.lab.runner import TUNING_SEED
from thriftgrad.tasks import load

BOTH = pytest.mark.parametrize("quick", [True, False])


def written(folder, arms, seeds, chance, task, workers, tuning=None):
    """Runs of made-up qualities that get better, and bytes that differ by arm."""
    runs, found = {}, []
    for number, arm in enumerate(arms):
        found.append(method(arm.label, arm.slug, tuning=tuning))
        for seed in seeds:
            sent = {"payload_up_bytes": 0.0, "payload_down_bytes": 0.0}
            at = [start(arm.slug, seed), evaluation(0, 0.1, **sent)]
            for step in range(1, 9):
                up = 1000.0 * step * (number + 1)
                quality = chance.uniform(0.1 * step, 0.1 * step + 0.1)
                at.append(evaluation(8 * step, quality, payload_up_bytes=up, payload_down_bytes=2 * up))
            runs[arm.slug, seed] = [*at, {"kind": "end", "steps": 64, "wall_seconds": 1.0, "diverged": False}]
    record = {"name": task.name, "description": task.description, "quality": task.quality, "target": task.target}
    record |= {"higher_is_better": task.higher_is_better, "provenance": {}}
    write(folder, configuration(found, seeds=list(seeds), workers=workers, task=record), runs)


def planned(reproduction, folder):
    """Evidence in the shape that the reproduction would leave, its numbers drawn at random."""
    chance = random.Random(0)
    for each in reproduction.measurements:
        found = [
            {"label": s.label, "k": s.k, "s": s.s, "kept": chance.uniform(0.1, 1), "bound": 0.1, "bits": 100.0}
            | {"seed": each.seed}
            for s in each.operators
        ]
        rows(folder, each.name, found)
    for study in reproduction.studies:
        task = study.posed(load(study.task))
        grid = {"grid": [0.1, 0.3, 1.0], "loss": [0.3, 0.2, 0.4], "steps": 9, "seed": TUNING_SEED, "edge": False}
        if isinstance(study, Halving):
            tuning = study.tuning()
            written(folder / tuning.folder, tuning.arms, [TUNING_SEED], chance, tuning.posed(task), study.workers)
            kept = study.kept(folder)
            arms = [arm for arm in study.arms if arm.label in kept]
        else:
            arms = study.arms
        written(folder / study.folder, arms, range(study.seeds), chance, task, study.workers, grid)


@BOTH
def test_every_claim_finds_its_evidence(quick, tmp_path):
    reproduction = qsparse.reproduction(quick)
    planned(reproduction, tmp_path)
    result = judge(reproduction, tmp_path)
    check_whole(result, claims=25)
    pages = html(result) + markdown(result)
    assert '"heat": {' in pages
    assert "Forbidden: unscaled with beta" in pages


@BOTH
def test_plans_are_consistent(quick):
    reproduction = qsparse.reproduction(quick)
    names = [each.name for each in (*reproduction.measurements, *reproduction.studies)]
    assert len(set(names)) == len(names)
    for study in reproduction.studies:
        assert len({arm.slug for arm in study.arms}) == len({arm.label for arm in study.arms}) == len(study.arms)
        assert len(study.grid) >= 3
        for arm in study.arms:
            assert parse(repr(arm.method)) == arm.method
            setting = read_label(arm.label.split(", ")[0])
            assert arm.label == setting.label or arm.label.startswith(f"{setting.label}, ")
    workers = {study.workers for study in reproduction.studies}
    assert quick or workers == {8, 15}
    assert quick or all(study.seeds >= 5 for study in reproduction.studies)
    assert quick or {study.task for study in reproduction.studies} == {"softmax", "logreg", "digits32", "text"}
    # By the rough costs that progress goes by, on two cores: below 3 and 40 minutes with room to spare.
    jobs = sum(each.seconds for each in reproduction.measurements)
    for study in reproduction.studies:
        share = study.share if isinstance(study, Halving) else 1.0
        steps = share * study.seeds * study.steps + len(study.grid) * study.tuning_steps
        jobs += len(study.arms) * steps * study.workers * study.step_seconds
    assert jobs / 2 < (2 * 60 if quick else 33 * 60)


def test_the_twins_that_claims_need_are_trained_whatever_tuning_says():
    grid = qsparse_work.grid(quick=False)
    labels = {arm.label for arm in grid.arms}
    assert set(grid.always) <= labels
    assert {qsparse_savings.SGD, qsparse_savings.LOCAL, "QTopK[k=32,s=15,unscaled]·H=1·EF+·sync"} <= set(grid.always)


def test_all_subsets_of_the_components_are_trained():
    components = qsparse_work.components(8, 4)
    assert {frozenset(each): setting.label for each, setting in components.items()} == {
        frozenset(): "SGD·H=1·EF-·sync",
        frozenset({"local"}): "SGD·H=4·EF-·sync",
        frozenset({"sparsify"}): "TopK[k=8]·H=1·EF+·sync",
        frozenset({"quantise"}): "Sign·H=1·EF+·sync",
        frozenset({"sparsify", "local"}): "TopK[k=8]·H=4·EF+·sync",
        frozenset({"quantise", "local"}): "Sign·H=4·EF+·sync",
        frozenset({"sparsify", "quantise"}): "SignTopK[k=8]·H=1·EF+·sync",
        frozenset({"sparsify", "quantise", "local"}): "SignTopK[k=8]·H=4·EF+·sync",
    }


def test_a_slow_worker_takes_four_gaps():
    mixed, dealt = qsparse_work.asynchronous(quick=False)
    slow = mixed.arms[-1].method.schedule
    assert [each.gap() for each in slow.schedules] == [8] * 7 + [32]
    assert dealt.sorted_labels
    assert not mixed.sorted_labels
    assert dealt.arms == mixed.arms
