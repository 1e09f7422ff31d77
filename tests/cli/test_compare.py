"""The main job, end to end."""

import re
import struct

import numpy as np
import pytest

from cli.runs import SMALL, cells, essence, files
from thriftgrad.lab.comparison import resolve
from thriftgrad.lab.load import load, read_configuration

LINKS = ("--link", "100mbit,1ms", "--link", "20mbit/100mbit,30ms")


def test_a_comparison_leaves_records_a_table_and_a_report(cli, tmp_path):
    result = cli("compare", "sgd", "qsgd(bits=2)", *SMALL, "--seeds", "2", *LINKS, "--target", "0.3", "--out", "out")
    assert (result.code, result.err) == (0, "")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in files(tmp_path / "out")) == [
        "comparison.json",
        "report.html",
        "runs/qsgd-bits-2-seed0.jsonl",
        "runs/qsgd-bits-2-seed1.jsonl",
        "runs/sgd-seed0.jsonl",
        "runs/sgd-seed1.jsonl",
    ]
    configuration, runs = load(tmp_path / "out")
    assert all(run.status == "finished" for run in runs)
    assert configuration.task.target == 0.3
    assert [(link.label, link.up_bits_per_second, link.down_bits_per_second) for link in configuration.links] == [
        ("100mbit,1ms", 1e8, 1e8),
        ("20mbit/100mbit,30ms", 2e7, 1e8),
    ]
    up, down, both = (cells(tmp_path / "out")["link bytes per step", name] for name in ("up", "down", "sum"))
    assert (up[0], down[0], both[0]) == ("153 kB", "153 kB", "306 kB")  # 38 282 float32, a ring of two
    for cell in ("sgd", "qsgd(bits=2)", *up, *down, *both):
        assert cell in result.out
    assert result.out.endswith("\nreport: out/report.html\n")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "qsgd(bits=2)" in html
    assert "thriftgrad compare sgd &#39;qsgd(bits=2)&#39; --workers 2" in html


def test_the_command_is_remembered_as_it_was_given(cli, tmp_path):
    cli("compare", "qsgd(bits=4)", *SMALL, "--out", "out")
    command = "thriftgrad compare 'qsgd(bits=4)' --workers 2 --seeds 1 --steps 20 --out out"
    assert read_configuration(tmp_path / "out").command == command


def test_the_same_command_again_does_nothing_new(cli, tmp_path):
    first = cli("compare", "sgd", "top_k", *SMALL)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-[0-9a-f]{8}", folder.name)
    before = files(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in before if path.name != "report.html"}
    assert cli("compare", "sgd", "top_k", *SMALL) == first
    assert files(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in before if path.name != "report.html"} == times


def test_a_method_named_twice_is_one_row(cli, tmp_path):
    cli("compare", "sgd", "sgd", *SMALL, "--out", "out")
    assert [row.label for row in read_configuration(tmp_path / "out").methods] == ["sgd"]


def test_a_method_that_diverges_is_a_row_and_no_crash(cli, tmp_path):
    bold = "Method(AllReduce(Identity()), learning_rate_scale=1e20)"
    code, out, err = cli("compare", "sgd", bold, *SMALL, "--out", "out")
    assert (code, err) == (0, "")
    assert "1 of 1 diverged" in out
    assert [run.status for run in load(tmp_path / "out")[1]] == ["finished", "diverged"]


def test_tuning_is_written_down(cli, tmp_path):
    asked = ("compare", "sgd", "sign_sgd", "--task", "logreg", *SMALL, "--tune", "--out", "out")
    code, _, err = cli(*asked)
    assert (code, err) == (0, "")
    sgd, sign = read_configuration(tmp_path / "out").methods
    assert sgd.tuning.grid == sign.tuning.grid
    assert (sgd.tuning.steps, sign.tuning.steps) == (10, 10)
    for row in (sgd, sign):
        tried = [loss for loss in row.tuning.loss if loss is not None]
        assert row.learning_rate == row.tuning.grid[row.tuning.loss.index(min(tried))]
    before = files(tmp_path)
    assert cli(*asked).code == 0
    assert files(tmp_path) == before


def write_idx(path, array):
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def own_mnist(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "own"
    folder.mkdir()
    for part, count in (("train", 96), ("t10k", 32)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = rng.integers(0, 60, (count, 8, 8), dtype=np.uint8)
        images[np.arange(count), labels * 2] += 180  # the row says which it is
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


def test_data_of_ones_own(cli, tmp_path, own_mnist):
    asked = ("compare", "sgd", "--task", "mnist", "--data-dir", own_mnist, *SMALL, "--out", "out")
    code, out, _ = cli(*asked)
    assert code == 0
    assert "Task mnist" in out
    (run,) = load(tmp_path / "out")[1]
    assert run.evaluations[-1].quality > 0.8  # learnt, from 4 classes
    # Other data under the same command is another comparison.
    write_idx(own_mnist / "t10k-labels-idx1-ubyte", np.zeros(32, dtype=np.uint8))
    code, _, err = cli(*asked)
    assert code == 2
    assert "out holds another comparison (task.provenance.sha256 is '" in err


@pytest.mark.parametrize("task", ["logreg", "text"])
def test_the_other_embedded_tasks(cli, tmp_path, task):
    assert cli("compare", "sgd", "ef_sign_sgd", "--task", task, *SMALL, "--steps", "2", "--out", "out").code == 0
    assert all(run.status == "finished" for run in load(tmp_path / "out")[1])


def test_workers_share_the_samples_and_seeds_differ(cli, tmp_path):
    cli("compare", "sgd", *SMALL, "--seeds", "2", "--workers", "3", "--out", "out")
    found = essence(tmp_path / "out")
    assert found["sgd", 0] != found["sgd", 1]
    assert [at[1] for at in found["sgd", 0][1]] == [0, 960, 1920]


def test_the_demo_is_a_comparison_of_six_methods_with_its_report_where_it_is_run(cli, monkeypatch):
    asked = []
    monkeypatch.setattr("thriftgrad.cli._run", lambda context, *what: asked.append(what))
    assert cli("demo") == (0, "", "")
    ((request, folder, report),) = asked
    assert (str(folder), str(report)) == ("runs/demo", "report.html")
    assert (len(request.methods), request.task, request.workers, request.seeds) == (6, "digits", 4, 2)
    resolve(request)  # every method reads, and fits the task
