"""A comparison on real processes: one gloo rank per worker, which tell how far they are.

torchrun starts them on this machine's loopback; in the lab each has a network of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thriftgrad.lab.comparison import ComparisonError
from thriftgrad.lab.launch import RankFailedError
from thriftgrad.lab.namespaces import Network
from thriftgrad.lab.runner import Progress, Report

LOG = "processes.log"
PATIENCE_SECONDS = 20.0


WORKER = "thriftgrad.lab.worker"


def launch(
    folder: Path, workers: int, report: Report, network: Network | None = None, trace: Path | None = None
) -> None:
    """Run the comparison that ``folder`` holds on ``workers`` local processes, behind the links of a network if given.

    ``trace``: where rank 0 writes what it did when.
    Raises ``ComparisonError`` with the first error they tell of if they fail.
    """
    log, arguments = folder / LOG, [str(path) for path in (folder, trace) if path is not None]

    def hear(said: dict[str, Any]) -> None:
        report(Progress(**said))

    if network is None:
        failed = torchrun(WORKER, arguments, workers, log, hear)
    else:
        failed = behind_links(network, WORKER, arguments, log, hear)
    if failed:
        raise ComparisonError(f"compare: the processes failed ({failed}); all they said is in {log}.")


def torchrun(
    module: str, arguments: Sequence[str], workers: int, log: Path, hear: Callable[[dict[str, Any]], None]
) -> str | None:
    """Run a module on ``workers`` local processes, hear what they say, and return why they failed, or None.

    What the processes print to their error streams goes to ``log``. They do not outlive this process: they leave when
    their standard input, a pipe from here, is closed, however this process ends.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    command += ["-m", module, *arguments]
    listener = Listener(hear)
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
                listener.take(line)
            processes.wait()
        finally:
            processes.stdin.close()
            try:
                processes.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                processes.kill()
    return listener.failure(f"exit code {processes.returncode}") if processes.returncode else None


def behind_links(
    network: Network, module: str, arguments: Sequence[str], log: Path, hear: Callable[[dict[str, Any]], None]
) -> str | None:
    """The same on every rank of a network."""
    listener = Listener(hear)
    with log.open("w") as written:

        def take(rank: int, stream: str, line: str) -> None:
            if stream == "stdout":
                listener.take(line)
            else:
                written.write(f"[{rank}] {line}\n")

        try:
            network.run([sys.executable, "-m", module, *arguments], hear=take)
        except RankFailedError as error:
            return listener.failure(f"rank {error.rank} {error.how}")
    return None


class Listener:
    """Hears what processes ``say`` among other output."""

    def __init__(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self._hear = hear
        self._errors: list[str] = []

    def take(self, line: str) -> None:
        """One line of a process's output."""
        match json.loads(line) if line.startswith("{") else None:
            case {"error": error}:
                self._errors.append(error)
            case dict(said):
                self._hear(said)

    def failure(self, otherwise: str) -> str:
        """The first error they have told of, which the others follow from."""
        return self._errors[0].rstrip(".") if self._errors else otherwise


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
