"""Bits until a target: what a run had sent when its quality first met it, or that it never did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thriftgrad.lab.load import Evaluation, Run
from thriftgrad.lab.reproduce.evidence import StudyRuns
from thriftgrad.lab.reproduce.intervals import Interval, interval, ratio
from thriftgrad.lab.reproduce.labels import read_label
from thriftgrad.wire import HEADER_BYTES


@dataclass(frozen=True)
class Target:
    """A quality to reach: ``fixed``, or what the ``baseline`` run of the same seed ends with, less a ``tolerance``."""

    name: str
    fixed: float | None = None
    baseline: str = ""
    tolerance: float = 0.0

    def thresholds(self, runs: StudyRuns) -> list[float]:
        """The quality to reach, by seed."""
        if self.fixed is not None:
            return [self.fixed] * len(runs.configuration.seeds)
        worse = -1 if runs.configuration.task.higher_is_better else 1
        return [final + worse * self.tolerance for final in runs.finals(self.baseline)]


Count = Callable[[Evaluation, int], float]
"""Bits of one worker up to an evaluation, given the number of workers."""


def uplink(at: Evaluation, workers: int) -> float:
    """What a worker hands in, headers included."""
    return 8 * at.payload_up_bytes


def downlink(at: Evaluation, workers: int) -> float:
    """What a worker gets out: from an all-gather, the messages of all others."""
    return 8 * at.payload_down_bytes


def to_server(at: Evaluation, workers: int) -> float:
    """What a worker sends a server that is one of them and books its answer as handed in, once for all."""
    up, down = 8 * at.payload_up_bytes, 8 * at.payload_down_bytes
    return (workers * up - from_server(at, workers)) / (workers - 1) if down else up


def from_server(at: Evaluation, workers: int) -> float:
    """What such a server answers: of the means over workers, n up = (n - 1) U + D and n down = (n - 1) (U + D)."""
    return 8 * workers * (at.payload_down_bytes - at.payload_up_bytes) / (workers - 2)


def as_published(label: str) -> Count:
    """Uplink bits as the paper counts them: values, indices and scales, without the 20 bytes that head a message."""
    setting = read_label(label)
    header = 0 if setting.op == "SGD" else 8 * HEADER_BYTES  # what is all-reduced has none

    def count(at: Evaluation, workers: int) -> float:
        return 8 * at.payload_up_bytes - header * (at.step // setting.h)

    return count


def spent(runs: StudyRuns, label: str, target: Target, count: Count) -> list[float | None]:
    """Bits of each seed until it met the target for the first time; None if it never did."""
    workers = runs.configuration.workers
    found: list[float | None] = []
    for run, threshold in zip(runs.of(label), target.thresholds(runs), strict=True):
        at = _first(run, threshold, runs.configuration.task.higher_is_better)
        found.append(None if at is None else count(at, workers))
    return found


def _first(run: Run, threshold: float, higher_is_better: bool) -> Evaluation | None:
    for at in run.evaluations:
        if at.quality is None or not at.payload_up_bytes:
            continue  # a model that nobody has sent anything about
        if at.quality >= threshold if higher_is_better else at.quality <= threshold:
            return at
    return None


def steps_spent(at: Evaluation, workers: int) -> float:
    """Not bits but steps, to be counted in the same way."""
    return float(at.step)


def saving(costly: Sequence[float | None], thrifty: Sequence[float | None]) -> Interval | None:
    """How many times fewer bits, seed by seed; None unless every seed of both has met the target."""
    pairs = [(a, b) for a, b in zip(costly, thrifty, strict=True) if a is not None and b is not None]
    if len(pairs) < len(costly):
        return None
    return ratio([a for a, _ in pairs], [b for _, b in pairs])


def bits_text(values: Sequence[float | None]) -> str:
    """Kilobits with their interval, or how many seeds never met the target.

    >>> bits_text([2000.0, 2000.0]), bits_text([2000.0, None])
    ('2 [2, 2]', 'not reached (1 of 2)')
    """
    met = [value for value in values if value is not None]
    if len(met) < len(values):
        return f"not reached ({len(values) - len(met)} of {len(values)})"
    return interval([value / 1000 for value in met]).text()
