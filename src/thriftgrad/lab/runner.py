"""Does the runs of a comparison that are not done yet, and writes each evaluation down at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from thriftgrad.lab.cluster import Cluster
from thriftgrad.lab.comparison import Comparison
from thriftgrad.lab.load import Tuning
from thriftgrad.lab.training import train

TUNING_SEED = 1_000_003
"""A seed that no run of the comparison has."""

GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Learning rates tried for every method, relative to the task's own."""


@dataclass(frozen=True)
class Progress:
    """One sign of life: which run, how far, and the last quality."""

    label: str  # "tune qsgd, learning rate 0.03", "qsgd, seed 1"
    step: int
    steps: int
    done: int  # runs finished before this one
    total: int
    quality: float | None


Report = Callable[[Progress], None]


def execute(comparison: Comparison, folder: Path, cluster: Cluster, report: Report) -> None:
    """Tune if asked to, then do every (method, seed) that has no finished record in the folder.

    A run that was cut short is begun again; only what follows the last "start" in its file counts. Every process of a
    cluster calls this; the one with worker 0 writes.
    """
    torch.set_num_threads(comparison.configuration.threads)
    if comparison.request.tune:
        comparison = tune(comparison, folder, cluster, report)
    runs = [(row, seed) for seed in comparison.configuration.seeds for row in comparison.configuration.methods]
    done = [is_finished(folder / "runs" / f"{row.slug}-seed{seed}.jsonl") for row, seed in runs]
    # Everybody looks before anybody writes.
    cluster.mean([0.0])
    for (row, seed), finished in zip(runs, done, strict=True):
        if finished:
            continue
        path, start = folder / "runs" / f"{row.slug}-seed{seed}.jsonl", perf_counter()
        write = _writer(path) if cluster.writes else _silent
        write({"kind": "start", "method": row.slug, "seed": seed, "time": datetime.now(UTC).isoformat()})
        last, steps = None, comparison.configuration.steps
        for last in _evaluations(comparison, row.slug, cluster, seed, row.learning_rate, steps):
            write({"kind": "eval"} | asdict(last))
            report(Progress(f"{row.label}, seed {seed}", last.step, steps, sum(done), len(runs), last.quality))
        assert last is not None  # the evaluation at step 0
        seconds, diverged = perf_counter() - start, last.quality is None
        write({"kind": "end", "steps": last.step, "wall_seconds": seconds, "diverged": diverged})
        done[runs.index((row, seed))] = True


def tune(comparison: Comparison, folder: Path, cluster: Cluster, report: Report) -> Comparison:
    """Choose each method's learning rate on one grid, at one budget: a run of half the steps per rate.

    The winner has the lowest mean training loss over the last half of the tuning run (the held-out data is not
    looked at), under a seed that no run has.
    """
    if all(row.tuning for row in comparison.configuration.methods):
        return comparison
    grid = tuple(float(f"{comparison.task.learning_rate * factor:.3g}") for factor in GRID)
    steps = max(1, comparison.configuration.steps // 2)
    tuned, rates = {}, {}
    for i, row in enumerate(comparison.configuration.methods):
        path = folder / "tuning" / f"{row.slug}.jsonl"
        path.parent.mkdir(exist_ok=True)
        known = {record["learning_rate"]: record["loss"] for record in _records(path)}
        cluster.mean([0.0])
        for j, rate in enumerate(grid):
            if rate not in known:
                label = f"tune {row.label}, learning rate {rate:g}"
                losses = []
                for each in _evaluations(comparison, row.slug, cluster, TUNING_SEED, rate, steps):
                    losses.append(each.loss if each.step else None)
                    report(
                        Progress(
                            label,
                            each.step,
                            steps,
                            i * len(grid) + j,
                            len(comparison.methods) * len(grid),
                            each.quality,
                        )
                    )
                    diverged = each.quality is None
                half = [x for x in losses[len(losses) // 2 :] if x is not None]
                known[rate] = None if diverged or not half else sum(half) / len(half)
                if cluster.writes:
                    _writer(path)({"learning_rate": rate, "loss": known[rate]})
        losses = [known[rate] for rate in grid]
        best = min(range(len(grid)), key=lambda at: ranked(losses[at]))
        tuned[row.slug] = Tuning(grid, tuple(losses), steps, TUNING_SEED, best in (0, len(grid) - 1))
        rates[row.slug] = grid[best]
    comparison = comparison.with_tuning(tuned, rates)
    if cluster.writes:
        comparison.save(folder)
    return comparison


def ranked(loss: float | None) -> float:
    """A loss to sort by: a diverged run is the worst."""
    return inf if loss is None else loss


def is_finished(path: Path) -> bool:
    """Whether a run's file holds a whole run."""
    records = list(_records(path))
    return bool(records) and records[-1]["kind"] == "end"


def _evaluations(
    comparison: Comparison, slug: str, cluster: Cluster, seed: int, rate: float, steps: int
) -> Iterator[Any]:
    return train(
        comparison.task,
        comparison.methods[slug],
        cluster,
        seed=seed,
        learning_rate=rate,
        steps=steps,
        evaluate_every=comparison.configuration.evaluate_every,
        links=comparison.links,
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; a last line that was cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _writer(path: Path) -> Callable[[dict[str, Any]], None]:
    """Appends records, each a line of its own even after one that was cut short."""
    if path.exists() and (text := path.read_text()) and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])

    def write(record: dict[str, Any]) -> None:
        assert all(isfinite(x) for x in record.values() if isinstance(x, float))
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    return write


def _silent(record: dict[str, Any]) -> None:
    """Another process writes."""
