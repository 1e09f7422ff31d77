"""What is read off the factorial and off what operators keep, on numbers made up."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lab.fabricate import configuration, evaluation, method, start, write
from lab.reproduce.fabricated import rows
from lab.reproduce.test_bits import study
from lab.reproduce.test_halving import SETTINGS, STUDY, tuned
from thriftgrad import tasks
from thriftgrad.core import Key
from thriftgrad.lab.reproduce import check_async, check_factorial, check_layouts, check_tuning
from thriftgrad.lab.reproduce.check_factorial import _rank_correlation
from thriftgrad.lab.reproduce.claims import HeatMap, Reasons, Verdict
from thriftgrad.lab.reproduce.contraction import contracted, updates
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.halving import Halving
from thriftgrad.lab.reproduce.labels import Setting
from thriftgrad.lab.reproduce.page import drawing
from thriftgrad.lab.reproduce.posed import LocalStudy
from thriftgrad.lab.reproduce.qsparse_methods import arm
from thriftgrad.lab.reproduce.qsparse_methods import method as local_method
from thriftgrad.local import Every, PerWorker

REASONS = Reasons(holds="Yes.", contradicted="No.")


def grid(arms):
    return Halving("grid", "logreg", tuple(arm(each, 30) for each in arms), 2, 8, 0.001, (0.1, 1.0), 4, workers=2)


@pytest.mark.parametrize(("twin_loss", "verdict"), [(0.8, "HOLDS"), (0.2, "CONTRADICTED")])
def test_a_factor_is_judged_over_all_pairs(tmp_path, monkeypatch, twin_loss, verdict):
    found = [
        Setting(op, 3, h=h, memory=memory) for op in ("TopK", "SignTopK") for h in (1, 4) for memory in (True, False)
    ]
    losses = {each.label: (1.0, 0.4 if each.memory else twin_loss) for each in found}
    monkeypatch.setattr(Halving, "tried", lambda self, folder: losses)
    check = check_factorial.factor(
        grid(found), check_factorial.without_memory, "a memory", REASONS, lambda setting: setting.memory
    )
    finding = check(Evidence(tmp_path))
    assert finding.verdict is Verdict[verdict]
    every, *by_op = finding.tables[0].rows
    assert every[:2] == ("all", "4")
    assert float(every[2].split()[0]) == pytest.approx(math.log(twin_loss / 0.4), rel=0.02)
    assert [line[:2] for line in by_op] == [("TopK", "2"), ("SignTopK", "2")]


def test_a_twin_that_diverged_counts_as_worse_but_in_no_mean(tmp_path, monkeypatch):
    found = [Setting("TopK", 3, h=h, memory=memory) for h in (1, 4, 8) for memory in (True, False)]
    losses = {each.label: (1.0, 0.4 if each.memory else 0.5) for each in found}
    losses[found[1].label] = (math.inf, math.inf)
    monkeypatch.setattr(Halving, "tried", lambda self, folder: losses)
    check = check_factorial.factor(grid(found), check_factorial.without_memory, "a memory", REASONS, lambda s: s.memory)
    assert check(Evidence(tmp_path)).tables[0].rows[0] == ("all", "3", "0.22 [0.22, 0.22]", "3", "1")


def test_the_cheapest_cell_that_keeps_quality_is_named(tmp_path):
    sgd, top, sign, bad = (
        "SGD·H=1·EF-·sync",
        "TopK[k=3]·H=1·EF+·sync",
        "SignTopK[k=3]·H=8·EF+·sync",
        "Sign·H=8·EF-·sync",
    )
    qualities = {sgd: 0.95, top: 0.95, sign: 0.945, bad: 0.5}
    sent = {sgd: 1000, top: 100, sign: 10, bad: 1}
    study(tmp_path, {label: (sent[label], [[q, q, q]] * 3) for label, q in qualities.items()}, "grid")
    shown = check_factorial.front(STUDY, sgd, 0.01, REASONS)(Evidence(tmp_path))
    assert shown.verdict is Verdict.HOLDS
    assert shown.judged == (sign, sgd)
    assert "100 times fewer" in shown.ours
    marks = {line[0]: line[4] for line in shown.tables[0].rows}
    assert marks == {sgd: "", top: "front", sign: "front", bad: "front"}
    strict = check_factorial.front(STUDY, sgd, 0.004, REASONS)(Evidence(tmp_path))
    assert strict.verdict is Verdict.CONTRADICTED
    assert strict.judged == (top, sgd)


def test_every_cell_stands_in_a_table(tmp_path):
    sgd, top, rare, sign = (setting.label for setting in SETTINGS)
    tuned(tmp_path, {sgd: (100, 0.2, 0.3), top: (10, 0.5, None), rare: (3, None, 0.9), sign: (50, 0.6, 0.7)})
    forbidden = [Setting("QTopK", 3, 1, scaled=False)]
    finding = check_factorial.grid(STUDY, forbidden, 8)(Evidence(tmp_path))
    cut, refused, missing = finding.tables
    assert [line[0] for line in cut.rows] == [sign]
    assert refused.rows == ((forbidden[0].label,),)
    assert len(missing.rows) == 2
    assert "3 kept" in finding.ours
    assert "of 8 1 are forbidden and 3 do not exist" in finding.ours


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    for _ in range(20):
        a, b = generator.integers(0, 6, 12), generator.normal(size=12)
        assert _rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_what_ranks_nothing_correlates_with_nothing():
    assert _rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def kept_rows(settings, worth, seeds=3):
    return [
        {
            "label": s.label,
            "k": s.k,
            "s": s.s,
            "kept": worth(s) * 1000.0,
            "bound": 100.0 * worth(s),
            "bits": 1000,
            "seed": seed,
        }
        for s in settings
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("sign", "verdict"), [(1, "HOLDS"), (-1, "CONTRADICTED")])
def test_what_is_kept_per_bit_is_held_against_the_loss_at_equal_bits(tmp_path, sign, verdict):
    settings = [Setting("QTopK", k, s, h=4) for k in (8, 16) for s in (2, 4)]
    rows(tmp_path, "updates", kept_rows(settings, lambda each: each.k * each.s))
    # The first evaluation stands at the bits of the most thrifty arm's whole run; what follows must not matter.
    losses = {each.label: (8 * each.k, [[1 - sign * 1e-3 * each.k * each.s, 0.5]] * 3) for each in settings[1:]}
    losses[settings[0].label] = (4 * 16, [[0.7, 1 - sign * 1e-3 * 16]] * 3)
    task = {"name": "softmax", "description": "", "quality": "training loss", "higher_is_better": False, "target": 0.1}
    study(tmp_path, losses, "heat", task=task | {"provenance": {}})
    finding = check_factorial.worth_of_a_bit("updates", "heat", REASONS)(Evidence(tmp_path))
    assert finding.verdict is Verdict[verdict]


def test_heat_maps_and_the_bound(tmp_path):
    settings = [Setting("QTopK", k, s, h=4) for k in (8, 16) for s in (2, 4)]
    rows(tmp_path, "updates", kept_rows(settings, lambda each: each.k * each.s))
    finding = check_factorial.heat_map({"updates": "softmax"}, REASONS)(Evidence(tmp_path))
    assert finding.verdict is Verdict.HOLDS
    assert "10 to 10 times as much" in finding.ours
    measured, closed = finding.charts
    assert measured == HeatMap(measured.caption, ("s = 2", "s = 4"), ("k = 8", "k = 16"), ((16e6, 32e6), (32e6, 64e6)))
    assert closed.values[1][1] == pytest.approx(6.4e6)
    assert drawing(measured)["heat"]["z"] == measured.values
    json.dumps(drawing(measured))
    assert finding.tables[0].rows[0] == ("k = 8", "1.6e+07", "3.2e+07")


def test_what_an_operator_keeps_agrees_with_its_definition():
    u = torch.tensor([3.0, -1.0, 0.5, -2.0, 0.0])
    row = contracted(Setting("TopK", 2, h=4), [u], Key(0))
    assert row["kept"] == pytest.approx(13 / 14.25)
    assert row["bound"] == pytest.approx(2 / 5)
    row = contracted(Setting("SignTopK", 2), [u], Key(0))
    assert row["kept"] == pytest.approx(1 - 1.75 / 14.25)
    # QTopK is random: kept on average at least k / (n (1 + beta)), and exactly c (2 - c (1 + var)) of what TopK keeps.
    rounded = [contracted(Setting("QTopK", 2, 1), [u], Key(seed))["kept"] for seed in range(400)]
    beta = min(2 / 1, math.sqrt(2))
    assert contracted(Setting("QTopK", 2, 1), [u], Key(0))["bound"] == pytest.approx(0.4 / (1 + beta))
    c, norm = 1 / (1 + beta), math.sqrt(13)
    second = norm * 5  # E|Q|^2 = |y| |y|_1 with one level
    assert np.mean(rounded) == pytest.approx((2 * c * 13 - c * c * second) / 14.25, abs=0.05)


def test_updates_are_memory_plus_drift():
    task = tasks.load("logreg")
    found = list(updates(task, local_method(Setting("TopK", 3, h=2), 30), 0, 0.1, syncs=2, workers=2))
    assert [each.numel() for each in found] == [30] * 4
    plain = list(updates(task, local_method(Setting("TopK", 30, h=2), 30), 0, 0.1, syncs=1, workers=2))
    torch.testing.assert_close(found[0], plain[0])  # before the first sync no memory
    assert int((found[2] != 0).sum()) == 30


def test_the_honest_table_of_resnet50():
    specs = list(check_layouts.resnet50())
    assert (len(specs), sum(spec.numel for spec in specs)) == (161, 25_557_032)
    finding = check_layouts.honest(8, 8, REASONS)(None)
    assert finding.verdict is Verdict.HOLDS
    assert [line[2] for line in finding.tables[1].rows] == ["4,408", "15.97", "979.6"]
    assert check_layouts.honest(16, 8, REASONS)(None).verdict is Verdict.IN_PART


def test_uploads_follow_from_schedules():
    slow = PerWorker((Every(8), Every(8), Every(32)))
    setting = Setting("TopK", 3, h=8, asynchronous=True)
    study = LocalStudy("async", "logreg", (), 1, 64, 0.001, (1.0,), 5, workers=3)
    one = arm(setting, 30)
    assert check_async.uploads(one, 3, 64) == 8
    uneven = type(one)("slow", local_method(setting, 30, schedule=slow))
    assert check_async.uploads(uneven, 3, study.steps) == (8 + 8 + 2) / 3


@pytest.mark.parametrize(("loss", "verdict"), [(0.31, "HOLDS"), (0.6, "CONTRADICTED")])
def test_out_of_step_may_be_worse_by_a_margin(tmp_path, loss, verdict):
    settings = [Setting("TopK", 3, h=8), Setting("TopK", 3, h=8, asynchronous=True)]
    plan = LocalStudy("async", "logreg", tuple(arm(each, 30) for each in settings), 3, 64, 0.001, (1.0,), 5, workers=3)
    task = {"name": "softmax", "description": "d", "quality": "training loss", "higher_is_better": False, "target": 0.1}
    ends = {settings[0].label: (9, [[0.3] * 4] * 3), settings[1].label: (9, [[loss] * 4] * 3)}
    study(tmp_path, ends, "async", task=task | {"provenance": {}})
    labels = [each.label for each in settings]
    finding = check_async.no_worse(plan, labels[0], labels[1:], 0.05, REASONS)(Evidence(tmp_path))
    assert finding.verdict is Verdict[verdict]
    assert finding.tables[0].rows[1][1] == "8.0"
    assert finding.charts[0].curves[1].x == (0.0, 8.0, 16.0, 24.0, 32.0)
    assert finding.charts[1].curves[1].x == tuple(8 * 8 * i * 9 / 1000 for i in range(5))


@pytest.mark.parametrize(("edge", "verdict"), [(False, "HOLDS"), (True, "IN_PART")])
def test_the_appendix_flags_winners_at_an_edge(tmp_path, edge, verdict):
    tuning = {"grid": [0.1, 0.3, 1.0], "loss": [0.5, 0.2, None], "steps": 4, "seed": 1_000_003, "edge": edge}
    row = method("TopK", learning_rate=0.3, tuning=tuning)
    end = {"kind": "end", "steps": 10, "wall_seconds": 1.0, "diverged": False}
    runs = {("TopK", 0): [start("TopK", 0), evaluation(0, 0.1), evaluation(10, 0.9), end]}
    write(tmp_path / "studies" / "main", configuration([row], seeds=[0]), runs)
    plan = LocalStudy("main", "logreg", (), 1, 8, 0.001, (1.0,), 4)
    finding = check_tuning.alike([plan])(Evidence(tmp_path))
    assert finding.verdict is Verdict[verdict]
    winner = "0.3 (edge)" if edge else "0.3"
    assert finding.tables[0].rows == (("main", "TopK", "0.1: 0.5; 0.3: 0.2; 1: diverged", winner),)
