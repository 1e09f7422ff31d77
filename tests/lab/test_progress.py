"""The bars: on the error stream, gone at the end, and readable at 80 columns."""

import io
import re

import pytest
from rich.console import Console

from thriftgrad.lab import progress
from thriftgrad.lab.progress import shown_progress
from thriftgrad.lab.runner import Progress

LONG = "seed 2: AllGather(ErrorFeedback(TopK(fraction=0.01) >> QSGD(bits=4, bucket=512)))"


@pytest.fixture
def terminal(monkeypatch):
    """What an 80-column terminal on the error stream is sent."""
    sent = io.StringIO()

    def console(stderr):
        assert stderr
        return Console(file=sent, width=80, force_terminal=True, color_system=None)

    monkeypatch.setattr(progress, "Console", console)
    return sent


def last_frame(sent):
    """The two lines drawn last before the bars were wiped."""
    lines = [re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", sent.getvalue())]
    return [line.rstrip() for line in lines if line.strip()][-2:]


@pytest.mark.parametrize("label", ["seed 1: sgd", LONG])
def test_both_bars_show_name_count_and_quality(terminal, label):
    with shown_progress() as report:
        report(Progress("seed 0: sgd", 200, 200, 2, 6, 0.5))
        report(Progress(label, 50, 200, 3, 6, 0.91234))
    runs, current = last_frame(terminal)
    assert runs.startswith("all runs")
    assert "3/6" in runs
    assert current.startswith(label[:20])
    assert "━" in current
    assert re.search(r"50/200 +quality 0.9123 +0:00:0\d$", current)
    assert len(current) <= 80


def test_no_quality_is_shown_where_there_is_none(terminal):
    with shown_progress() as report:
        report(Progress("seed 0: sgd", 200, 200, 2, 6, None))
    assert "quality" not in "".join(last_frame(terminal))


def test_the_bars_are_wiped_at_the_end(terminal):
    with shown_progress() as report:
        report(Progress("seed 0: sgd", 1, 2, 0, 1, None))
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")


def test_nothing_is_sent_where_nobody_watches(capfd):
    with shown_progress() as report:
        report(Progress("seed 0: sgd", 1, 2, 0, 1, None))
    assert capfd.readouterr() == ("", "")
