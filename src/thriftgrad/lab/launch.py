"""One process per rank, watched: when one fails all are stopped, and none outlives whoever started them."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import IO, Literal, NamedTuple

PATIENCE_SECONDS = 5.0
"""How long a rank that is asked to leave may take."""

LAST_LINES = 20
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Runs what follows so that the kernel kills it when the launcher is gone, however that ended."""

Stream = Literal["stdout", "stderr"]
Hear = Callable[[int, Stream, str], None]
"""Is told of each line: rank, stream, the line without its end. It is called by whoever runs the ranks."""

_QUIET_SECONDS = 0.3


class RankFailedError(RuntimeError):
    """A rank ended with another exit code than 0; the others have been stopped.

    ``code``: as a shell tells it, 128 + n for signal n. ``lines``: the last that it said.
    """

    def __init__(self, rank: int, returned: int, lines: Sequence[str]) -> None:
        self.rank, self.lines = rank, tuple(lines)
        self.code = returned if returned >= 0 else 128 - returned
        self.how = f"ended with exit code {returned}" if returned >= 0 else f"was ended by {_signal_name(-returned)}"
        said = "its last lines:\n" + "\n".join(lines) if lines else "it had said nothing."
        super().__init__(f"rank {rank} {self.how}, and all were stopped; {said}")


@dataclass(frozen=True)
class Ended:
    """What a rank did: how long it ran, and all lines of its standard output."""

    rank: int
    seconds: float
    output: str


class _Line(NamedTuple):
    rank: int
    stream: Stream
    text: str


class _Left(NamedTuple):
    rank: int
    code: int


_Told = queue.SimpleQueue[_Line | _Left]


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
    told: _Told = queue.SimpleQueue()
    last = [deque[str](maxlen=LAST_LINES) for _ in commands]
    outputs: list[list[str]] = [[] for _ in commands]
    seconds: dict[int, float] = {}
    running: list[subprocess.Popen[str]] = []
    start = monotonic()

    def take(line: _Line) -> None:
        last[line.rank].append(line.text)
        if line.stream == "stdout":
            outputs[line.rank].append(line.text)
        if hear is not None:
            hear(*line)

    try:
        for command, environment in zip(commands, environments, strict=True):
            running.append(_start(command, environment))
        for rank, process in enumerate(running):
            _watch(rank, process, told)
        while len(seconds) < len(running):
            left = None if timeout_seconds is None else start + timeout_seconds - monotonic()
            try:
                match told.get(timeout=None if left is None else max(0.0, left)):
                    case _Line() as line:
                        take(line)
                    case _Left(rank, 0):
                        seconds[rank] = monotonic() - start
                    case _Left(rank, code):
                        _hear_out(told, take)
                        raise RankFailedError(rank, code, last[rank])
            except queue.Empty:
                still = ", ".join(str(rank) for rank in range(len(running)) if rank not in seconds)
                raise TimeoutError(f"ranks {still} were still running after {timeout_seconds:g} s.") from None
        _hear_out(told, take)
    finally:
        stop(running)
    return tuple(Ended(rank, seconds[rank], "\n".join(outputs[rank])) for rank in range(len(running)))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP, which have been obeyed already by whoever cleans up; so do its commands."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # the others hear no signals
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if (handler := signal.getsignal(number)) is not None:  # None: not Python's, so it could not be put back
                before[number] = handler
                signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@undisturbed()
def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ask each process and its children to leave, and kill what has not left in time."""
    for process in processes:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        _tell(process, signal.SIGTERM)
    until = monotonic() + PATIENCE_SECONDS
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - monotonic()))
    for process in processes:
        _tell(process, signal.SIGKILL)
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


def _watch(rank: int, process: subprocess.Popen[str], told: _Told) -> None:
    """Have threads tell of every line, and of the end at once: the first to fail is the one to blame."""
    assert process.stdout is not None
    assert process.stderr is not None

    def read(stream: Stream, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                told.put(_Line(rank, stream, line.rstrip("\n")))

    threading.Thread(target=read, args=("stdout", process.stdout), daemon=True).start()
    threading.Thread(target=read, args=("stderr", process.stderr), daemon=True).start()
    threading.Thread(target=lambda: told.put(_Left(rank, process.wait())), daemon=True).start()


def _hear_out(told: _Told, take: Callable[[_Line], None]) -> None:
    """Take what is still on its way, until it is quiet; other ranks may go on talking, so not for ever."""
    until = monotonic() + PATIENCE_SECONDS
    while monotonic() < until:
        try:
            match told.get(timeout=_QUIET_SECONDS):
                case _Line() as line:
                    take(line)
        except queue.Empty:
            return


def _tell(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
