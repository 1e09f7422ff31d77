"""What claims see of records."""

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from lab.reproduce.fabricated import probed, rows, study
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.records import ReproductionError


def test_rows_of_all_seeds_of_one_measurement(tmp_path):
    for seed in (0, 1):
        rows(tmp_path, f"gradients-digits-seed{seed}", [probed("a", "b", seed, 1.0)])
    rows(tmp_path, "gradients-digits32-seed0", [probed("a", "b", 5, 1.0)])
    assert [row["seed"] for row in Evidence(tmp_path).rows("gradients-digits")] == [0, 1]
    with pytest.raises(ReproductionError, match=r"has no measurement 'timing'; give the same command again to do it\."):
        Evidence(tmp_path).rows("timing")


def test_qualities_are_paired_by_seed_and_a_diverged_run_is_worth_its_untrained_model(tmp_path):
    study(tmp_path, "s", {"a": [0.9, 0.8, 0.7], "b": [0.8, 0.7, 0.6]}, diverged={("a", 2)})
    found = Evidence(tmp_path).study("s")
    assert found.labels == ("a", "b")
    assert found.finals("a") == pytest.approx([0.9, 0.8, 0.1])
    assert (found.diverged("a"), found.diverged("b")) == (1, 0)
    gain = found.gain("a", "b")
    assert gain.mean == pytest.approx((0.1 + 0.1 - 0.5) / 3)
    assert gain.low < 0 < gain.high


def test_lower_is_better_turns_the_gain_round(tmp_path):
    task = {
        "name": "t",
        "description": "",
        "quality": "bits",
        "higher_is_better": False,
        "target": 1.0,
        "provenance": {},
    }
    study(tmp_path, "s", {"a": [2.0, 3.0], "b": [2.5, 3.5]}, task=task)
    gain = Evidence(tmp_path).study("s").gain("a", "b")
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.5, 0.5, 0.5))


def test_bits_are_link_bytes_over_parameters_and_steps(tmp_path):
    study(tmp_path, "s", {"a": [0.9, 0.9]}, parameters=50)  # 100 bytes up and 300 down a step
    assert Evidence(tmp_path).study("s").bits_per_coordinate("a") == pytest.approx((16.0, 48.0))


def test_a_learning_rate_at_the_edge_of_its_grid_is_said(tmp_path):
    tuning = {"grid": [0.1, 1.0, 10.0], "loss": [3.0, 2.0, 1.0], "steps": 6, "seed": 7}
    arms = [
        method("inside", learning_rate=1.0, tuning=tuning | {"edge": False}),
        method("last", learning_rate=10.0, tuning=tuning | {"edge": True}),
        method("untuned", learning_rate=0.3),
    ]
    end = {"kind": "end", "steps": 10, "wall_seconds": 1.0, "diverged": False}
    runs = {(arm["label"], 0): [start(arm["label"], 0), evaluation(0, 0.1), evaluation(10, 0.9), end] for arm in arms}
    write(tmp_path / "studies" / "s", configuration(arms, seeds=[0]), runs)
    found = Evidence(tmp_path).study("s")
    assert [found.rate(label) for label in found.labels] == ["1", "10 (edge of the grid)", "0.3"]
