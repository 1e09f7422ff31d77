"""The reproduction of PowerSGD, its quality half: the plan is consistent, and every claim finds its evidence."""

import random

import pytest

from lab.reproduce.fabricated import check_whole, rows
from lab.reproduce.test_qsparse import written
from thriftgrad import parse
from thriftgrad.aggregate import GradiVeQ, PowerSGD
from thriftgrad.comm import Ledger, simulate
from thriftgrad.core import Key, TensorSpec
from thriftgrad.lab.reproduce import powersgd, powersgd_limits, powersgd_quality, powersgd_time
from thriftgrad.lab.reproduce import powersgd_work as work
from thriftgrad.lab.reproduce.approximation import WHOLE, Approximations
from thriftgrad.lab.reproduce.page import html, markdown
from thriftgrad.lab.reproduce.powersgd_methods import gradiveq, power, sgd, with_memory
from thriftgrad.lab.reproduce.quadratics import Quadratics
from thriftgrad.lab.reproduce.reproduction import Reproduction, judge
from thriftgrad.lab.runner import TUNING_SEED
from thriftgrad.tasks import load
from thriftgrad.train.method import Method

BOTH = pytest.mark.parametrize("quick", [True, False])


def planned(reproduction, folder):
    """Evidence in the shape that the reproduction would leave, its numbers drawn at random."""
    chance = random.Random(0)
    for each in reproduction.measurements:
        if isinstance(each, Approximations):
            found = [
                {"label": label, "tensor": tensor, "error": chance.uniform(0.5, 1), "best": 0.5, "kept": 0.3}
                | {"least_kept": chance.uniform(0.01, 0.2), "seed": each.seed}
                for label, _ in each.forms
                for tensor in ("a", "b", WHOLE)
            ]
        else:
            assert isinstance(each, Quadratics)
            found = [
                {"label": label, "rate": rate, "noise": noise, "error": chance.uniform(0, 1), "seed": each.seed}
                for label, _ in each.forms
                for rate in each.rates
                for noise in each.noises
            ]
        rows(folder, each.name, found)
    grid = {"grid": [0.1, 0.3, 1.0], "loss": [0.3, 0.2, 0.4], "steps": 9, "seed": TUNING_SEED, "edge": False}
    for study in reproduction.studies:
        task = load(study.task)
        written(folder / study.folder, study.arms, range(study.seeds), chance, task, study.workers, grid)


@BOTH
def test_every_claim_finds_its_evidence(quick, tmp_path):
    claims = (*powersgd_quality.claims(quick), *powersgd_limits.claims(quick))
    reproduction = Reproduction("powersgd", "", quick, claims, work.measurements(quick), work.studies(quick))
    planned(reproduction, tmp_path)
    result = judge(reproduction, tmp_path)
    check_whole(result, claims=30)
    first = result.answers[0].finding.tables[0]
    assert [name.split(" to ")[0] for name in first.columns[1:3]] == ["steps", "kB up"]
    assert first.columns[5].startswith("steps to SGD's final within")
    assert "45,935" not in markdown(result)  # bytes, not floats
    assert "183,740" in markdown(result)  # of ResNet-18 at rank 1
    assert '"heat": {' in html(result)


@BOTH
def test_both_halves_are_one_reproduction(quick):
    whole = powersgd.reproduction(quick)
    assert whole.name == "powersgd"
    statements = [claim.statement for claim in whole.claims]
    assert len(set(statements)) == len(statements)
    assert {claim.statement for claim in powersgd_time.claims(quick)} < set(statements)
    names = [each.name for each in (*whole.measurements, *whole.studies)]
    assert len(set(names)) == len(names)
    assert {each.name for each in powersgd_time.measurements(quick)} < set(names)


