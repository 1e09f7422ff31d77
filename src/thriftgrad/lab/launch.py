"""One process per rank, watched: when one fails all are stopped, and none outlives whoever started them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import IO, Literal

PATIENCE_SECONDS = 5.0
LAST_LINES = 20

Stream = Literal["stdout", "stderr"]
Hear = Callable[[int, Stream, str], None]
"""Is told of each line: rank, stream, the line without its end. It is called by whoever runs the ranks."""

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Runs what follows so that the kernel kills it when the launcher is gone, however that ended."""

_LOOK_SECONDS = 0.1


class RankFailedError(RuntimeError):
    """A rank ended with another exit code than 0; the others have been stopped."""

    def __init__(self, rank: int, code: int, lines: Sequence[str]) -> None:
        self.rank, self.code, self.lines = rank, code, tuple(lines)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = "\n".join(lines) or "(it said nothing)"
        super().__init__(f"rank {rank} {how}, and all were stopped; its last lines:\n{said}")


@dataclass(frozen=True)
class Ended:
    """What a rank did: how long it ran, and all lines of its standard output."""

    rank: int
    seconds: float
    output: str


def run_ranks(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]],
    hear: Hear | None = None,
    timeout_seconds: float | None = None,
) -> tuple[Ended, ...]:
    """Start one process per command, wait for all, and return how they ended, in rank order.

    Their standard input is a pipe that says nothing and closes when they are to leave. Raises ``RankFailedError`` as
    soon as one fails and ``TimeoutError`` after ``timeout_seconds``; then, and on any other exception, all are stopped.
    """
    said: queue.SimpleQueue[tuple[int, Stream, str | None]] = queue.SimpleQueue()
    last = [deque[str](maxlen=LAST_LINES) for _ in commands]
    outputs: list[list[str]] = [[] for _ in commands]
    ended: dict[int, float] = {}
    running: list[subprocess.Popen[str]] = []
    start = monotonic()

    def take(rank: int, stream: Stream, line: str) -> None:
        last[rank].append(line)
        if stream == "stdout":
            outputs[rank].append(line)
        if hear is not None:
            hear(rank, stream, line)

    try:
        for rank, (command, environment) in enumerate(zip(commands, environments, strict=True)):
            running.append(_start(command, environment))
            for stream, pipe in (("stdout", running[-1].stdout), ("stderr", running[-1].stderr)):
                threading.Thread(target=_read, args=(rank, stream, pipe, said), daemon=True).start()
        open_pipes = 2 * len(running)
        while len(ended) < len(running) or open_pipes:
            with suppress(queue.Empty):
                rank, stream, line = said.get(timeout=_LOOK_SECONDS)
                if line is not None:
                    take(rank, stream, line)
                    continue
                open_pipes -= 1
            for rank, process in enumerate(running):
                if rank in ended or process.poll() is None:
                    continue
                ended[rank] = monotonic() - start
                if process.returncode:
                    _drain(said, take)
                    raise RankFailedError(rank, process.returncode, last[rank])
            if timeout_seconds is not None and monotonic() - start > timeout_seconds:
                raise TimeoutError(f"the ranks were stopped after {timeout_seconds:g} s.")
            if len(ended) == len(running) and _is_quiet(said, open_pipes):
                break  # a child of theirs holds the pipe open and says nothing
    finally:
        stop(running)
    return tuple(Ended(rank, ended[rank], "\n".join(outputs[rank])) for rank in range(len(running)))


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ask each process group to leave, and kill what has not left in time."""
    for process in processes:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        _signal(process, signal.SIGTERM)
    until = monotonic() + PATIENCE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - monotonic()))
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DIE_WITH_PARENT, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=dict(environment),
        # A group of its own: the terminal's interrupt reaches the launcher alone, which then stops everybody.
        start_new_session=True,
    )


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To the whole group: the process may have children."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _read(rank: int, stream: Stream, pipe: IO[str], said: queue.SimpleQueue[tuple[int, Stream, str | None]]) -> None:
    with pipe:
        for line in pipe:
            said.put((rank, stream, line.rstrip("\n")))
    said.put((rank, stream, None))


def _drain(said: queue.SimpleQueue[tuple[int, Stream, str | None]], take: Hear) -> None:
    """Hear what is still on its way from processes that have ended."""
    while True:
        try:
            rank, stream, line = said.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return
        if line is not None:
            take(rank, stream, line)


def _is_quiet(said: queue.SimpleQueue[tuple[int, Stream, str | None]], open_pipes: int) -> bool:
    return open_pipes > 0 and said.empty()
