"""One rank of the table: started in a namespace of its own by ddp.py, it measures rows and leaves a file for each."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from ddp_rows import NOOP, ROWS, WARM_UP_STEPS, Row, Setting, Training
from torch import Tensor, nn

from thriftgrad.lab.namespaces import INTERFACE
from thriftgrad.lab.shape import Shape
from thriftgrad.tasks.language import Windows, next_token_loss
from thriftgrad.tasks.models import GPT
from thriftgrad.tasks.text import prose

CONTEXT, BATCH = 128, 4
NOOP_STEPS = 3
MOST_STEPS, LEAST_STEPS = 10, 3
PATIENCE = timedelta(seconds=100)  # of a collective: a row that does not come back has failed
LEARNING_RATE = 1e-3

Losses = Iterator[Callable[[nn.Module], Tensor]]


class Step(NamedTuple):
    """One step, or the mean of a period's: of the slowest rank, all starting together."""

    seconds: float
    cpu_seconds: float  # of all of a process's threads


def model() -> GPT:
    """10.9 M parameters; the same on every rank."""
    torch.manual_seed(0)
    return GPT(vocabulary=256, context=CONTEXT, width=384, depth=6, heads=6)


def losses(rank: int, world: int) -> Losses:
    """This rank's share of the text task's prose, a batch after another."""
    windows = Windows([np.frombuffer(prose(), dtype=np.uint8)], CONTEXT)
    generator = np.random.default_rng(rank)
    mine = np.arange(rank, len(windows), world)
    while True:
        batch = windows.batch(generator.choice(mine, BATCH))
        yield lambda of, batch=batch: next_token_loss(of, batch)  # type: ignore[misc]


def timed(training: Training, batches: Losses, steps: int) -> Step:
    """Means of so many steps, the same on every rank."""
    dist.barrier()
    start, cpu_start = perf_counter(), process_time()
    for _ in range(steps):
        training.step(next(batches))
    mine = [perf_counter() - start, process_time() - cpu_start]
    slowest = torch.tensor(mine, dtype=torch.float64) / steps
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return Step(*slowest.tolist())


def of_noop(noop: Training, batches: Losses) -> list[Step]:
    """Steps without communication, to which those next to them are compared."""
    return [timed(noop, batches, 1) for _ in range(NOOP_STEPS)]


def measured(row: Row, training: Training, batches: Losses, budget_seconds: float) -> dict[str, Any]:
    """Steps of one row until its time is up, and its bytes by the interface and by our own books."""
    for _ in range(row.warm_up_steps):
        timed(training, batches, 1)
    before, sent_before = training.totals(), sent_bytes()
    steps: list[Step] = []
    while len(steps) * row.period_steps < MOST_STEPS:  # one period at least
        steps.append(timed(training, batches, row.period_steps))
        spent = row.period_steps * sum(step.seconds for step in steps)
        if spent > budget_seconds and len(steps) * row.period_steps >= LEAST_STEPS:
            break
    dist.barrier()  # so that all has left
    count = len(steps) * row.period_steps
    sent = torch.tensor([(sent_bytes() - sent_before) / count], dtype=torch.float64)
    dist.all_reduce(sent, dist.ReduceOp.MAX)
    totals = training.totals()
    return {
        "steps": count,
        "seconds": [step.seconds for step in steps],
        "cpu_seconds": [step.cpu_seconds for step in steps],
        "sent_bytes": sent.item(),
        "books": {name: (value - before[name]) / count for name, value in totals.items()},
    }


def sent_bytes() -> int:
    """What this worker has sent: as its token bucket charges it, every frame with its headers, if it has one."""
    queues = json.loads(
        subprocess.run(
            ["tc", "-json", "-statistics", "qdisc", "show", "dev", INTERFACE], capture_output=True, check=True
        ).stdout
    )
    shaped = [int(each["bytes"]) for each in queues if each["kind"] == "tbf"]
    return shaped[0] if shaped else int(Path(f"/sys/class/net/{INTERFACE}/statistics/tx_bytes").read_text())


def begun(row: Row, setting: Setting) -> Training:
    """A fresh model's training by this row."""
    return row.begin(model(), LEARNING_RATE, setting)


def main() -> None:
    """Measure the rows that are named, steps without communication between them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("link")
    parser.add_argument("slugs", nargs="+")
    parser.add_argument("--budget", type=float, required=True, help="seconds of measured steps for each row")
    parser.add_argument("--bucket-mb", type=int, help="DDP's bucket_cap_mb for our rows, instead of their own")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    rank, world = dist.get_rank(), dist.get_world_size()
    setting = Setting.of(world, Shape.of(options.link))
    batches = losses(rank, world)
    noop = begun(NOOP, setting)
    for _ in range(WARM_UP_STEPS):
        timed(noop, batches, 1)
    beside = of_noop(noop, batches)
    rows = {row.slug: row for row in ROWS}
    for slug in options.slugs:
        if rank == 0:
            print(f"begin {slug}", flush=True)
        row = rows[slug]
        if options.bucket_mb and row.ours and row.bucket_mb:
            row = replace(row, bucket_mb=options.bucket_mb, slow_bucket_mb=None)
        training = begun(row, setting)
        found = measured(row, training, batches, options.budget)
        found |= {"label": row.label, "workers": world, "link": options.link, "method": training.said}
        found |= {"bucket_mb": row.bucket_for(setting), "load": os.getloadavg()[0]}
        training.close()
        del training
        after = of_noop(noop, batches)
        noops = {
            "noop_seconds": [s.seconds for s in beside + after],
            "noop_cpu": [s.cpu_seconds for s in beside + after],
        }
        beside = after
        if rank == 0:
            leave(options.folder / f"{slug}.json", found | noops)
            print(f"end {slug}", flush=True)
    depart()


def leave(path: Path, found: dict[str, Any]) -> None:
    """Write a whole file or none."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(found, indent=1))
    unfinished.rename(path)


def depart() -> None:
    """End at once: gloo may abort where DDP and a hook are taken down in order."""
    dist.barrier()
    sleep(0.5)  # for the last messages of the others' barrier
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
