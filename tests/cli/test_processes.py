"""Real gloo processes under torchrun: the simulation's numbers, one writer, and no orphans."""

import json
import re
import signal

from cli.runs import SMALL, begun, cells, essence, lines, processes_about, wait_until

METHODS = ("sgd", "qsgd", "sign_sgd", "top_k", "power_sgd", "ScatterReduce(QSGD(bits=4), QSGD(bits=4))")


def under_way(folder, *methods, steps="20"):
    """The command, once it has begun its first run on two ranks."""
    process = begun(["compare", *methods, *SMALL, "--steps", steps, "--processes", "--out", str(folder)], folder.parent)
    wait_until(lambda: lines(folder / "runs" / "sgd-seed0.jsonl") > 1)
    assert len(processes_about(folder)) == 4  # this command, torchrun and two ranks
    return process


def test_an_interrupt_ends_them_all(tmp_path):
    process = under_way(tmp_path / "real", "sgd", steps="100000")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err == "thriftgrad: interrupted; what is finished is kept, and the same command goes on from there.\n"
    assert processes_about(tmp_path / "real") == []


def test_killed_they_leave_and_resumed_they_do_as_simulated(cli, tmp_path):
    folder = tmp_path / "real"
    process = under_way(folder, *METHODS)
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not processes_about(folder), seconds=30)
    assert not list((folder / "runs").glob("scatterreduce*"))  # they did not stay to finish

    asked = ["compare", *METHODS, *SMALL]
    code, out, err = cli(*asked, "--processes", "--out", folder, "--trace", "trace.json")
    assert (code, err) == (0, "")
    traced = json.loads((tmp_path / "trace.json").read_text())
    assert out.endswith(f"trace: trace.json ({traced['otherData']['summary']})\n")
    steps = len([event for event in traced["traceEvents"] if event.get("cat") == "backward"])
    assert 20 * (len(METHODS) - 1) <= steps <= 20 * len(METHODS)  # of the runs that were not done before
    assert re.match(rf"{steps} steps; per step .* ms of backward, 0.00 ms of communication hidden", out.split("(")[-2])
    assert "every worker is a real process on this machine" in " ".join(out.split())
    assert processes_about(folder) == []
    assert cli(*asked, "--out", "simulated").code == 0
    assert essence(folder) == essence(tmp_path / "simulated")
    assert cells(folder) == cells(tmp_path / "simulated")
    # One rank writes.
    assert all(path.read_text().count('"kind": "end"') == 1 for path in (folder / "runs").iterdir())
