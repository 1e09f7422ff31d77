"""What an observer is told of each finished collective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Traffic(NamedTuple):
    """One worker's bytes in one collective, in two books.

    Payload bytes: what the worker handed in and got out. Link bytes: what it sent and received on its link, by the
    usual algorithm (ring for all-reduce and all-gather, pairwise exchange for all-to-all, star for a server).
    ``hops``: messages that follow one another, each of which pays the latency.
    """

    payload_up_bytes: int
    payload_down_bytes: int
    up_bytes: int
    down_bytes: int
    hops: int


class Moments(NamedTuple):
    """When a round of one worker happened on a real group, in seconds on the clock of ``time.perf_counter``.

    ``worker``: its number in its lane. It began to compute, asked, was issued once its turn had come, and the answer
    landed; of what is computed after the last answer, the last two are the second.
    """

    worker: int
    began: float
    asked: float
    issued: float
    landed: float


@dataclass(frozen=True)
class Round:
    """One finished collective, seen by whoever ran it.

    ``traffic``: every worker's bytes, by rank. ``compute_seconds``: what a worker computed since its last answer,
    measured here; of all workers in a simulation, of this rank on a real group.
    ``waited_seconds``: how long the answer took on a real group, and ``moments``; None in a simulation.
    """

    kind: str
    world: int
    traffic: dict[int, Traffic]
    compute_seconds: dict[int, float]
    waited_seconds: float | None = None
    moments: Moments | None = None


Observer = Callable[[Round], None]
