"""The slow-network lab from the command line; where no network can be built, the sentence that says so."""

import sys

import pytest

from cli.runs import SMALL, begun, processes_about, wait_until
from cli.test_bad_input import one_sentence
from lab.networks import mine, namespaces, possible, refusal
from thriftgrad.lab.load import load

# Three all-reduces of 2 MB: on each of two links, 6 MB each way.
TRAINING = """
import sys
import torch
import torch.distributed as dist
from thriftgrad import Ledger
from thriftgrad.comm import all_reduce, run

dist.init_process_group("gloo")
ledger = Ledger()
for _ in range(3):
    total = run(all_reduce(torch.ones(500_000)), observe=ledger)
print("rank", dist.get_rank(), "has", total[0].item())
print("aside", file=sys.stderr)
dist.destroy_process_group()
"""


def refused(result):
    """Where there can be no network: that sentence, and nothing else."""
    assert one_sentence(result) == f"thriftgrad: {refusal()}\n"


def test_ranks_behind_links_and_their_books(cli, tmp_path):
    (tmp_path / "train.py").write_text(TRAINING)
    result = cli("lab", "--workers", "2", "--link", "200mbit", "--", sys.executable, "train.py")
    if not possible():
        refused(result)
        return
    code, out, err = result
    assert code == 0
    assert out.startswith("rank 0 has 2.0\n")
    assert sorted(err.splitlines()) == ["[1] aside", "[1] rank 1 has 2.0", "aside"]
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("0 ", "1 "))]
    assert [row[0] for row in rows] == ["0", "1"]
    for row in rows:
        assert row[-7:-3] == ["6.27", "MB", "6.27", "MB"]  # 6 MB, 1.0456 times
        assert [abs(float(each.rstrip("%"))) < 5 for each in (row[-3], row[-1])] == [True, True]
    assert "2 ranks, each behind a link of 200mbit" in out
    assert mine() == []


def test_the_exit_code_of_a_rank_that_fails_and_its_last_lines_in_one_block(cli):
    program = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else sys.exit('it broke\\nfor good')"
    result = cli("lab", "--workers", "2", "--link", "unlimited", sys.executable, "-c", program)
    if not possible():
        refused(result)
        return
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.endswith(
        "thriftgrad: lab: rank 1 ended with exit code 1, and all were stopped; its last lines:\nit broke\nfor good\n"
    )
    assert mine() == []


def test_an_interrupt_stops_all_and_is_a_sentence(tmp_path):
    if possible():
        program = f"import time; folder = {str(tmp_path / 'x')!r}; time.sleep(60)"
        process = begun(["lab", "--workers", "2", "--link", "unlimited", sys.executable, "-c", program], tmp_path)
        wait_until(lambda: len(processes_about(tmp_path / "x")) == 3)
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (2, "")
        assert err == "thriftgrad: lab: interrupted; all ranks were stopped, and their network is gone.\n"
        assert (processes_about(tmp_path / "x"), namespaces(process.pid)) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lab"], "Missing argument 'command'; see thriftgrad lab --help."),
        (["lab", "--workers", "0", "--", "true"], "lab: it takes at least one worker, got workers=0."),
        (["lab", "--link", "fast", "--", "true"], '"20mbit/100mbit" (up/down) or "unlimited", got \'fast\'.'),
        (["lab", "--", "pyhton", "train.py"], "lab: there is no command 'pyhton' here; give what every rank is to run"),
        (["lab", "--bogus", "true"], "No such option: --bogus"),
        (["compare", "sgd", "--lab", "fast"], '"20mbit/100mbit" (up/down) or "unlimited", got \'fast\'.'),
        (["compare", "sgd", "--lab", "unlimited"], "a link without a limit has no model, got 'unlimited'; name one"),
        (["compare", "sgd", "--lab", "1gbit", "--link", "1mbit"], "models one link, 1gbit, got --link too; leave one"),
        (["compare", "sgd", "--lab", "1gbit", "--on-sgd"], "and with --on-sgd none does, got --lab 1gbit too; leave"),
        (["compare", "LocalMethod(AsyncServer(Sign()), Every(1))", "--lab", "1gbit"], "those of 'LocalMethod(Async"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence_and_nothing_is_written(cli, tmp_path, arguments, sentence):
    assert sentence in one_sentence(cli(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_in_the_lab_is_measured_and_modelled(cli, tmp_path):
    asked = ["compare", "sgd", "local_sgd(h=5)", *SMALL, "--steps", "10", "--lab", "100mbit", "--out", "real"]
    result = cli(*asked)
    if not possible():
        refused(result)
        assert list(tmp_path.iterdir()) == []
        return
    code, out, err = result
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "measured" in said
    assert "off by" in said
    assert "every worker is a real process behind a link of 100mbit, shaped both ways" in said
    configuration, runs = load(tmp_path / "real")
    (link,) = configuration.links
    assert (configuration.mode, link.label) == ("lab", "100mbit")
    assert link.up_bits_per_second == link.down_bits_per_second == pytest.approx(100e6 * 1448 / 1514)
    assert 0 < link.latency_seconds < 1
    for run in runs:
        last = run.evaluations[-1]
        # Nobody gets bytes faster than the link lets them through.
        assert last.waited_seconds > 0.9 * 8 * last.down_bytes / 100e6
        assert last.link_seconds["100mbit"] > 8 * last.down_bytes / 100e6
    assert mine() == []


def test_a_failing_comparison_in_the_lab_says_why(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("thriftgrad.lab.processes.WORKER", "thriftgrad.lab.no_such_worker")
    result = cli("compare", "sgd", *SMALL, "--lab", "100mbit", "--out", "real")
    if not possible():
        refused(result)
        return
    sentence = one_sentence(result)
    assert "compare: the processes failed (rank " in sentence
    assert sentence.endswith("ended with exit code 1); all they said is in real/processes.log.\n")
    assert "No module named thriftgrad.lab.no_such_worker" in (tmp_path / "real" / "processes.log").read_text()
