"""A comparison on real processes: torchrun starts one gloo rank per worker, and they tell how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thriftgrad.lab.comparison import ComparisonError
from thriftgrad.lab.runner import Progress, Report

LOG = "processes.log"
PATIENCE_SECONDS = 20.0


def launch(folder: Path, workers: int, report: Report) -> None:
    """Run the comparison that ``folder`` holds on ``workers`` local processes.

    Raises ``ComparisonError`` with the first error they tell of if they fail.
    """
    log = folder / LOG
    failed = torchrun("thriftgrad.lab.worker", str(folder), workers, log, lambda said: report(Progress(**said)))
    if failed:
        raise ComparisonError(f"compare: the processes failed ({failed}); all they said is in {log}.")


def torchrun(module: str, argument: str, workers: int, log: Path, hear: Callable[[dict[str, Any]], None]) -> str | None:
    """Run a module on ``workers`` local processes, hear what they say, and return why they failed, or None.

    What the processes print to their error streams goes to ``log``. They do not outlive this process: they leave when
    their standard input, a pipe from here, is closed, however this process ends.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", module, argument]
    errors = []
    with (
        log.open("w") as written,
        # In a session of their own, for the terminal's interrupt to reach this process alone.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        ) as processes,
    ):
        assert processes.stdin is not None
        assert processes.stdout is not None
        try:
            for line in processes.stdout:
                match json.loads(line) if line.startswith("{") else None:
                    case {"error": error}:
                        errors.append(error)
                    case dict(said):
                        hear(said)
            processes.wait()
        finally:
            processes.stdin.close()
            try:
                processes.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                processes.kill()
    if processes.returncode:
        return errors[0].rstrip(".") if errors else f"exit code {processes.returncode}"
    return None


def say(message: Progress | Exception | dict[str, Any]) -> None:
    """How a process tells its parent: one line, short enough for a pipe to take in one piece."""
    match message:
        case Progress():
            known = asdict(message)
        case Exception():
            known = {"error": f"{type(message).__name__}: {message}"[:999]}
        case _:
            known = message
    os.write(sys.stdout.fileno(), (json.dumps(known) + "\n").encode())
