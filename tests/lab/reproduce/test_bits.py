"""Bits to a target and what is read off them, on runs made up."""

import json
from math import log

import pytest

from lab.fabricate import configuration, evaluation, method, start, write
from thriftgrad.lab.reproduce import check_bits
from thriftgrad.lab.reproduce.bits import (
    Target,
    as_published,
    bits_text,
    from_server,
    saving,
    spent,
    steps_spent,
    to_server,
    uplink,
)
from thriftgrad.lab.reproduce.claims import Reasons, Verdict
from thriftgrad.lab.reproduce.evidence import Evidence
from thriftgrad.lab.reproduce.labels import Setting

SGD, TOP = "SGD·H=1·EF-·sync", "TopK[k=8]·H=4·EF+·sync"
REASONS = Reasons(holds="Yes.", contradicted="No.")


def study(folder, found, name="main", **changes):
    """By label, each seed's qualities at steps 8, 16 ... and kilobytes up a step; down is twice that."""
    runs, rows = {}, []
    for number, (label, (nbytes, seeds)) in enumerate(found.items()):
        rows.append(method(label, f"m{number}"))
        for seed, qualities in enumerate(seeds):
            at = [
                evaluation(8 * i, quality, payload_up_bytes=8 * i * nbytes, payload_down_bytes=16 * i * nbytes)
                for i, quality in enumerate([0.1, *qualities])
            ]
            end = {"kind": "end", "steps": at[-1]["step"], "wall_seconds": 1.0, "diverged": False}
            runs[f"m{number}", seed] = [start(f"m{number}", seed), *at, end]
    seeds = list(range(len(next(iter(found.values()))[1])))
    write(folder / "studies" / name, configuration(rows, seeds=seeds, **changes), runs)
    return Evidence(folder).study(name)


def test_bits_are_those_of_the_first_evaluation_at_the_target(tmp_path):
    runs = study(tmp_path, {SGD: (1000, [[0.5, 0.9, 0.8], [0.6, 0.7, 0.95]]), TOP: (10, [[0.2, 0.3, 0.9], [0.1] * 3])})
    fixed = Target("0.9", fixed=0.9)
    assert spent(runs, SGD, fixed, uplink) == [8 * 16_000, 8 * 24_000]
    assert spent(runs, TOP, fixed, uplink) == [8 * 240, None]
    assert spent(runs, SGD, fixed, steps_spent) == [16, 24]
    assert bits_text(spent(runs, TOP, fixed, uplink)) == "not reached (1 of 2)"
    # SGD ends at the means 2.2 / 3 and 2.25 / 3.
    near = Target("near", baseline=SGD, tolerance=0.2)
    assert near.thresholds(runs) == pytest.approx([2.2 / 3 - 0.2, 2.25 / 3 - 0.2])
    assert spent(runs, SGD, near, steps_spent) == [16, 8]


def test_a_target_is_not_met_before_something_is_sent(tmp_path):
    runs = study(tmp_path, {SGD: (1000, [[0.5, 0.9]])})
    assert spent(runs, SGD, Target("0.05", fixed=0.05), steps_spent) == [8]  # the untrained model has 0.1


def test_less_can_be_better(tmp_path):
    task = {"name": "logreg", "description": "", "quality": "f - f*", "higher_is_better": False, "target": 0.1}
    runs = study(tmp_path, {SGD: (1, [[0.09, 0.03, 0.01]])}, task=task | {"provenance": {}})
    assert spent(runs, SGD, Target("0.05", fixed=0.05), steps_spent) == [16]
    mean = (0.09 + 0.03 + 0.01) / 3
    assert Target("near", baseline=SGD, tolerance=0.5).thresholds(runs) == pytest.approx([mean + 0.5])


def test_the_paper_counts_no_headers(tmp_path):
    runs = study(tmp_path, {SGD: (1000, [[0.9]]), TOP: (100, [[0.9]])})
    fixed = Target("0.9", fixed=0.9)
    assert spent(runs, SGD, fixed, as_published(SGD)) == [8 * 8000]
    assert spent(runs, TOP, fixed, as_published(TOP)) == [8 * (800 - 2 * 20)]  # two syncs in eight steps


def test_what_goes_through_a_server_is_told_apart():
    # Of four workers three send 100 bytes; the server hands in its answer of 40 once, and three get it.
    at = evaluation(1, 0.5, payload_up_bytes=(3 * 100 + 40) / 4, payload_down_bytes=(3 * 100 + 3 * 40) / 4)
    seen = type("At", (), at)
    assert to_server(seen, 4) == 800
    assert from_server(seen, 4) == 320


