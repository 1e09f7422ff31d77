"""Runs: what is written, what is taken up again, and how learning rates are tuned."""

import json
import re
from dataclasses import replace
from statistics import fmean

import pytest

from lab.toys import looked_on, toy, trained
from thriftgrad import parse
from thriftgrad.lab import runner
from thriftgrad.lab.cluster import Simulated
from thriftgrad.lab.comparison import Comparison, ComparisonError, Request, prepare, resolve
from thriftgrad.lab.load import load, read_configuration
from thriftgrad.lab.runner import GRID, TUNING_SEED, execute, is_finished
from thriftgrad.lab.training import train, train_plain


def comparison(tmp_path, *methods, seeds=2, steps=20, tune=False, evaluate_every=10, on_sgd=False, **task):
    """A comparison of two workers on the toy."""
    request = Request(methods, "digits", 2, seeds, steps, ("100mbit,1ms",), None, tune, False, None, on_sgd)
    asked = resolve(request)
    settings = replace(asked.configuration, evaluate_every=evaluate_every)
    return prepare(Comparison(request, settings, toy(**task), asked.methods, asked.links), tmp_path)


def done(comparison, folder):
    signs = []
    execute(comparison, folder, Simulated(comparison.request.workers), signs.append)
    return signs


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path):
    return [
        {name: value for name, value in record.items() if "seconds" not in name and name != "time"}
        for record in records(path)
    ]


def test_the_records_are_what_training_yields_and_what_is_read_back(tmp_path):
    asked = comparison(tmp_path, "sgd", "qsgd")
    done(asked, tmp_path)
    written = records(tmp_path / "runs" / "qsgd-seed1.jsonl")
    assert [record["kind"] for record in written] == ["start", "eval", "eval", "eval", "end"]
    assert (written[0]["method"], written[0]["seed"]) == ("qsgd", 1)
    assert (written[-1]["steps"], written[-1]["diverged"]) == (20, False)
    expected = trained(asked.task, parse("qsgd"), steps=20, seed=1, evaluate_every=10, links=asked.links)
    for record, evaluation in zip(written[1:-1], expected, strict=True):
        assert (record["step"], record["loss"], record["quality"]) == (
            evaluation.step,
            evaluation.loss,
            evaluation.quality,
        )
        assert (record["up_bytes"], record["variance"]) == (evaluation.up_bytes, evaluation.variance)
        assert record["link_seconds"] == {"100mbit,1ms": evaluation.link_seconds["100mbit,1ms"]}
    configuration, runs = load(tmp_path)
    assert configuration == asked.configuration
    assert [(run.method, run.seed, run.status) for run in runs] == [
        ("sgd", 0, "finished"),
        ("sgd", 1, "finished"),
        ("qsgd", 0, "finished"),
        ("qsgd", 1, "finished"),
    ]
    assert all(len(run.evaluations) == 3 for run in runs)


def test_all_methods_do_one_seed_before_the_next_and_say_how_far_they_are(tmp_path):
    signs = done(comparison(tmp_path, "sgd", "qsgd"), tmp_path)
    assert list(dict.fromkeys(sign.label for sign in signs)) == [
        "seed 0: sgd",
        "seed 0: qsgd",
        "seed 1: sgd",
        "seed 1: qsgd",
    ]
    assert [(sign.done, sign.step) for sign in signs] == [(done, step) for done in range(4) for step in (0, 10, 20)]
    assert {(sign.steps, sign.total) for sign in signs} == {(20, 4)}
    assert signs[-1].quality == records(tmp_path / "runs" / "qsgd-seed1.jsonl")[-2]["quality"]


def test_what_is_finished_is_not_done_again(tmp_path):
    asked = comparison(tmp_path, "sgd", "qsgd")
    done(asked, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()}
    assert done(asked, tmp_path) == []
    assert {path: path.read_bytes() for path in (tmp_path / "runs").iterdir()} == before


def test_a_run_cut_short_is_begun_again_and_the_others_are_left(tmp_path):
    asked = comparison(tmp_path, "sgd", "qsgd", seeds=1)
    done(asked, tmp_path)
    whole = untimed(tmp_path / "runs" / "qsgd-seed0.jsonl")
    cut, other = (tmp_path / "runs" / f"{slug}-seed0.jsonl" for slug in ("qsgd", "sgd"))
    text, untouched = cut.read_bytes(), other.read_bytes()
    lines = [len(line) for line in text.splitlines(keepends=True)]
    in_the_middle = [sum(lines[:2]) + lines[2] // 2, lines[0] // 2, len(text) - 3]
    for at in [0, *in_the_middle, lines[0], sum(lines[:4]), len(text) - 1]:
        cut.write_bytes(text[:at])
        assert not is_finished(cut)
        signs = done(asked, tmp_path)
        assert {(sign.label, sign.done) for sign in signs} == {("seed 0: qsgd", 1)}
        kept = text[:at].count(b"\n")
        assert untimed(cut) == whole[:kept] + whole
        assert [run.status for run in load(tmp_path)[1]] == ["finished", "finished"]
        assert len(load(tmp_path)[1][1].evaluations) == 3
    assert other.read_bytes() == untouched


@pytest.mark.parametrize("line", ["rubbish", "[1]", "{}", "null", "\\xff"])
def test_a_corrupt_record_is_named(tmp_path, line):
    path = tmp_path / "runs" / "sgd-seed0.jsonl"
    asked = comparison(tmp_path, "sgd", seeds=1)
    done(asked, tmp_path)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line.encode("latin-1"), *lines[2:], b""]))
    sentence = (
        f"compare: {path}, line 2 is no record; delete the file and give the same command again to redo what it held."
    )
    with pytest.raises(ComparisonError, match=re.escape(sentence)):
        done(asked, tmp_path)


