"""Every check on fabricated evidence: the verdict it should give."""

from functools import partial

import pytest

from lab.reproduce.fabricated import probed, rows, study
from thriftgrad.lab.reproduce import (
    check_accuracy,
    check_coding,
    check_grids,
    check_levels,
    check_time,
    check_variance,
)
from thriftgrad.lab.reproduce.claims import Reasons, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence

HOLDS, PART, NOT, UNSETTLED = Verdict.HOLDS, Verdict.IN_PART, Verdict.CONTRADICTED, Verdict.NOT_MEASURABLE
REASONS = Reasons(holds="h", contradicted="c", in_part="p", unsettled="u")
NOISE = (1.0, 1.1, 0.9)


def verdict(check, folder):
    found = check(Evidence(folder))
    assert found.why == REASONS.of(found.verdict)
    assert found.ours.endswith(".")
    return found.verdict


@pytest.mark.parametrize(("a", "expected"), [(0.5, HOLDS), (2.0, NOT)])
def test_less_variance(tmp_path, a, expected):
    rows(tmp_path, "g", [probed("s", "a", i, a * n * (i + 1)) for i, n in enumerate(NOISE)] + _base("s", "b"))
    check = check_variance.less("g", "s", [("a", "b")], REASONS, ["a", "b"])
    assert verdict(check, tmp_path) is expected
    assert len(check(Evidence(tmp_path)).tables[0].rows) == 2


def test_less_variance_that_the_seeds_do_not_settle(tmp_path):
    found = [probed("s", "a", i, v * (i + 1)) for i, v in enumerate((0.5, 2.0, 0.9))]
    rows(tmp_path, "g", found + _base("s", "b"))
    assert verdict(check_variance.less("g", "s", [("a", "b")], REASONS, ["a"]), tmp_path) is UNSETTLED


@pytest.mark.parametrize(("a", "expected"), [(1.0, HOLDS), (2.0, NOT), (0.5, NOT), (1.25, UNSETTLED)])
def test_alike(tmp_path, a, expected):
    found = [probed("s", "a", i, a * (1 + n / 50) * (i + 1)) for i, n in enumerate((-1, 0, 1))]
    rows(tmp_path, "g", found + _base("s", "b"))
    assert verdict(check_variance.alike("g", "s", "a", "b", REASONS), tmp_path) is expected


def test_less_along_an_axis_counts_from_its_least_place(tmp_path):
    found = []
    for x, a in ((2, 3.0), (3, 0.5), (4, 0.4)):
        found += [probed("s", "a", i, a * n * (i + 1), x) for i, n in enumerate(NOISE)] + _base("s", "b", x)
    rows(tmp_path, "g", found)
    check = partial(check_variance.less_along, "g", "s", "a", "b", REASONS, ["a", "b"], "bits")
    assert verdict(check(3), tmp_path) is HOLDS
    assert verdict(check(2), tmp_path) is PART
    (chart,) = check(3)(Evidence(tmp_path)).charts
    assert [curve.x for curve in chart.curves] == [(2.0, 3.0, 4.0)] * 2


@pytest.mark.parametrize(
    ("variances", "expected"), [((0, 1, 2, 4), HOLDS), ((0, 4, 2, 1), PART), ((0.1, 4, 2, 1), NOT)]
)
def test_variance_grows_from_an_exact_bucket(tmp_path, variances, expected):
    found = [
        probed("s", "a", i, v * n, x) for x, v in zip((1, 2, 4, 8), variances, strict=True) for i, n in enumerate(NOISE)
    ]
    rows(tmp_path, "g", found)
    assert verdict(check_variance.grows_from_exact("g", "s", ["a"], REASONS), tmp_path) is expected
    falling = check_variance.falls("g", "s", ["a"], REASONS, "bucket")
    assert verdict(falling, tmp_path) is (NOT if variances[-1] == 4 else HOLDS)


@pytest.mark.parametrize(("exponent", "expected"), [(0.5, HOLDS), (1.0, NOT), (0.0, NOT)])
def test_the_power_of_the_bucket(tmp_path, exponent, expected):
    found = [probed("s", "a", i, x**exponent * n, x) for x in (1, 64, 256, 1024) for i, n in enumerate(NOISE)]
    rows(tmp_path, "g", found)
    assert verdict(check_variance.power_of_bucket("g", "s", "a", 0.3, 0.7, REASONS), tmp_path) is expected


