"""What it takes to reach a target, arms against arms, and bytes from shapes: on made-up runs and real shapes."""

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from thriftgrad.lab.reproduce import check_pairs, check_shapes, check_targets
from thriftgrad.lab.reproduce.bits import Target
from thriftgrad.lab.reproduce.claims import Reasons, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence

REASONS = Reasons(holds="yes", contradicted="no")
TARGETS = (Target("0.5", fixed=0.5), Target("SGD's final within 0.02", baseline="SGD", tolerance=0.02))


def study(folder, reached, final=None):
    """By label, the step at which each of three seeds is at 0.6, where it stays; None: never, it stays at 0.3."""
    runs = {}
    for label, steps in reached.items():
        for seed, at in enumerate(steps):
            qualities = [
                0.1
                if step == 0
                else 0.3
                if at is None or step < at
                else 0.6 + 0.0001 * seed + (final or {}).get(label, 0)
                for step in range(0, 70, 10)
            ]
            evaluations = [evaluation(10 * i, quality, bytes_a_step=200.0) for i, quality in enumerate(qualities)]
            end = {"kind": "end", "steps": 60, "wall_seconds": 1.0, "diverged": False}
            runs[label, seed] = [start(label, seed), *evaluations, end]
    write(folder / "studies" / "toy", configuration([method(label) for label in reached]), runs)
    return Evidence(folder)


def check(evidence, *labels):
    return check_targets.no_more_steps("toy", "SGD", labels, TARGETS, 1.5, REASONS)(evidence)


def test_as_many_steps_hold_and_the_table_counts_steps_bytes_and_seconds(tmp_path):
    found = check(study(tmp_path, {"SGD": [20, 20, 20], "thrifty": [20, 20, 20], "never": [None, 20, 20]}), "thrifty")
    assert found.verdict is Verdict.HOLDS
    assert "thrifty to 0.5: 1 [1, 1] times" in found.ours
    (table,) = found.tables
    assert table.columns[1:5] == ("steps to 0.5", "kB up to 0.5", "s at 100mbit,1ms to 0.5", "s at 10gbit,0.1ms to 0.5")
    lines = {row[0]: row for row in table.rows}
    # 100 payload bytes a step; 10 ms compute, 3 ms codec and 50 or 5 ms of link a step.
    assert lines["thrifty"][1:5] == ("20", "2", "1.26", "0.36")
    assert lines["never"][1] == "not reached (1 of 3)"
    assert [curve.label for curve in found.charts[0].curves] == ["SGD", "thrifty", "never"]


def test_twice_the_steps_contradict(tmp_path):
    assert check(study(tmp_path, {"SGD": [20] * 3, "slow": [40] * 3}), "slow").verdict is Verdict.CONTRADICTED


def test_a_target_that_no_seed_reaches_contradicts_where_the_other_does(tmp_path):
    found = check(study(tmp_path, {"SGD": [20] * 3, "never": [None] * 3}), "never")
    assert found.verdict is Verdict.CONTRADICTED
    assert "never to 0.5: not reached by 3 of 3 seeds, and by 0 of the other's" in found.ours


def test_a_target_that_some_seeds_reach_settles_nothing(tmp_path):
    found = check(study(tmp_path, {"SGD": [20] * 3, "partly": [20, None, 20]}), "partly")
    assert found.verdict is Verdict.NOT_MEASURABLE


def test_one_of_two_holds_in_part(tmp_path):
    evidence = study(tmp_path, {"SGD": [20] * 3, "thrifty": [20] * 3, "never": [None] * 3})
    assert check(evidence, "thrifty", "never").verdict is Verdict.IN_PART


def test_better_is_a_paired_difference_with_a_table_of_these_alone(tmp_path):
    evidence = study(tmp_path, {"SGD": [20] * 3, "a": [20] * 3, "b": [20] * 3, "c": [20] * 3}, {"a": 0.1})
    found = check_pairs.better("toy", [("a", "b")], REASONS, beside=["SGD"])(evidence)
    assert found.verdict is Verdict.HOLDS
    assert found.ours == "a against b +10.0 [+10.0, +10.0] points."
    assert found.judged == ("a", "b")
    (table,) = found.tables
    assert [row[0] for row in table.rows] == ["a", "b", "SGD"]
    # 100 of 4 x 38282 bytes a step; all evaluations but the first have a relative error of 0.5.
    assert table.rows[0][1:] == ("0.7001 [0.6999, 0.7003]", "0.1", "1531.3", "0.50", "0.1", "-")
    assert check_pairs.better("toy", [("b", "a")], REASONS)(evidence).verdict is Verdict.CONTRADICTED
    as_good = check_pairs.better("toy", [("b", "a")], REASONS, by=-0.2)(evidence)
    assert as_good.verdict is Verdict.HOLDS
    assert as_good.ours.endswith("points; 0.2 worse is still as good.")
    assert check_pairs.better("toy", [("a", "b"), ("b", "a")], REASONS)(evidence).verdict is Verdict.IN_PART


def test_a_match_lies_within_its_margin(tmp_path):
    evidence = study(tmp_path, {"a": [20] * 3, "b": [20] * 3}, {"a": 0.1})
    assert check_pairs.matches("toy", [("a", "b")], REASONS, 0.2)(evidence).verdict is Verdict.HOLDS
    found = check_pairs.matches("toy", [("a", "b")], REASONS, 0.05)(evidence)
    assert found.verdict is Verdict.CONTRADICTED
    assert found.ours.endswith("; a match is a difference below 0.05.")


def test_several_studies_are_judged_together(tmp_path):
    evidence = study(tmp_path, {"a": [20] * 3, "b": [20] * 3}, {"a": 0.1})
    both = check_pairs.everywhere({"toy": ([("a", "b"), ("b", "a")], 0.0)}, REASONS)(evidence)
    assert both.verdict is Verdict.IN_PART
    assert both.ours.startswith("toy: a against b")
    assert len(both.tables) == 1


@pytest.mark.parametrize(("rank", "sent"), [(1, 45_935), (2, 82_260)])
def test_floats_of_resnet18(rank, sent):
    assert check_shapes.floats(check_shapes.shapes()["ResNet-18"], rank) == sent


def test_floats_of_the_lstm():
    # Tied embedding 28869 x 650, six matrices 2600 x 650, their biases and that of the output.
    assert check_shapes.floats(check_shapes.shapes()["LSTM"], 1) == 28_869 + 650 + 6 * 3250 + 28_869 + 6 * 2600


def test_ratios_are_held_to_a_hundredth():
    evidence = Evidence(None)
    ranks = (1, 2, 4)
    published = {"ResNet-18": {1: 243.0, 2: 136.0, 4: 72.0}, "LSTM": {1: 310.0, 2: 203.0, 4: 120.0}}
    found = check_shapes.ratios(published, ranks, REASONS)(evidence)
    assert found.verdict is Verdict.HOLDS
    assert len(found.tables[0].rows) == 4 * len(ranks)
    wrong = check_shapes.ratios({"LSTM": {1: 300.0}}, ranks, REASONS)(evidence)
    assert wrong.verdict is Verdict.CONTRADICTED


def test_sizes_are_counted(monkeypatch):
    assert check_shapes.sizes(REASONS)(Evidence(None)).verdict is Verdict.HOLDS
    monkeypatch.setitem(check_shapes.PARAMETERS, "LSTM", 1)
    assert check_shapes.sizes(REASONS)(Evidence(None)).verdict is Verdict.CONTRADICTED