def test_a_run_that_diverges_is_written_down_as_one(tmp_path):
    def steep(model, batch):
        return (model.weight - 1).square().sum()

    bold = "Method(AllReduce(Identity()), learning_rate_scale=1e20)"
    asked = comparison(tmp_path, bold, seeds=1, loss=steep)
    done(asked, tmp_path)
    (path,) = (tmp_path / "runs").iterdir()
    assert records(path)[-1]["diverged"] is True
    assert records(path)[-1]["steps"] < 20
    assert records(path)[-2]["quality"] is None
    assert load(tmp_path)[1][0].status == "diverged"
    assert done(asked, tmp_path) == []


def quadratic(tmp_path, *methods, steps=20, scale=1.0, **task):
    """Half |w - 1|^2 of 300 weights: SGD without momentum at rate r keeps (1 - r)^2 of the loss each step."""

    def loss(model, batch):
        return scale * (model.weight - 1).square().sum() / 2

    return comparison(tmp_path, *methods, steps=steps, seeds=1, tune=True, evaluate_every=1, loss=loss, **task)


PLAIN = "Method(AllReduce(Identity()), momentum=0.0)"
BOLD = "Method(AllReduce(Identity()), momentum=0.0, learning_rate_scale=100.0)"


def test_tuning_takes_the_rate_with_the_lowest_training_loss(tmp_path):
    signs = done(quadratic(tmp_path, PLAIN), tmp_path)
    (row,) = read_configuration(tmp_path).methods
    grid = tuple(round(0.1 * factor, 6) for factor in GRID)
    assert row.tuning.grid == grid == (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    assert (row.tuning.steps, row.tuning.seed) == (10, TUNING_SEED)
    # The mean loss over the last five of ten steps, in closed form.
    assert row.tuning.loss == pytest.approx(
        [fmean(150 * (1 - rate) ** (2 * step) for step in range(5, 10)) for rate in grid], rel=1e-3
    )
    assert (row.learning_rate, row.tuning.edge) == (0.3, True)
    (path,) = (tmp_path / "runs").iterdir()
    assert records(path)[2]["loss"] == pytest.approx(150)
    assert records(path)[3]["loss"] == pytest.approx(150 * 0.7**2)
    tuning = [sign for sign in signs if sign.label.startswith("learning rate")]
    assert tuning[0].label == f"learning rate 0.0003: {PLAIN}"
    assert [(sign.done, sign.total) for sign in tuning] == [(done, 7) for done in range(7) for _ in range(11)]


def test_a_winner_inside_the_grid_is_no_edge_and_divergence_never_wins(tmp_path):
    # 30 times steeper: 0.1 and 0.3 jump from side to side ever further, 0.03 is the nearest to 1 / 30.
    asked = quadratic(tmp_path, PLAIN, scale=30.0, steps=100)
    done(asked, tmp_path)
    (row,) = read_configuration(tmp_path).methods
    assert (row.learning_rate, row.tuning.edge) == (0.03, False)
    assert row.tuning.loss[5] > 1e30
    assert row.tuning.loss[6] is None


def test_every_method_has_one_grid_whatever_its_own_rate(tmp_path):
    done(quadratic(tmp_path, PLAIN, BOLD), tmp_path)
    plain, bold = read_configuration(tmp_path).methods
    assert plain.tuning == bold.tuning
    assert plain.learning_rate == bold.learning_rate


def test_tuning_goes_on_where_it_was_cut_short(tmp_path, monkeypatch):
    asked = quadratic(tmp_path, PLAIN, BOLD)
    rates = []

    def counted(*args, **settings):
        if settings["seed"] == TUNING_SEED:
            rates.append(settings["learning_rate"])
            if len(rates) == 10:
                raise KeyboardInterrupt
        return train(*args, **settings)

    monkeypatch.setattr(runner, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        done(asked, tmp_path)
    assert all(row.tuning is None for row in read_configuration(tmp_path).methods)
    path = tmp_path / "tuning" / f"{asked.configuration.methods[1].slug}.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # two rates were done; the second is cut short
    done(asked, tmp_path)
    grid = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    assert rates == grid + grid[:3] + grid[1:]
    assert all(row.tuning is not None for row in read_configuration(tmp_path).methods)
    plain, bold = read_configuration(tmp_path).methods
    assert plain.tuning == bold.tuning


def test_tuned_once_is_tuned(tmp_path, monkeypatch):
    asked = quadratic(tmp_path, PLAIN)
    done(asked, tmp_path)
    tuned = replace(asked, configuration=read_configuration(tmp_path))
    before = (tmp_path / "comparison.json").read_bytes()
    assert done(tuned, tmp_path) == []
    assert (tmp_path / "comparison.json").read_bytes() == before


def test_tuning_looks_at_no_held_out_data(tmp_path):
    """A quality that would prefer the smallest rate changes nothing."""
    done(quadratic(tmp_path, PLAIN, evaluate=lambda model: float(model.weight.detach().sum())), tmp_path)
    assert read_configuration(tmp_path).methods[0].learning_rate == 0.3


def test_only_the_process_with_worker_0_writes(tmp_path):
    class Second(Simulated):
        writes = False

    asked = comparison(tmp_path, "sgd", seeds=1, tune=True)
    execute(asked, tmp_path, Second(2), lambda sign: None)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["comparison.json", "runs", "tuning"]
    assert read_configuration(tmp_path) == asked.configuration


def test_where_plain_sgd_trains_one_training_writes_the_runs_of_all_methods(tmp_path, monkeypatch):
    trainings = []

    def counted(task, methods, *args, **settings):
        trainings.append((len(methods), settings["seed"], settings["learning_rate"]))
        return train_plain(task, methods, *args, **settings)

    monkeypatch.setattr(runner, "train_plain", counted)
    asked = comparison(tmp_path, "top_k", "qsgd", "ef_sign_sgd", on_sgd=True)
    signs = done(asked, tmp_path)
    assert trainings == [(3, 0, 0.1), (3, 1, 0.1)]
    assert [(sign.label, sign.step, sign.done, sign.total) for sign in signs] == [
        (f"seed {seed}: plain SGD", step, 3 * seed, 6) for seed in (0, 1) for step in (0, 10, 20)
    ]
    methods = [parse(text) for text in ("top_k", "qsgd", "ef_sign_sgd")]
    expected = looked_on(asked.task, methods, steps=20, seed=1, evaluate_every=10, links=asked.links)
    for slug, evaluations in zip(("top-k", "qsgd", "ef-sign-sgd"), expected, strict=True):
        written = records(tmp_path / "runs" / f"{slug}-seed1.jsonl")
        assert [record["kind"] for record in written] == ["start", "eval", "eval", "eval", "end"]
        for record, at in zip(written[1:-1], evaluations, strict=True):
            assert (record["quality"], record["variance"], record["bias"]) == (at.quality, at.variance, at.bias)
            assert (record["coordinate_variance"], record["cosine"]) == (at.coordinate_variance, at.cosine)
    configuration, runs = load(tmp_path)
    assert configuration.protocol == "on-sgd"
    assert [row.learning_rate for row in configuration.methods] == [0.1] * 3  # plain SGD's
    assert [run.status for run in runs] == ["finished"] * 6


def test_an_onlooker_cut_short_is_done_again_and_the_others_are_left(tmp_path):
    asked = comparison(tmp_path, "sgd", "qsgd", "sign_sgd", seeds=1, on_sgd=True)
    done(asked, tmp_path)
    paths = sorted((tmp_path / "runs").iterdir())
    whole, text = untimed(paths[0]), paths[0].read_bytes()
    others = [path.read_bytes() for path in paths[1:]]
    paths[0].write_bytes(text[: len(text) // 2])
    kept = text[: len(text) // 2].count(b"\n")
    signs = done(asked, tmp_path)
    assert {(sign.label, sign.done, sign.total) for sign in signs} == {("seed 0: plain SGD", 2, 3)}
    assert untimed(paths[0]) == whole[:kept] + whole
    assert [path.read_bytes() for path in paths[1:]] == others
    assert done(asked, tmp_path) == []


def test_a_diverged_training_is_everybodys(tmp_path):
    asked = comparison(tmp_path, "sgd", "qsgd", seeds=1, on_sgd=True)
    rows = tuple(replace(row, learning_rate=3e38) for row in asked.configuration.methods)
    done(replace(asked, configuration=replace(asked.configuration, methods=rows)), tmp_path)
    assert [records(path)[-1]["diverged"] for path in (tmp_path / "runs").iterdir()] == [True, True]


def test_levels_survive_the_records(tmp_path):
    done(comparison(tmp_path, "AllGather(ALQ(bits=2, update_at=(0, 12)))", seeds=1), tmp_path)
    _, (run,) = load(tmp_path)
    assert [at.levels.version for at in run.evaluations] == [1, 2, 3]
    assert all(at.levels.values == (-1.0, 0.0, 1.0) for at in run.evaluations)
