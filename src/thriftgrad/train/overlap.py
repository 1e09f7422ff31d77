"""How much of the communication a backward pass hides, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from thriftgrad.comm import Round, Timeline


class Overlap:
    """Adds up one rank's seconds; pass it as ``observe``.

    ``encode_seconds``: computed before the last collective of each DDP bucket, ``decode_seconds``: after its answer.
    ``hidden_seconds``: something was in flight while ``backward`` had DDP buckets still to hand over.
    ``exposed_seconds``: ``backward`` waited after it had handed over the last.
    """

    def __init__(self) -> None:
        self.encode_seconds = self.decode_seconds = self.hidden_seconds = self.exposed_seconds = 0.0
        self.timeline: Timeline | None = None
        self._flights: list[tuple[float, float]] = []  # of this step
        self._began: float | None = None

    def __call__(self, finished: Round) -> None:
        (computed,) = finished.compute_seconds.values()
        if finished.kind == "end":
            self.decode_seconds += computed
        else:
            self.encode_seconds += computed
            assert finished.moments is not None  # a real group
            self._flights.append((finished.moments.issued, finished.moments.landed))
        if self.timeline is not None:
            self.timeline(finished)

    def begin_backward(self, *_: object) -> None:
        """The first gradient of a backward pass is there."""
        self._began = perf_counter()

    def end_step(self, handed_over: float, ended: float) -> None:
        """The last DDP bucket was handed over and the last estimate came back, on the clock of ``perf_counter``."""
        hidden, exposed = covered(self._flights, until=handed_over), ended - handed_over
        self.hidden_seconds += hidden
        self.exposed_seconds += exposed
        if self.timeline is not None:
            self.timeline.end_step(self._began or handed_over, handed_over, ended, hidden)
        self._flights, self._began = [], None


def covered(intervals: Iterable[tuple[float, float]], until: float) -> float:
    """The length of the union of some intervals, as far as it lies before ``until``.

    >>> covered([(0, 2), (1, 3), (5, 9)], until=6)
    4.0
    """
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, min(end, until) - max(start, reached))
        reached = max(reached, end)
    return length
