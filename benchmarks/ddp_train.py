"""One rank of loss against wall-clock: it trains the text task by each row that is named, until the target is met."""

from __future__ import annotations

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from ddp_measure import PATIENCE, depart, leave, sent_bytes
from ddp_rows import ROWS, WARM_UP_STEPS, Row, Setting
from torch import Tensor, nn

from thriftgrad.lab.shape import Shape
from thriftgrad.tasks import load
from thriftgrad.tasks.task import Batch, Task

EVALUATE_EVERY = 24  # steps, at the least; with the clock stopped
MOST_STEPS = 1000
TARGET = 3.0  # bits per held-out byte; SGD takes about 450 steps


def trained(row: Row, learning_rate: float, task: Task, setting: Setting) -> dict[str, Any]:
    """Seconds of training, steps and the held-out quality at each evaluation, until ``TARGET`` is met."""
    rank, world = dist.get_rank(), dist.get_world_size()
    training = row.begin(task.build(0), learning_rate, setting)
    batches = task.batches(0, rank, world)
    # Local methods sync for the first time at WARM_UP_STEPS, so all workers' models are equal when one is evaluated.
    every = -(-EVALUATE_EVERY // row.period_steps) * row.period_steps
    curve: list[tuple[float, int, float]] = []
    spent, sent_before = 0.0, sent_bytes()
    dist.barrier()
    start = perf_counter()
    for step in range(1, MOST_STEPS + 1):
        training.step(partial(_loss, task, next(batches)))
        if step % every == WARM_UP_STEPS:
            dist.barrier()  # the slowest worker counts
            spent += perf_counter() - start
            quality = torch.tensor([task.evaluate(training.model) if rank == 0 else 0.0])
            dist.broadcast(quality, 0)
            curve.append((spent, step, quality.item()))
            if not quality.item() > TARGET:  # or NaN, from which no method comes back
                break
            start = perf_counter()
    sent = (sent_bytes() - sent_before) / curve[-1][1]
    said = training.said
    training.close()
    return {"label": row.label, "learning_rate": learning_rate, "method": said, "sent_bytes": sent, "curve": curve}


def _loss(task: Task, batch: Batch, model: nn.Module) -> Tensor:
    return task.loss(model, batch)


def main() -> None:
    """Train by each row at each of its learning rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("link")
    parser.add_argument("names", nargs="+", metavar="SLUG@LEARNING_RATE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    setting = Setting.of(dist.get_world_size(), Shape.of(options.link))
    rows, task = {row.slug: row for row in ROWS}, load("text")
    for name in options.names:
        print(f"begin {name}", flush=True)
        slug, _, learning_rate = name.partition("@")
        found = trained(rows[slug], float(learning_rate), task, setting)
        if dist.get_rank() == 0:
            leave(options.folder / f"{name}.json", found | {"link": options.link, "target": TARGET})
        print(f"end {name}", flush=True)
    depart()


if __name__ == "__main__":
    main()
