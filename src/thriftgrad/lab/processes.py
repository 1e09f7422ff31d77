"""A comparison on real processes: torchrun starts one gloo rank per worker, and they tell how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from thriftgrad.lab.comparison import ComparisonError
from thriftgrad.lab.runner import Progress, Report

LOG = "processes.log"
PATIENCE_SECONDS = 20.0


def launch(folder: Path, workers: int, report: Report) -> None:
    """Run the comparison that ``folder`` holds on ``workers`` local processes.

    What the processes print to their error streams goes to ``processes.log`` in the folder. They do not outlive this
    process: they leave when their standard input, a pipe from here, is closed, however this process ends.
    Raises ``ComparisonError`` with the first error they tell of if they fail.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", "thriftgrad.lab.worker", str(folder)]
    errors = []
    with (
        (folder / LOG).open("w") as log,
        # In a session of their own, for the terminal's interrupt to reach this process alone.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        ) as torchrun,
    ):
        assert torchrun.stdin is not None
        assert torchrun.stdout is not None
        try:
            for line in torchrun.stdout:
                match json.loads(line) if line.startswith("{") else None:
                    case {"error": error}:
                        errors.append(error)
                    case dict(progress):
                        report(Progress(**progress))
            torchrun.wait()
        finally:
            torchrun.stdin.close()
            try:
                torchrun.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                torchrun.kill()
    if torchrun.returncode:
        reason = errors[0].rstrip(".") if errors else f"exit code {torchrun.returncode}"
        raise ComparisonError(f"compare: the processes failed ({reason}); all they said is in {folder / LOG}.")


def say(message: Progress | Exception) -> None:
    """How a process tells its parent: one line, short enough for a pipe to take in one piece."""
    if isinstance(message, Progress):
        known = asdict(message)
    else:
        known = {"error": f"{type(message).__name__}: {message}"[:999]}
    os.write(sys.stdout.fileno(), (json.dumps(known) + "\n").encode())
