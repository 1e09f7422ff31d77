"""Help comes at once, because nothing heavy is imported for it, and reads well at 80 columns."""

import subprocess
import sys

import pytest

COMMANDS = ["compare", "demo", "report", "explain", "advise", "lab", "methods"]
HEAVY = {"torch", "numpy", "sklearn", "plotly", "numba", "triton", "jinja2", "thriftgrad.core", "thriftgrad.lab"}

ASK_FOR_ALL_HELP = f"""
import sys
from thriftgrad.cli import main
for arguments in [[], ["--help"], *([command, "--help"] for command in {COMMANDS!r})]:
    try:
        main(arguments)
    except SystemExit as ended:
        assert not ended.code, ended.code
print("imported:", *sorted({HEAVY!r} & set(sys.modules)))
"""


def test_no_help_imports_anything_heavy():
    ended = subprocess.run(
        [sys.executable, "-c", ASK_FOR_ALL_HELP], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "imported:"
    assert ended.stdout.count("Usage: thriftgrad") == 2 + len(COMMANDS)
    assert ended.stderr == ""


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)])
def test_help_fits_80_columns_and_cuts_nothing_off(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = cli(*command, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "``" not in out


def test_every_command_is_in_the_help(cli):
    out = cli("--help").out
    assert all(f"│ {command} " in out for command in COMMANDS)
    assert out == cli().out


def test_the_defaults_are_in_the_help(cli):
    words = " ".join(cli("compare", "--help").out.replace("│", " ").split())
    for default in ("digits", "4", "3", "(the task's)", "10mbit,10ms, 100mbit,1ms, 1gbit,0.1ms", "(runs/TASK-DIGEST)"):
        assert f"[default: {default}]" in words
