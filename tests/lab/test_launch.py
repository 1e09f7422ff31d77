"""Ranks, here without any network: who is heard, who is to blame, and that nobody stays."""

import os
import sys
import time

import pytest

from cli.runs import processes_about, wait_until
from thriftgrad.lab import launch
from thriftgrad.lab.launch import LAST_LINES, RankFailedError, run_ranks


def run(*programs, **settings):
    """Each program on a rank of its own; the folder's name is in every command line."""
    commands = [[sys.executable, "-c", program] for program in programs]
    return run_ranks(commands, [os.environ | {"RANK": str(rank)} for rank in range(len(programs))], **settings)


def test_every_line_is_heard_and_output_is_kept():
    heard = []
    first, second = run(
        "import sys; print('a'); print('b'); print('aside', file=sys.stderr)",
        "import os; print(os.environ['RANK'], end='')",
        hear=lambda *line: heard.append(line),
    )
    assert (first.rank, first.output, second.rank, second.output) == (0, "a\nb", 1, "1")
    assert sorted(heard) == [(0, "stderr", "aside"), (0, "stdout", "a"), (0, "stdout", "b"), (1, "stdout", "1")]
    assert 0 < first.seconds < 60


def test_the_rank_that_fails_first_is_to_blame_and_all_are_stopped(tmp_path):
    waits = f"import time; folder = {str(tmp_path)!r}; print('waiting'); time.sleep(60)"
    fails = f"folder = {str(tmp_path)!r}; import sys; sys.exit('so far so good\\nit broke')"
    with pytest.raises(RankFailedError) as caught:
        run(waits, fails, waits)
    assert (caught.value.rank, caught.value.code, caught.value.lines) == (1, 1, ("so far so good", "it broke"))
    assert str(caught.value) == (
        "rank 1 ended with exit code 1, and all were stopped; its last lines:\nso far so good\nit broke"
    )
    assert processes_about(tmp_path) == []


def test_only_the_last_lines_are_shown():
    with pytest.raises(RankFailedError) as caught:
        run("import sys; print(*range(100), sep='\\n'); sys.exit(7)")
    assert caught.value.code == 7
    assert caught.value.lines == tuple(map(str, range(100 - LAST_LINES, 100)))


def test_a_signal_is_told_as_a_shell_tells_it():
    with pytest.raises(
        RankFailedError, match=r"^rank 0 was ended by SIGKILL, and all were stopped; it had said"
    ) as caught:
        run("import os; os.kill(os.getpid(), 9)")
    assert (caught.value.code, caught.value.lines) == (137, ())


def test_who_takes_too_long_is_stopped(tmp_path):
    stays = f"import time; folder = {str(tmp_path)!r}; time.sleep(60)"
    with pytest.raises(TimeoutError, match=r"^ranks 1, 2 were still running after 0.5 s.$"):
        run("pass", stays, stays, timeout_seconds=0.5)
    assert processes_about(tmp_path) == []


def test_who_will_not_leave_is_killed_and_so_are_children(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE_SECONDS", 0.1)
    child = f"import time; folder = {str(tmp_path)!r}; time.sleep(60)"
    stays = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]); print('ready'); time.sleep(60)"
    )

    def interrupted(*line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stays, hear=interrupted)
    wait_until(lambda: not processes_about(tmp_path), seconds=10)


def test_standard_input_says_nothing_and_closes():
    start = time.monotonic()
    with pytest.raises(RankFailedError):
        run("import sys; sys.stdin.read(); print('closed')", "import sys; sys.exit(1)")
    assert time.monotonic() - start < launch.PATIENCE_SECONDS  # it left by itself
