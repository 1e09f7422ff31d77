"""Local updates beside methods that exchange gradients: one table, one report, and the same on real processes."""

import json

from cli.runs import SMALL, cells, essence
from thriftgrad.lab.load import load, read_configuration

SYNCHRONOUS = (
    "local_sgd(h=4)",
    "qsparse_local_sgd(fraction=0.01, h=4)",
    "diloco(h=10)",
    "sparse_loco(h=5)",
    "demo",
    "streaming_diloco(h=6, fragments=2)",
    "post_local_sgd(switch=3, h=4)",
)
SERVED = "qsparse_local_sgd(fraction=0.01, h=4, asynchronous=True)"


def test_they_stand_in_one_table_and_one_report(cli, tmp_path):
    asked = ("sgd", "local_sgd(h=8)", *SYNCHRONOUS[1:5], SERVED)
    code, out, err = cli("compare", *asked, *SMALL, "--target", "0.05", "--out", "out")
    assert (code, err) == (0, "")
    assert [row.label for row in read_configuration(tmp_path / "out").methods] == list(asked)
    assert all(run.status == "finished" for run in load(tmp_path / "out")[1])
    # 38,282 float32 in a ring of two at each step, at 2 of 20 steps, and at 2 of 20 again.
    up = dict(zip(asked, cells(tmp_path / "out")["link bytes per step", "up"], strict=True))
    assert (up["sgd"], up["local_sgd(h=8)"], up["diloco(h=10)"]) == ("153 kB", "15.3 kB", "15.3 kB")
    told = " ".join(out.split())
    assert "the model that the workers share, as of the last sync, is evaluated" in told
    assert "Asynchronous server: its own link, which carries what all workers send and get, is not counted." in told
    html = (tmp_path / "out" / "report.html").read_text()
    assert "For local updates it is the drift of a sync" in html
    for momentum in (
        "0.9 on each worker",
        "0.9 Nesterov on each worker",
        "AdamW&#39;s on each worker and 0.9 Nesterov",
    ):
        assert f"<dd>{momentum}" in html


def test_no_word_of_syncs_where_there_are_none(cli, tmp_path):
    _, out, _ = cli("compare", "sgd", *SMALL, "--steps", "1", "--out", "out")
    assert "sync" not in out
    assert "drift of a sync" not in (tmp_path / "out" / "report.html").read_text()


def test_what_no_sync_measured_is_not_measured(cli, tmp_path):
    cli("compare", "local_sgd(h=20)", "local_sgd(h=15)", *SMALL, "--steps", "30", "--out", "out")
    measured = {}
    for path in (tmp_path / "out" / "runs").iterdir():
        records = [json.loads(line) for line in path.read_text().splitlines()]
        measured[records[0]["method"]] = [
            (at["step"], at["relative_error"] is not None, at["payload_up_bytes"])
            for at in records
            if at["kind"] == "eval"
        ]
    model = 4 * 38_282
    assert measured["local-sgd-h-20"] == [(0, False, 0), (10, False, 0), (20, True, model), (30, False, model)]
    assert measured["local-sgd-h-15"] == [(0, False, 0), (10, False, 0), (20, False, model), (30, True, 2 * model)]


def test_on_real_processes_they_do_as_simulated(cli, tmp_path):
    asked = ["compare", *SYNCHRONOUS, *SMALL]
    code, out, err = cli(*asked, "--processes", "--out", "real")
    assert (code, err) == (0, "")
    assert "every worker is a real process on this machine" in " ".join(out.split())
    assert cli(*asked, "--out", "simulated").code == 0
    assert essence(tmp_path / "real") == essence(tmp_path / "simulated")
    assert cells(tmp_path / "real") == cells(tmp_path / "simulated")


def test_one_worker_synchronises_with_itself_and_sends_nothing(cli, tmp_path):
    code, _, err = cli("compare", "local_sgd(h=4)", SERVED, *SMALL, "--workers", "1", "--out", "out")
    assert (code, err) == (0, "")
    ups = cells(tmp_path / "out")["link bytes per step", "up"]
    assert ups[0] == "0 B"
    assert ups[1] != "0 B"  # the server is somebody else
