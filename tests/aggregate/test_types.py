"""What may be all-reduced is a type: a type checker says no before the program runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """\
from thriftgrad import QSGD, AllReduce, Cast, Identity, RandomK, Sign, TopK

AllReduce(Identity())
AllReduce(RandomK(k=1))
AllReduce(RandomK(k=1) >> Cast("bf16"))
AllReduce(TopK(k=1))  # refused
AllReduce(Sign())  # refused
AllReduce(RandomK(k=1) >> QSGD(bits=4))  # refused
AllReduce(TopK(k=1) >> Cast("bf16"))  # refused
"""
CONFIG = """\
[mypy]
follow_imports = silent
[mypy-torch.*]
follow_imports = skip
"""


def test_the_type_checker_refuses_to_all_reduce_what_is_not_linear(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    refused = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# refused")]
    assert [int(line.split(":")[1]) for line in errors] == refused, done.stdout + done.stderr
    assert all('Argument 1 to "AllReduce" has incompatible type' in line for line in errors)
