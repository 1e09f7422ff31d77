"""Does the runs of a comparison that are not done yet, and writes each evaluation down at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from math import inf
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch

from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.comparison import Comparison, ComparisonError
from thriftgrad.lab.latency import calibrated
from thriftgrad.lab.load import Evaluation, Method, Tuning
from thriftgrad.lab.training import train, train_plain
from thriftgrad.local import LocalMethod

TUNING_SEED = 1_000_003
"""A seed that no run of the comparison has."""

GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates tried for every method, relative to the task's own."""


@dataclass(frozen=True)
class Progress:
    """One sign of life: which run, how far, and the last quality."""

    label: str  # "seed 1: qsgd", "learning rate 0.03: qsgd"
    step: int
    steps: int
    done: int  # runs finished before this one
    total: int
    quality: float | None


Report = Callable[[Progress], None]


def execute(comparison: Comparison, folder: Path, cluster: Cluster, report: Report) -> None:
    """Tune if asked to, then do every (method, seed) that has no finished record in the folder.

    A run that was cut short is begun again; only what follows the last "start" in its file counts. Where plain SGD
    trains, the runs of a seed are one training, so those that wait are done together. Every process of a cluster calls
    this; the one with worker 0 writes. Raises ``ComparisonError`` for a file that is corrupt.
    """
    torch.set_num_threads(comparison.configuration.threads)
    if comparison.request.lab:
        comparison = calibrated(comparison, folder, cluster)
    if comparison.request.tune:
        comparison = tune(comparison, folder, cluster, report)
    steps = comparison.configuration.steps
    paths = {
        (row, seed): folder / "runs" / f"{row.slug}-seed{seed}.jsonl"
        for seed in comparison.configuration.seeds
        for row in comparison.configuration.methods
    }
    waiting = [run for run, path in paths.items() if not is_finished(path)]
    cluster.barrier()  # everybody looks before anybody writes
    done = len(paths) - len(waiting)
    for seed, rows in _together(waiting, comparison.request.on_sgd):
        writers = [_writer(paths[row, seed]) if cluster.writes else _silent for row in rows]
        for row, write in zip(rows, writers, strict=True):
            write({"kind": "start", "method": row.slug, "seed": seed, "time": datetime.now(UTC).isoformat()})
        start = perf_counter()
        label = f"seed {seed}: {'plain SGD' if comparison.request.on_sgd else rows[0].label}"
        slugs = [row.slug for row in rows]
        for each in _evaluations(comparison, slugs, cluster, seed, rows[0].learning_rate, steps):
            for at, write in zip(each, writers, strict=True):
                write({"kind": "eval"} | asdict(at))
            report(Progress(label, each[0].step, steps, done, len(paths), each[0].quality))
        seconds, diverged = perf_counter() - start, each[0].quality is None
        for write in writers:
            write({"kind": "end", "steps": each[0].step, "wall_seconds": seconds, "diverged": diverged})
        done += len(rows)


def _together(waiting: Sequence[tuple[Method, int]], on_sgd: bool) -> Iterator[tuple[int, list[Method]]]:
    """The runs that one training does, with their seed: a single one, or all of the seed where plain SGD trains."""
    for seed, runs in groupby(waiting, key=itemgetter(1)):
        rows = [row for row, _ in runs]
        yield from [(seed, rows)] if on_sgd else [(seed, [row]) for row in rows]


def tune(comparison: Comparison, folder: Path, cluster: Cluster, report: Report) -> Comparison:
    """Choose each method's learning rate on one grid, at one budget: a run of half the steps per rate.

    The winner has the lowest mean training loss over the last half of the tuning run (the held-out data is not
    looked at), under a seed that no run has.
    """
    rows = comparison.configuration.methods
    if all(row.tuning for row in rows):
        return comparison
    grid = tuple(float(f"{comparison.task.learning_rate * factor:.3g}") for factor in GRID)
    steps = max(1, comparison.configuration.steps // 2)
    tuned, rates = {}, {}
    for i, row in enumerate(rows):
        path = folder / "tuning" / f"{row.slug}.jsonl"
        path.parent.mkdir(exist_ok=True)
        known = {record["learning_rate"]: record["loss"] for record in _records(path)}
        cluster.barrier()  # everybody looks before anybody writes
        write = _writer(path) if cluster.writes else _silent
        for j, rate in enumerate(grid):
            if rate in known:
                continue
            label, losses = f"learning rate {rate:g}: {row.label}", []
            for (at,) in _evaluations(comparison, [row.slug], cluster, TUNING_SEED, rate, steps):
                losses += [at.loss] if at.loss is not None else []  # there is none before the first step
                report(Progress(label, at.step, steps, i * len(grid) + j, len(rows) * len(grid), at.quality))
            known[rate] = None if at.quality is None else fmean(losses[len(losses) // 2 :])
            write({"kind": "tuned", "learning_rate": rate, "loss": known[rate]})
        best = min(grid, key=lambda rate: inf if known[rate] is None else known[rate])
        tried = tuple(known[rate] for rate in grid)
        tuned[row.slug] = Tuning(grid, tried, steps, TUNING_SEED, edge=best in (grid[0], grid[-1]))
        rates[row.slug] = best
    comparison = comparison.with_tuning(tuned, rates)
    if cluster.writes:
        comparison.save(folder)
    return comparison


def is_finished(path: Path) -> bool:
    """Whether a run's file holds a whole run."""
    records = _records(path)
    return bool(records) and records[-1]["kind"] == "end"


def _evaluations(
    comparison: Comparison, slugs: Sequence[str], cluster: Cluster, seed: int, rate: float, steps: int
) -> Iterator[tuple[Evaluation, ...]]:
    """The evaluations of one training, one for each method."""
    methods = [comparison.methods[slug] for slug in slugs]
    settings: dict[str, Any] = {
        "seed": seed,
        "learning_rate": rate,
        "steps": steps,
        "evaluate_every": comparison.configuration.evaluate_every,
        "links": comparison.links,
    }
    if comparison.request.on_sgd:
        gradients = [method for method in methods if not isinstance(method, LocalMethod)]  # others have been refused
        return train_plain(comparison.task, gradients, cluster, **settings)
    (method,) = methods
    return ((at,) for at in train(comparison.task, method, cluster, **settings))


def _records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, if there is one; a last line that was cut short is left out."""
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
            records[-1]["kind"]
        except (ValueError, LookupError, TypeError) as error:
            raise ComparisonError(
                f"compare: {path}, line {number} is no record; delete the file and give the same command again to "
                "redo what it held."
            ) from error
    return records


def _writer(path: Path) -> Callable[[dict[str, Any]], None]:
    """Appends records, each a line of its own even after one that was cut short."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)

    def write(record: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    return write


def _silent(record: dict[str, Any]) -> None:
    """Another process writes."""
