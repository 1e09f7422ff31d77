"""A comparison on real processes: torchrun starts one gloo rank per worker, and rank 0 tells how far they are."""

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


def launch(folder: Path, workers: int, report: Report) -> None:
    """Run the comparison that ``folder`` holds on ``workers`` local processes.

    What the processes print to their error streams goes to ``processes.log`` in the folder.
    Raises ``ComparisonError`` with the last line of it if they fail. An interrupt stops them all.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", "thriftgrad.lab.worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / LOG).open("w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("{"):
                    report(Progress(**json.loads(line)))
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if code:
        raise ComparisonError(
            f"compare: the processes failed with exit code {code} ({_reason(folder / LOG)}); "
            f"all they said is in {folder / LOG}."
        )


def say(progress: Progress) -> None:
    """How a process tells its parent."""
    sys.stdout.write(json.dumps(asdict(progress)) + "\n")
    sys.stdout.flush()


def _reason(log: Path) -> str:
    """The line that names the error: the last one that looks like "SomethingError: ..."."""
    lines = [line.split("]:", 1)[-1].strip() for line in log.read_text().splitlines()]
    errors = [line for line in lines if line.split(":", 1)[0].endswith("Error")]
    return next((line for line in reversed(errors) if "ChildFailedError" not in line), "no error was printed")
