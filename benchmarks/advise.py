"""Is `thriftgrad advise` right? Its prediction against real steps in the lab, over links, models and workers.

    python benchmarks/advise.py RESULTS_FOLDER > benchmarks/results/advise-DATE.md

As root, in under ten minutes. Every cell is a network of namespaces in which the ranks first advise, measuring link,
backward pass and codecs, and then train by DDP with the methods that were predicted to be fastest, with bf16 and with
no exchange at all, all taking turns step by step. A cell is right if the method that was predicted to be the fastest
is measured to be no slower than the one predicted to come second; within 3 % of each other the two count as equal.
A finished cell is kept in the folder, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn import functional as F  # noqa: N812 - the name everybody uses
from torch.nn.parallel import DistributedDataParallel

from thriftgrad.lab.advise.advise import Request, advise
from thriftgrad.lab.advise.candidates import BF16, Candidate
from thriftgrad.lab.advise.subject import load, loss_of
from thriftgrad.lab.namespaces import Network, Shape
from thriftgrad.tasks.models import GPT, initialised, resnet18
from thriftgrad.train import attach

LINKS = ("100mbit", "1gbit", "unlimited")
MODELS = ("gpt", "resnet")
WORKERS = (2, 4)
TIE = 1.03
SHOWN = 4
"""Methods that are measured, the first in the predicted order."""
NOTHING = "no exchange"
WARM_UP, STEPS = 3, 12
LONGEST_SECONDS = 8.0
"""Steps are fewer where this many take longer."""


@dataclass(frozen=True)
class Cell:
    """One link, model and number of workers."""

    link: str
    model: str
    workers: int

    @property
    def name(self) -> str:
        """As in a file's name."""
        return f"{self.link}-{self.model}-{self.workers}"


CELLS = [Cell(*each) for each in product(LINKS, MODELS, WORKERS)]


def gpt() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """2.8 million parameters, four sequences of 64 tokens a worker."""
    model = initialised(partial(GPT, width=192, depth=6, heads=6), seed=0)
    tokens = torch.randint(256, (4, 65), generator=torch.Generator().manual_seed(0))
    return model, lambda module: F.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def resnet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """2.8 million parameters, eight images of 32 x 32 pixels a worker."""
    model = initialised(partial(resnet18, width=32), seed=0)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, lambda module: F.cross_entropy(module(images), torch.arange(8))


def rank_of(cell: Cell) -> None:
    """One rank in its namespace: advise, then measure; rank 0 prints what came out as one line of JSON."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    start = perf_counter()
    advice = advise(Request(f"advise:{cell.model}"), lambda what: None)
    advised_seconds = perf_counter() - start
    rows = [row for row in advice.rows if row.candidate.gap is None]
    shown = rows[:SHOWN] + [row for row in rows[SHOWN:] if row.candidate.label == BF16]
    times = measured(cell.model, [row.candidate for row in shown])
    if dist.get_rank() == 0:
        link, setting = advice.transport.link, advice.setting
        compute = setting.compute.seconds(setting.lanes) + setting.buffers_seconds(cell.workers, advice.transport)
        found: dict[str, Any] = asdict(cell) | {
            "predicted_ms": {row.candidate.label: 1e3 * row.seconds for row in rows},
            "compute_ms": 1e3 * compute,
            "distortion": {row.candidate.label: row.distortion for row in rows},
            "measured_ms": {label: 1e3 * seconds for label, seconds in times.items()},
            "link_mbit": link.up_bits_per_second / 1e6,
            "latency_us": 1e6 * link.latency_seconds,
            "sentence": advice.sentence,
            "advised_seconds": advised_seconds,
            "seconds": perf_counter() - start,
        }
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measured(model: str, candidates: list[Candidate]) -> dict[str, float]:
    """Seconds of a step by label, the median over steps of the slowest rank."""
    with ExitStack() as open_handles:
        steps: dict[str, Callable[[], None]] = {}
        for candidate in (None, *candidates):
            subject = load(f"advise:{model}")
            ddp = DistributedDataParallel(subject.module, init_sync=False)  # all ranks build the same
            if candidate is None:
                ddp.register_comm_hook(None, noop_hook)
            elif candidate.aggregator is not None:
                open_handles.enter_context(attach(ddp, candidate.aggregator))

            def step(subject: Any = subject, ddp: DistributedDataParallel = ddp) -> None:
                ddp.zero_grad()
                loss_of(subject, ddp).backward()  # type: ignore[no-untyped-call]

            steps[NOTHING if candidate is None else candidate.label] = step
        rows: list[list[float]] = []
        end = perf_counter() + LONGEST_SECONDS
        while len(rows) < WARM_UP + STEPS:
            rows.append([])
            for step in steps.values():
                dist.barrier()
                start = perf_counter()
                step()
                rows[-1].append(perf_counter() - start)
            if not _all(perf_counter() < end) and len(rows) > WARM_UP + 2:
                break
    slowest = torch.tensor(rows[WARM_UP:], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return dict(zip(steps, map(median, slowest.T.tolist()), strict=True))


def _all(mine: bool) -> bool:
    said = torch.tensor([int(mine)])
    dist.all_reduce(said, dist.ReduceOp.MIN)
    return bool(said)


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """The cell's result, from the folder if it is there."""
    path = folder / f"{cell.name}.json"
    if not path.exists():
        with Network(cell.workers, Shape.of(cell.link)) as network:
            ended = network.run([sys.executable, __file__, "--rank", cell.name], timeout_seconds=240)
        path.write_text(ended[0].output.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def right(found: dict[str, Any]) -> bool:
    """Whether the predicted order of the first two is the measured one, or they are equal."""
    first, second = list(found["predicted_ms"])[:2]
    return bool(found["measured_ms"][first] <= TIE * found["measured_ms"][second])


def markdown(every: list[dict[str, Any]]) -> str:
    """The page of results."""
    good = [right(found) for found in every]
    lines = [
        "# Is `thriftgrad advise` right?",
        "",
        f"{sum(good)} of {len(good)} cells: the predicted order of the two fastest methods is the measured one (equal "
        f"within {100 * (TIE - 1):.0f} %).",
        "",
        f"{os.cpu_count()} processors, torch {torch.__version__}, one thread a rank. Milliseconds a step.",
        "",
        "| link | model | workers | predicted first | predicted / measured | predicted second | predicted / measured | "
        "bf16 | no exchange | right |",
        "|---|---|---:|---|---:|---|---:|---:|---:|---|",
    ]
    for found, is_right in zip(every, good, strict=True):
        first, second = list(found["predicted_ms"])[:2]
        slow, fast = sorted((found["measured_ms"][first], found["measured_ms"][second]), reverse=True)
        verdict = "equal" if slow <= TIE * fast else "yes" if is_right else "**no**"
        pairs = [
            f"{found['predicted_ms'].get(label, found['compute_ms']):.1f} / {found['measured_ms'][label]:.1f}"
            for label in (first, second, BF16, NOTHING)
        ]
        cells = (found["link"], found["model"], found["workers"], first, pairs[0], second, *pairs[1:], verdict)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "What it said:", ""]
    lines += [
        f"* {found['link']}, {found['model']}, {found['workers']} workers: {found['sentence']}" for found in every
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every cell that is not in the folder yet, and print the page."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for cell in CELLS:
        every.append(run(cell, folder))
        print(f"{cell.name}: {'right' if right(every[-1]) else 'wrong'}", file=sys.stderr, flush=True)
    print(markdown(every), end="")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank_of(next(cell for cell in CELLS if cell.name == sys.argv[2]))
    else:
        main()
