"""Killed anywhere, a comparison ends as if it had never been: the same qualities, the same bytes."""

import random
import shutil
import signal

import pytest

from cli.runs import SMALL, begun, cells, essence, files, lines, wait_until

ASKED = ("compare", "sgd", "qsgd", "--task", "logreg", *SMALL, "--seeds", "2", "--out")


@pytest.fixture
def whole(cli, tmp_path):
    assert cli(*ASKED, "whole").code == 0
    return tmp_path / "whole"


def test_cut_at_any_byte(cli, tmp_path, whole):
    last = "qsgd-seed1.jsonl"
    text = (whole / "runs" / last).read_bytes()
    chosen = random.Random(0)
    ends = [at for at, byte in enumerate(text) if byte == ord("\n")]
    for at in [0, 1, ends[0], ends[1] + 1, len(text) - 1, *(chosen.randrange(len(text)) for _ in range(4))]:
        shutil.copytree(whole, tmp_path / "cut")
        (tmp_path / "cut" / "report.html").unlink()
        (tmp_path / "cut" / "runs" / last).write_bytes(text[:at])
        assert cli(*ASKED, "cut").code == 0
        assert essence(tmp_path / "cut") == essence(whole)
        assert cells(tmp_path / "cut") == cells(whole)
        shutil.rmtree(tmp_path / "cut")


def test_any_files_missing(cli, tmp_path, whole):
    before = files(whole)
    for path in (whole / "runs" / "sgd-seed1.jsonl", whole / "runs" / "qsgd-seed0.jsonl", whole / "report.html"):
        path.unlink()
    remaining = files(whole)
    assert cli(*ASKED, "whole").code == 0
    after = files(whole)
    assert after.keys() == before.keys()
    assert all(after[path] == remaining[path] for path in remaining)
    assert cli(*ASKED, "other").code == 0
    assert essence(whole) == essence(tmp_path / "other")


def test_a_real_interrupt_and_a_real_kill(cli, tmp_path):
    asked = ["compare", "sgd", "qsgd", "--task", "logreg", "--workers", "2", "--seeds", "1", "--steps", "500", "--out"]
    folder = tmp_path / "killed"
    first, second = (folder / "runs" / f"{slug}-seed0.jsonl" for slug in ("sgd", "qsgd"))

    process = begun([*asked, "killed"], tmp_path)
    wait_until(lambda: lines(second) > 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err == "thriftgrad: interrupted; what is finished is kept, and the same command goes on from there.\n"
    assert not (folder / "report.html").exists()
    finished, attempt = first.read_bytes(), lines(second)
    assert b'"kind": "end"' in finished
    assert b'"kind": "end"' not in second.read_bytes()

    process = begun([*asked, "killed"], tmp_path)
    wait_until(lambda: lines(second) > attempt + 2)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL

    assert cli(*asked, "killed").code == 0
    assert first.read_bytes() == finished
    assert cli(*asked, "straight").code == 0
    assert essence(folder) == essence(tmp_path / "straight")
    assert cells(folder) == cells(tmp_path / "straight")
