"""Every number of a summary against what the fabricated costs make of it by hand."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fabricate import FAST, SLOW, configuration, end, evaluation, finished, method, realistic, start, write
from thriftgrad.lab.load import Evaluation
from thriftgrad.lab.summary import RecordsError, load, means, read_summary, summarise

# First evaluations at 0.95 or above: steps 20, 10 and 30; the dip of the first run after step 20 changes nothing.
SGD = {
    ("sgd", 0): finished("sgd", 0, [0.1, 0.5, 0.96, 0.94, 0.97]),
    ("sgd", 1): finished("sgd", 1, [0.1, 0.95, 0.96, 0.97, 0.98]),
    ("sgd", 2): finished("sgd", 2, [0.1, 0.2, 0.3, 0.96, 0.99]),
}


@pytest.fixture
def sgd(tmp_path):
    return read_summary(write(tmp_path, configuration([method("sgd")]), SGD)).methods[0]


def test_final_quality_is_the_last_evaluation_over_seeds(sgd):
    assert sgd.quality.mean == pytest.approx(0.98)
    assert (sgd.quality.low, sgd.quality.high) == (0.97, 0.99)
    assert sgd.quality.std == pytest.approx(0.01)  # with n - 1


def test_bytes_per_step_and_compression_count_both_directions(sgd):
    assert (sgd.link.up, sgd.link.down, sgd.link.both) == (100, 300, 400)
    assert (sgd.payload.up, sgd.payload.down) == (50, 25)
    assert sgd.times_less_than_fp32 == pytest.approx(1600 / 400)
    assert sgd.times_less_than_bf16 == pytest.approx(800 / 400)
    assert sgd.saves_bytes


def test_crossings_are_what_was_spent_at_the_first_evaluation_at_the_target(sgd):
    assert sgd.steps_to_target.values == (20, 10, 30)
    assert sgd.bytes_to_target.values == (8000, 4000, 12000)
    assert sgd.steps_to_target.mean == 20
    assert sgd.bytes_to_target.mean == 8000
    # 10 ms compute + 2 ms encode + 1 ms decode + 50 or 5 ms of link, one after the other
    assert sgd.seconds_to_target[SLOW].mean == pytest.approx(20 * 0.063)
    assert sgd.seconds_to_target[FAST].mean == pytest.approx(20 * 0.018)


def test_measured_seconds_per_step(sgd):
    assert sgd.compute_seconds == pytest.approx(0.010)
    assert sgd.encode_seconds == pytest.approx(0.002)
    assert sgd.decode_seconds == pytest.approx(0.001)


def test_a_lower_target_is_met_from_above(tmp_path):
    settings = configuration([method("sgd")], seeds=[0])
    settings["task"] |= {"higher_is_better": False, "target": 0.25}
    runs = {("sgd", 0): finished("sgd", 0, [1.0, 0.5, 0.25, 0.2, 0.1])}
    assert read_summary(write(tmp_path, settings, runs)).methods[0].steps_to_target.values == (20,)


def test_one_slow_seed_leaves_no_mean_but_a_count(tmp_path):
    runs = SGD | {("sgd", 1): finished("sgd", 1, [0.1, 0.2, 0.3, 0.4, 0.5])}
    sgd = read_summary(write(tmp_path, configuration([method("sgd")]), runs)).methods[0]
    assert sgd.steps_to_target.values == (20, None, 30)
    assert (sgd.steps_to_target.mean, sgd.steps_to_target.reached) == (None, 2)
    assert sgd.quality.low == 0.5  # it finished, so it counts


def test_diverged_and_unfinished_runs_stay_out_of_the_quality_and_in_the_costs(tmp_path):
    runs = {
        ("sgd", 0): SGD["sgd", 0],
        ("sgd", 1): [start("sgd", 1), evaluation(0, 0.1), evaluation(10, None), end(10, diverged=True)],
        ("sgd", 2): [start("sgd", 2), evaluation(0, 0.1), evaluation(10, 0.2, bytes_a_step=400.0)],
    }
    sgd = read_summary(write(tmp_path, configuration([method("sgd")]), runs)).methods[0]
    assert (sgd.seeds("finished"), sgd.seeds("diverged"), sgd.seeds("unfinished")) == ((0,), (1,), (2,))
    assert (sgd.quality.mean, sgd.quality.std) == (0.97, None)
    assert sgd.link.up == pytest.approx((100 + 100 + 400) / 3)


def test_a_run_never_begun_is_unfinished(tmp_path):
    runs = {("sgd", 0): SGD["sgd", 0]}
    sgd = read_summary(write(tmp_path, configuration([method("sgd")]), runs)).methods[0]
    assert sgd.seeds("unfinished") == (1, 2)
    assert sgd.steps_to_target.values == (20, None, None)


def test_a_method_without_a_step_has_no_costs(tmp_path):
    runs = SGD | {("new", 0): [start("new", 0), evaluation(0, 0.1)]}
    new = read_summary(write(tmp_path, configuration([method("sgd"), method("new")]), runs)).methods[1]
    assert (new.quality, new.link, new.times_less_than_fp32, new.encode_seconds) == (None, None, None, None)


def test_a_quality_that_is_no_number_has_diverged_even_if_the_run_did_not_say_so(tmp_path):
    text = "".join(
        f"{line}\n"
        for line in (
            '{"kind": "start", "method": "sgd", "seed": 1}',
            str(evaluation(10, 0.5)).replace("'", '"').replace("None", "null").replace("0.5,", "NaN,", 1),
            '{"kind": "end", "steps": 10, "wall_seconds": 1, "diverged": false}',
        )
    )
    assert "NaN" in text
    sgd = read_summary(write(tmp_path, configuration([method("sgd")]), SGD | {("sgd", 1): text})).methods[0]
    assert sgd.seeds("diverged") == (1,)


def test_a_world_of_one_has_no_ratio(tmp_path):
    nothing = {"fp32": {"up": 0, "down": 0}, "bf16": {"up": 0, "down": 0}}
    runs = {("sgd", 0): finished("sgd", 0, [0.1, 0.99], bytes_a_step=0.0)}
    settings = configuration([method("sgd")], seeds=[0], workers=1, baseline_bytes=nothing)
    sgd = read_summary(write(tmp_path, settings, runs)).methods[0]
    assert (sgd.times_less_than_fp32, sgd.times_less_than_bf16, sgd.saves_bytes) == (None, None, False)


def test_a_padded_bf16_exchange_does_not_pass_for_compression(sgd):
    assert not replace(sgd, times_less_than_bf16=1.0).saves_bytes
    assert not replace(sgd, times_less_than_bf16=1.01).saves_bytes


def test_neither_the_order_of_runs_nor_of_seeds_matters(tmp_path):
    configured, runs = load(realistic(tmp_path))
    expected = summarise(configured, runs)
    assert summarise(configured, reversed(runs)) == expected
    assert summarise(configured, runs[7:] + runs[:7]) == expected
    assert [run.seed for run in expected.methods[0].runs] == [0, 1, 2]
    shuffled = replace(configured, seeds=(2, 0, 1))
    assert summarise(shuffled, runs).methods == expected.methods


@settings(deadline=None, max_examples=25)
@given(qualities=st.lists(st.floats(0, 1), min_size=2, max_size=12), target=st.floats(0, 1), higher=st.booleans())
def test_first_crossing_agrees_with_numpy(tmp_path_factory, qualities, target, higher):
    directory = tmp_path_factory.mktemp("comparison")
    settings_ = configuration([method("sgd")], seeds=[0])
    settings_["task"] |= {"target": target, "higher_is_better": higher}
    runs = {("sgd", 0): finished("sgd", 0, qualities)}
    steps = read_summary(write(directory, settings_, runs)).methods[0].steps_to_target
    met = np.asarray(qualities) >= target if higher else np.asarray(qualities) <= target
    assert steps.values == ((10 * int(np.argmax(met)),) if met.any() else (None,))


def test_ranges_overlap_only_if_they_share_a_value(sgd):
    crossing = sgd.steps_to_target  # 10 to 30
    assert crossing.overlaps(replace(crossing, values=(30, 50)))
    assert not crossing.overlaps(replace(crossing, values=(31, 50)))
    assert not crossing.overlaps(replace(crossing, values=(1, 9)))


def test_importing_the_report_imports_nothing_heavy():
    code = (
        "import sys, thriftgrad.lab.summary, thriftgrad.lab.table, thriftgrad.lab.findings, thriftgrad.lab.report; "
        "print([name for name in ('torch', 'plotly', 'jinja2', 'sklearn', 'numba') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "[]"


def test_the_error_is_the_one_that_load_raises(tmp_path):
    with pytest.raises(RecordsError, match="There is no comparison"):
        read_summary(tmp_path)


def at(step, **measured):
    plain = {name: value for name, value in evaluation(step, 0.5).items() if name != "kind"}
    return Evaluation(**(plain | {"relative_error": None} | measured))


def test_means_leave_out_what_was_not_measured():
    found = means([at(0), at(10, variance=1.0, cosine=0.5, symbol_width_bits=3.0), at(20, variance=3.0, cosine=1.0)])
    assert (found.variance, found.cosine, found.symbol_width_bits) == (2, 0.75, 3)
    assert (found.relative_error, found.bias, found.bias_floor, found.biased) == (None, None, None, False)


def test_a_bias_is_free_of_its_noise():
    found = means([at(10, bias=0.5, bias_floor=0.4), at(20, bias=1.3, bias_floor=0.5)])
    assert found.bias == pytest.approx(np.sqrt((0.3**2 + 1.2**2) / 2))
    assert found.bias_floor == pytest.approx(np.sqrt((0.4**2 + 0.5**2) / 2))
    assert means([at(10, bias=0.3, bias_floor=0.4)]).bias == 0


@pytest.mark.parametrize(
    ("bias", "floor", "biased"),
    [(0.5, 0.0, True), (1e-7, 0.0, False), (0.0, 0.0, False), (1.13, 1.0, True), (1.1, 1.0, False), (0.9, 1.0, False)],
)
def test_a_bias_stands_out_from_half_the_noise_upwards_and_rounding_is_none(bias, floor, biased):
    assert means([at(10, bias=bias, bias_floor=floor)]).biased is biased


def test_many_evaluations_tell_a_smaller_bias_from_chance():
    biases = [1.04, 1.05, 1.06, 1.03, 1.05, 1.04, 1.06, 1.05]
    assert means([at(i, bias=each, bias_floor=1.0) for i, each in enumerate(biases)]).biased
    assert not means([at(i, bias=each, bias_floor=1.0) for i, each in enumerate(biases[:7])]).biased
    scattered = [1.2, 0.9, 1.1, 0.8, 1.15, 1.0, 0.95, 1.2]
    assert not means([at(i, bias=each, bias_floor=1.0) for i, each in enumerate(scattered)]).biased


def test_a_summary_means_over_all_evaluations_of_all_seeds(tmp_path):
    runs = {("a", seed): finished("a", seed, [0.1, 0.5], variance=1.0 + seed) for seed in range(3)}
    (a,) = read_summary(write(tmp_path, configuration([method("a")]), runs)).methods
    assert a.means.variance == 2