@pytest.mark.parametrize(
    ("qualities", "match", "better"),
    [
        ([0.901, 0.902, 0.900], HOLDS, UNSETTLED),
        ([0.95, 0.951, 0.949], NOT, HOLDS),
        ([0.85, 0.851, 0.849], NOT, NOT),
        ([0.95, 0.85, 0.90], UNSETTLED, UNSETTLED),
    ],
)
def test_accuracies(tmp_path, qualities, match, better):
    study(tmp_path, "s", {"a": qualities, "b": [0.9, 0.902, 0.901]})
    assert verdict(check_accuracy.matches("s", [("a", "b")], REASONS), tmp_path) is match
    assert verdict(check_accuracy.better("s", [("a", "b")], REASONS), tmp_path) is better


def test_no_worse_by_more_than_a_margin(tmp_path):
    study(tmp_path, "s", {"a": [0.901, 0.899, 0.900], "b": [0.9, 0.9, 0.9]})
    assert verdict(check_accuracy.better("s", [("a", "b")], REASONS, by=-0.01), tmp_path) is HOLDS


@pytest.mark.parametrize(("bits", "expected"), [(16.0, PART), (2.0, NOT)])
def test_total_bits(tmp_path, bits, expected):
    # 4 workers; 100 bytes up and 300 down a step: a message is 100 / 3 bytes, of 50 parameters
    study(tmp_path, "s", {"a": [0.9, 0.9]}, parameters=50)
    assert verdict(check_accuracy.total_bits("s", "a", bits, REASONS), tmp_path) is expected


def test_coding(tmp_path):
    found = [probed(check_coding.PACKED, "a", i, 1.0) for i in range(3)]
    for name, bits in (("Huffman", 2.2), ("Elias", 8.0)):
        found += [probed(f"coded: {name}", "a", i, 1.0, bits=bits * n, symbol_bits=bits) for i, n in enumerate(NOISE)]
    rows(tmp_path, "g", found)
    assert verdict(check_coding.shorter("g", "a", ("Huffman",), REASONS), tmp_path) is HOLDS
    assert verdict(check_coding.shorter("g", "a", ("Elias",), REASONS), tmp_path) is NOT
    assert verdict(check_coding.shorter("g", "a", ("Huffman", "Elias"), REASONS), tmp_path) is PART
    table = check_coding.coded_table(Evidence(tmp_path), "g")
    assert table.columns == ("method", "packed", "entropy of single symbols", "Elias", "Huffman")


def test_one_method_s_code_is_judged_and_the_others_are_shown(tmp_path):
    found = []
    for label, bits in (("far", 2.5), ("near", 2.05)):  # the entropy is 2 bits
        found += [probed(check_coding.PACKED, label, i, 1.0) for i in range(3)]
        found += [probed("coded: Huffman", label, i, 1.0, symbol_bits=bits + i / 1000) for i in range(3)]
    rows(tmp_path, "g", found)
    near, far = (check_coding.near_entropy("g", "Huffman", label, 0.1, REASONS) for label in ("near", "far"))
    assert (verdict(near, tmp_path), verdict(far, tmp_path)) == (HOLDS, NOT)
    finding = near(Evidence(tmp_path))
    assert finding.judged == ("near",)
    assert [row[0] for row in finding.tables[0].rows] == ["near", "far"]


@pytest.mark.parametrize(("measured", "exact", "expected"), [(0.9, 1.0, HOLDS), (0.9, 1.3, NOT), (1.1, 1.0, NOT)])
def test_worst_cases(tmp_path, measured, exact, expected):
    base = {"s": 2, "d": 64, "exact": exact, "bound": 1.2, "gaussian": 0.1}
    rows(tmp_path, "w", [base | {"draw": i, "adversarial": measured * (1 + n / 1000)} for i, n in enumerate(NOISE)])
    assert verdict(check_grids.variance_bound("w", REASONS), tmp_path) is expected


@pytest.mark.parametrize(("bits", "nonzeros", "expected"), [(90, 9, HOLDS), (110, 9, PART), (110, 11, NOT)])
def test_code_lengths(tmp_path, bits, nonzeros, expected):
    base = {"s": 2, "d": 64, "bits_bound": 100, "nonzeros_bound": 10}
    rows(tmp_path, "c", [base | {"draw": i, "bits": bits + i / 10, "nonzeros": nonzeros + i / 100} for i in range(3)])
    assert verdict(check_grids.code_length("c", REASONS), tmp_path) is expected