@BOTH
def test_plans_are_consistent(quick):
    studies, measurements = work.studies(quick), work.measurements(quick)
    for study in studies:
        assert len({arm.slug for arm in study.arms}) == len({arm.label for arm in study.arms}) == len(study.arms)
        assert len(study.grid) >= (3 if quick else 5)
        assert study.links == (work.GIGABIT, work.HUNDRED)
        for arm in study.arms:
            assert parse(repr(arm.method)) == arm.method
    assert quick or {study.workers for study in studies} == {8, 16}
    assert quick or {study.task for study in studies} == {"digits18", "lstm", "text"}
    assert all(study.seeds >= (3 if quick else 5) for study in studies)
    # By the rough costs that progress goes by, on two cores: below 3 and 40 minutes with room for the times.
    jobs = sum(each.seconds for each in measurements)
    for study in studies:
        steps = study.seeds * study.steps + len(study.grid) * study.tuning_steps
        jobs += len(study.arms) * steps * study.workers * study.step_seconds
    assert jobs / 2 < (1.6 * 60 if quick else 32 * 60)


def test_labels_say_what_differs():
    assert power(2).label == "PowerSGD r=2"
    assert power(1, residual_iterations=2).label == "PowerSGD r=1, residual=2"
    assert power(2, refresh="exact", refresh_every=16).label == "PowerSGD r=2, refresh=16, exact"
    assert power(2, warm_start=False, memory="none").label == "PowerSGD r=2, cold, no memory"
    assert power(4, alternating=True).label == "PowerSGD r=4, alternating"
    paper = power(2, memory="global", plus_gradient=True)
    assert paper.label == "PowerSGD r=2, global memory, D'+m"
    assert paper.method == Method(PowerSGD(rank=2, min_compression_rate=1.0, memory="global"), plus_gradient=True)
    assert sgd(plus_gradient=True).label == "SGD, D'+m"


def sent_bytes(task, aggregator, steps=1):
    """What a worker hands to collectives in a step, mean over some."""
    specs = [TensorSpec.of(p, name) for name, p in load(task).build(0).named_parameters()]
    states, ledger = [aggregator.init(specs) for _ in range(2)], Ledger()
    for step in range(steps):
        tensors = [spec.zeros() for spec in specs]
        done = simulate([aggregator.aggregate(tensors, state, Key(step)) for state in states], ledger)
        states = [state for _, state in done]
    return ledger.payload_up_bytes / steps


@pytest.mark.parametrize("task", ["digits", "digits18", "lstm"])
@pytest.mark.parametrize("rank", [work.HIGH, work.MEDIUM])
def test_rivals_send_as_much(task, rank):
    mine = sent_bytes(task, power(rank).method.aggregator)
    block, random_k, top_k = with_memory(rank, work.TOP_K[task][rank])
    assert sent_bytes(task, block.method.aggregator) == mine
    assert sent_bytes(task, random_k.method.aggregator) == mine
    assert sent_bytes(task, top_k.method.aggregator) == pytest.approx(mine, rel=0.02)


@BOTH
def test_gradiveq_sends_about_as_much_over_the_run(quick):
    for study in work.studies(quick)[:2]:
        (arm,) = (arm for arm in study.arms if arm.label == "GradiVeQ")
        form = arm.method.aggregator
        assert isinstance(form, GradiVeQ)
        assert arm == gradiveq(form.components, 1 + form.compressed_steps)
        assert study.steps % (1 + form.compressed_steps) == 0
        mine = sent_bytes(study.task, power(work.MEDIUM).method.aggregator)
        assert sent_bytes(study.task, form, study.steps) == pytest.approx(mine, rel=0.05)


def test_quick_and_full_look_at_what_the_claims_name():
    for quick in (True, False):
        forms = dict(work.looking_on(quick))
        assert {power(rank).label for rank in work.RANKS} <= set(forms)
        assert {work.iterated(warm, k).label for warm in (True, False) for k in work.ITERATED} <= set(forms)
    assert work.iterated(True, 1) == power(2)
    assert work.iterated(False, 4) == power(2, warm_start=False, power_iterations=4)