def test_a_saving_is_a_geometric_mean_and_needs_every_seed():
    assert saving([800.0, 1600.0], [100.0, 100.0]).mean == pytest.approx((8 * 16) ** 0.5)
    assert saving([800.0, 1600.0], [100.0, None]) is None


def test_fewer_bits_hold_are_contradicted_or_not_settled(tmp_path):
    reach = [[0.9, 0.9], [0.9, 0.9], [0.9, 0.9]]
    study(tmp_path, {SGD: (1000, reach), TOP: (100, reach)})
    targets = (Target("0.9", fixed=0.9),)
    times = 8000 / (800 - 40)
    for bounds, verdict in (((10, 11), "HOLDS"), ((11, 20), "CONTRADICTED")):
        finding = check_bits.fewer("main", SGD, TOP, targets, bounds, REASONS)(Evidence(tmp_path))
        assert finding.verdict is Verdict[verdict]
        assert f"{times:.3g}" in finding.ours
    beyond = (Target("0.99", fixed=0.99),)
    finding = check_bits.fewer("main", SGD, TOP, beyond, (1, 20), REASONS)(Evidence(tmp_path))
    assert finding.verdict is Verdict.NOT_MEASURABLE
    assert "not reached by every seed" in finding.ours
    assert "not reached (3 of 3)" in json.dumps(finding.tables[0].rows)


def test_savings_that_multiply_are_told_from_those_that_do_not(tmp_path):
    arms = {
        frozenset(): SGD,
        frozenset({"sparsify"}): Setting("TopK", 8).label,
        frozenset({"quantise"}): Setting("Sign").label,
        frozenset({"sparsify", "quantise"}): Setting("SignTopK", 8).label,
    }
    reach = [[0.9, 0.9]] * 3
    for name, whole, verdict in (("yes", 1000, "HOLDS"), ("no", 5000, "CONTRADICTED")):
        # A step without compression takes 100 000 bytes; 20 more head each compressed message.
        each = dict(zip(arms.values(), (100_000, 10_020, 10_020, whole + 20), strict=True))
        study(tmp_path, {label: (nbytes, reach) for label, nbytes in each.items()}, name)
        finding = check_bits.multiply(name, arms, Target("0.9", fixed=0.9), REASONS)(Evidence(tmp_path))
        assert finding.verdict is Verdict[verdict]
        *_, last = finding.tables[0].rows
        assert last[0] == "quantise + sparsify"
        product, interaction = log(100), log(100_000 / whole) - log(100)
        assert [float(cell.split()[0]) for cell in last[3:]] == pytest.approx(
            [2.718281828**product, 2.718281828**interaction], rel=0.01
        )


def test_downlinks_are_counted_both_ways(tmp_path):
    label = "TopK[k=8]·H=4·EF+·sync, "
    reach = [[0.9]] * 3
    runs = {
        "SGD": (1000, reach),  # below: up and down told apart as through a server of four workers
        f"{label}forwarded": (10, reach),
        f"{label}dense": (500, reach),
    }
    study(tmp_path, runs)
    channels = {each: f"{label}{each}" for each in ("forwarded", "dense")}
    check = check_bits.downlinks("main", "SGD", channels, (Target("0.9", fixed=0.9),), 0.5, REASONS)
    finding = check(Evidence(tmp_path))
    lines = {line[0].split(" (")[0]: line for line in finding.tables[0].rows}
    assert lines["forwarded"][2:5] == ("0.64 [0.64, 0.64]", "1.28 [1.28, 1.28]", "1.92 [1.92, 1.92]")
    # n up = (n - 1) U + D with n = 4, up = 4000 and down = 8000 bytes: D = 4 (8000 - 4000) / 2, U = (16000 - D) / 3.
    assert lines["dense"][2].startswith("21.3 ")
    assert lines["dense"][3].startswith("64 ")
    # SGD's is told apart as "dense" is: (85.3 / 1.92) / (21.3 / 0.64) = 4 / 3 of the uplink's saving is left, and all.
    assert finding.verdict is Verdict.HOLDS
    for share, verdict in ((1.2, Verdict.IN_PART), (1.4, Verdict.CONTRADICTED)):
        check = check_bits.downlinks("main", "SGD", channels, (Target("0.9", fixed=0.9),), share, REASONS)
        assert check(Evidence(tmp_path)).verdict is verdict


def test_a_margin_decides_what_costs_no_quality(tmp_path):
    study(tmp_path, {SGD: (1, [[0.9] * 3] * 3), TOP: (1, [[0.88] * 3, [0.881] * 3, [0.879] * 3])})
    for margin, verdict in ((0.03, "HOLDS"), (0.01, "CONTRADICTED")):
        finding = check_bits.loses_little({"main": (TOP, SGD)}, {"main": margin}, REASONS)(Evidence(tmp_path))
        assert finding.verdict is Verdict[verdict]
