"""What a parent hears of its processes, and says of their failures."""

import json
import re
import subprocess
import sys

import pytest

from thriftgrad.lab import processes
from thriftgrad.lab.comparison import ComparisonError, Request, prepare, resolve
from thriftgrad.lab.processes import LOG, launch, say
from thriftgrad.lab.runner import Progress


def standing_in(monkeypatch, program):
    """Have this Python program run in torchrun's place."""
    popen = subprocess.Popen

    def start(command, **settings):
        return popen([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(processes.subprocess, "Popen", start)


def test_a_rank_that_fails_is_one_sentence_with_its_error_and_the_log(tmp_path):
    request = Request(("sgd",), "digits", 2, 1, 5, (), None, False, True, None)
    prepare(resolve(request), tmp_path)
    path = tmp_path / "comparison.json"
    settings = json.loads(path.read_text())
    settings["request"]["methods"] = ["AllReduce(TopK(k=3))"]  # what the parent checks, a rank stumbles over
    path.write_text(json.dumps(settings))
    with pytest.raises(ComparisonError) as caught:
        launch(tmp_path, 2, lambda sign: None)
    sentence = str(caught.value)
    assert sentence.startswith(
        "compare: the processes failed (ComparisonError: AllReduce needs a linear compressor, and"
    )
    assert sentence.endswith(f"; all they said is in {tmp_path / LOG}.")
    assert "Traceback" in (tmp_path / LOG).read_text()
    assert "Error: AllReduce needs a linear compressor" in (tmp_path / LOG).read_text()


def test_progress_and_the_first_error_are_heard_among_other_output(tmp_path, monkeypatch):
    standing_in(
        monkeypatch,
        "import sys\n"
        "print('hello')\n"
        'print(\'{"label": "seed 0: sgd", "step": 1, "steps": 2, "done": 0, "total": 4, "quality": null}\')\n'
        'print(\'{"error": "ValueError: the cause"}\')\n'
        'print(\'{"error": "RuntimeError: what followed from it"}\')\n'
        "print('a complaint', file=sys.stderr)\n"
        "sys.exit(3)",
    )
    heard = []
    with pytest.raises(ComparisonError, match=re.escape("the processes failed (ValueError: the cause); all they said")):
        launch(tmp_path, 2, heard.append)
    assert heard == [Progress("seed 0: sgd", 1, 2, 0, 4, None)]
    assert (tmp_path / LOG).read_text() == "a complaint\n"


def test_a_death_without_a_word(tmp_path, monkeypatch):
    standing_in(monkeypatch, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ComparisonError, match=re.escape("the processes failed (exit code -9); all they said")):
        launch(tmp_path, 2, lambda sign: None)


def test_processes_that_will_not_leave_are_killed(tmp_path, monkeypatch):
    standing_in(
        monkeypatch,
        "import time\n"
        'print(\'{"label": "", "step": 1, "steps": 2, "done": 0, "total": 4, "quality": 1.0}\', flush=True)\n'
        "time.sleep(60)",
    )
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.1)

    def interrupted(sign):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path, 2, interrupted)


def test_a_message_is_one_short_line_whatever_it_says(capfd):
    say(ValueError("two\nlines " + 5000 * "x"))
    say(Progress("seed 0: sgd", 1, 2, 0, 4, 0.5))
    error, progress = capfd.readouterr().out.splitlines()
    assert len(error) < 4096  # what a pipe takes in one piece
    assert json.loads(error)["error"].startswith("ValueError: two\nlines xxx")
    assert Progress(**json.loads(progress)) == Progress("seed 0: sgd", 1, 2, 0, 4, 0.5)
