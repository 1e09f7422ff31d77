"""What has been measured, for claims to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from thriftgrad.lab.load import Configuration, Evaluation, Run, load
from thriftgrad.lab.reproduce.intervals import Interval, interval
from thriftgrad.lab.reproduce.records import ReproductionError, Row, recorded

LAST = 3
"""A run's final quality is the mean over so many evaluations: one alone is noisy."""


@dataclass(frozen=True)
class StudyRuns:
    """The runs of one study, by label and seed."""

    configuration: Configuration
    runs: tuple[Run, ...]

    @cached_property
    def _by_label(self) -> dict[str, list[Run]]:
        labels = {method.slug: method.label for method in self.configuration.methods}
        found: dict[str, list[Run]] = {label: [] for label in labels.values()}
        for run in sorted(self.runs, key=lambda run: run.seed):
            found[labels[run.method]].append(run)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """The arms, in their order."""
        return tuple(self._by_label)

    def of(self, label: str) -> list[Run]:
        """The runs of one arm, by seed."""
        return self._by_label[label]

    def finals(self, label: str) -> list[float]:
        """Each seed's final quality; a run that diverged is worth what its untrained model was."""
        return [_final(run) for run in self.of(label)]

    def gain(self, label: str, over: str) -> Interval:
        """The paired difference of final quality between two arms, its sign such that more is better."""
        sign = 1 if self.configuration.task.higher_is_better else -1
        pairs = zip(self.finals(label), self.finals(over), strict=True)
        return interval([sign * (a - b) for a, b in pairs])

    def mean(self, label: str, value: Callable[[Evaluation], float | None]) -> list[float]:
        """Each seed's mean of a value over the evaluations that have it; seeds without any are left out."""
        found = [[v for at in run.evaluations if (v := value(at)) is not None] for run in self.of(label)]
        return [fmean(values) for values in found if values]

    def diverged(self, label: str) -> int:
        """How many seeds diverged."""
        return sum(run.status == "diverged" for run in self.of(label))

    def rate(self, label: str) -> str:
        """The learning rate of an arm, and whether it is the least or the greatest that was tried."""
        found = next(method for method in self.configuration.methods if method.label == label)
        return f"{found.learning_rate:g}{' (edge of the grid)' if found.tuning and found.tuning.edge else ''}"

    def bits_per_coordinate(self, label: str) -> tuple[float, float]:
        """Link bits of one worker and step, up and down, over the number of parameters."""
        last = [run.evaluations[-1] for run in self.of(label) if run.evaluations[-1].step]
        per = [8 / (at.step * self.configuration.parameters) for at in last]
        return (
            fmean(at.up_bytes * each for at, each in zip(last, per, strict=True)),
            fmean(at.down_bytes * each for at, each in zip(last, per, strict=True)),
        )


def _final(run: Run) -> float:
    qualities = [at.quality for at in run.evaluations if at.quality is not None]
    return qualities[0] if run.status == "diverged" else fmean(qualities[-LAST:])


@dataclass(frozen=True)
class Evidence:
    """The records of a reproduction: ``studies/NAME/`` are comparison folders, ``measurements/*.jsonl`` rows."""

    folder: Path

    def rows(self, measurement: str) -> list[Row]:
        """All rows of the measurement of this name, or of its parts, one for each seed.

        Raises ``ReproductionError`` if there are none.
        """
        there = self.folder / "measurements"
        paths = [there / f"{measurement}.jsonl", *sorted(there.glob(f"{measurement}-seed*.jsonl"))]
        found = [row for path in paths for row in recorded(path) or []]
        if not found:
            raise ReproductionError(
                f"reproduce: {self.folder} has no measurement {measurement!r}; give the same command again to do it."
            )
        return found

    def study(self, name: str) -> StudyRuns:
        """The runs of a study. Raises ``RecordsError`` if they cannot be read."""
        return StudyRuns(*load(self.folder / "studies" / name))
