"""What a finished comparison says, without what the clock says."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from thriftgrad.lab.load import load
from thriftgrad.lab.summary import read_summary
from thriftgrad.lab.table import columns

# Whatever started the tests may ignore interrupts, as a shell does for jobs in the background.
FROM_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from thriftgrad.cli import main
main()
"""

SMALL = ("--workers", "2", "--seeds", "1", "--steps", "20")


def essence(folder):
    """Every number of every run that must not depend on when and in how many sittings it was done."""
    return {
        (run.method, run.seed): (
            run.status,
            [
                (
                    at.step,
                    at.samples,
                    at.loss,
                    at.quality,
                    at.up_bytes,
                    at.down_bytes,
                    at.payload_up_bytes,
                    at.relative_error,
                    at.variance,
                )
                for at in run.evaluations
            ],
        )
        for run in load(folder)[1]
    }


def cells(folder):
    """The table's cells but for those in seconds."""
    return {
        (column.group, column.name): column.cells
        for column in columns(read_summary(folder))
        if "seconds" not in column.group and "ms" not in column.group
    }


def files(folder):
    """Everything in the folder, to the byte."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def begun(arguments, folder):
    """The command line in a process of its own, as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", FROM_A_TERMINAL, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_until(holds: Callable[[], object], seconds: float = 60):
    """Return once it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def processes_about(folder):
    """The processes whose command line names this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