@pytest.mark.parametrize(("variance", "expected"), [(10.0, HOLDS), (300.0, NOT)])
def test_a_bound_without_zero(tmp_path, variance, expected):
    found = [
        {
            "shape": "normal",
            "bits": 3,
            "method": method,
            "include_zero": zero,
            "draw": i,
            "relative_variance": value * n,
        }
        for method in check_grids.FIXED_GRIDS
        for zero, value in ((True, 1.0), (False, variance))
        for i, n in enumerate(NOISE)
    ]
    rows(tmp_path, "z", found)
    assert verdict(check_grids.bound_without_zero("z", {("NUQSGD", 3): 31.0}, REASONS), tmp_path) is expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, HOLDS), (0.1, NOT)])
def test_time(tmp_path, seconds, expected):
    base = {"bucket": 64, "decode_seconds": 0.0, "update_seconds": 0.0, "every_step_seconds": 0.0, "nbytes": 1000}
    found = [base | {"label": "a", "draw": i, "encode_seconds": seconds * n} for i, n in enumerate(NOISE)]
    found += [base | {"label": "b", "draw": i, "encode_seconds": 0.05 * n} for i, n in enumerate(NOISE)]
    rows(tmp_path, "t", found)
    check = check_time.faster("t", 2000, [(("a", 64), ("b", 64))], [], REASONS)
    assert verdict(check, tmp_path) is expected
    assert check(Evidence(tmp_path)).tables[0].rows[0][2] == "4.00"  # 8 * 1000 / 2000 bits


def _base(sweep, label, x=0.0):
    """Variances that differ from seed to seed by more than methods do."""
    return [probed(sweep, label, i, 1.0 * (i + 1), x) for i in range(3)]


@pytest.mark.parametrize(("error", "expected"), [(0.5, HOLDS), (3.0, NOT)])
def test_the_whole_variance_of_a_step(tmp_path, error, expected):
    rows(tmp_path, "g", [probed("s", "a", i, error * n) for i, n in enumerate(NOISE)])
    check = check_variance.total("g", "s", "a", 2.0, REASONS, ["a"])
    assert verdict(check, tmp_path) is expected
    assert check(Evidence(tmp_path)).ours.startswith(f"In units of full precision's: a {1 + error:.3g} [")


@pytest.mark.parametrize(("samples", "expected"), [(0.8, HOLDS), (0.99, PART)])
def test_a_gap_between_studies(tmp_path, samples, expected):
    study(tmp_path, "many", {"a": [0.9, 0.901, 0.902]}, workers=4)
    study(tmp_path, "steps", {"b": [0.8, 0.801, 0.802]}, workers=1)
    study(tmp_path, "samples", {"b": [samples, samples, samples + 0.001]}, workers=1)
    check = check_accuracy.gap(("many", "a"), [("steps", "b"), ("samples", "b")], REASONS)
    assert verdict(check, tmp_path) is expected


def test_cheaper_symbols(tmp_path):
    found = []
    for label, bits in (("a", 1.0), ("b", 2.0)):
        found += [probed(check_coding.PACKED, label, i, 1.0) for i in range(3)]
        found += [probed("coded: Huffman", label, i, 1.0, bits=bits * n) for i, n in enumerate(NOISE)]
    rows(tmp_path, "g", found)
    assert verdict(check_coding.cheaper("g", "Huffman", "a", "b", REASONS), tmp_path) is HOLDS
    assert verdict(check_coding.cheaper("g", "Huffman", "b", "a", REASONS), tmp_path) is NOT


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, HOLDS), (10.0, NOT)])
def test_the_overhead_of_updates(tmp_path, seconds, expected):
    base = {"label": "a", "bucket": 64, "encode_seconds": 0.0, "decode_seconds": 0.0, "nbytes": 1}
    rows(tmp_path, "t", [base | {"draw": i, "update_seconds": seconds * n} for i, n in enumerate(NOISE)])
    study(tmp_path, "s", {"a": [0.9, 0.9]})  # 10 ms of compute a step
    check = check_time.overhead("t", ("a", 64), "s", "a", 1e-4, 0.005, REASONS)
    assert verdict(check, tmp_path) is expected


def test_the_published_levels_are_no_optimum(tmp_path):
    check = check_levels.converged(REASONS)
    assert verdict(check, tmp_path) is NOT
    (table,) = check(Evidence(tmp_path)).tables
    shown = {name: levels for name, levels, _ in table.rows}
    assert shown["ALQ, converged"] == "0.0035 0.0115 0.0272 1.0000"  # the specification's test vector
    assert shown["ALQ, published figure"] == "0.0048 0.0180 0.1252 1.0000"
    assert shown["ALQ, the published solver again"].startswith("0.0048 0.0180 0.12")
