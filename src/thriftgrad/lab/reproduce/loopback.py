"""Training steps of real processes: DDP and gloo on this machine, its loopback for a network.

Run as a module by ``torchrun``, this file is one of the ranks.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.nn import functional as F  # noqa: N812 - the name everybody uses
from torch.nn.parallel import DistributedDataParallel

from thriftgrad.lab.processes import say, torchrun
from thriftgrad.lab.reproduce.probes import Measurement
from thriftgrad.lab.reproduce.records import ReproductionError, Row, record
from thriftgrad.lab.worker import leave_with_parent
from thriftgrad.tasks.models import GPT, initialised
from thriftgrad.train import Handle, attach
from thriftgrad.vocabulary import parse

NOOP, PLAIN = "no exchange", "SGD fp32"
"""DDP with a hook that exchanges nothing, and DDP as it comes."""
MESSAGES_BYTES = (4, 2**20, 2**24)
"""All-reduced by themselves: the first tells the latency, the last the bandwidth."""


@dataclass(frozen=True)
class Load:
    """What is trained: a GPT of this vocabulary and width, on ``batch`` sequences of 64 tokens for each worker."""

    vocabulary: int
    width: int
    batch: int

    @property
    def label(self) -> str:
        """In a few words."""
        model = GPT(vocabulary=self.vocabulary, width=self.width)
        return f"GPT of {4e-6 * sum(p.numel() for p in model.parameters()):.1f} MB, batch {self.batch}"


@dataclass(frozen=True)
class LoopbackTimes(Measurement):
    """Wall-clock seconds of whole steps (forward, backward, exchange) on ``workers`` gloo processes, a thread each.

    ``methods``: label and expression, beside ``NOOP`` and ``PLAIN``; all take turns, step by step, and a draw is the
    median of ``steps`` steps of rank 0. A row: what="step", load, workers, label, draw, step_seconds, encode_seconds,
    decode_seconds, payload_bytes, gradient_bytes; or what="all-reduce", workers, nbytes, draw, seconds.
    """

    workers: int
    loads: tuple[Load, ...]
    methods: tuple[tuple[str, str], ...]
    draws: int
    steps: int
    seconds: float = 20.0

    @property
    def label(self) -> str:
        return f"steps of {self.workers} processes"

    def perform(self, folder: Path) -> None:
        rows: list[Row] = []
        log = self.path(folder).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "loads": [[each.vocabulary, each.width, each.batch] for each in self.loads],
            "methods": self.methods,
            "draws": self.draws,
            "steps": self.steps,
        }
        failed = torchrun(__name__, [json.dumps(told)], self.workers, log, rows.append)
        if failed:
            raise ReproductionError(f"reproduce: the processes failed ({failed}); all they said is in {log}.")
        record(self.path(folder), rows)


def main(told: dict[str, Any]) -> None:
    """One rank: join the group, take every step, and tell of them where this is rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    workers, first = dist.get_world_size(), dist.get_rank() == 0
    tell: Callable[[Row], None] = say if first else lambda row: None
    for draw in range(told["draws"]):
        for nbytes in MESSAGES_BYTES:
            buffer = torch.ones(nbytes // 4)
            seconds = median(_timed(partial(dist.all_reduce, buffer)) for _ in range(5))
            tell({"what": "all-reduce", "workers": workers, "nbytes": nbytes, "draw": draw, "seconds": seconds})
    for vocabulary, width, batch in told["loads"]:
        load = Load(vocabulary, width, batch)
        for row in steps_of(load, told["methods"], told["draws"], told["steps"]):
            tell({"what": "step", "load": load.label, "workers": workers} | row)
    dist.barrier()
    dist.destroy_process_group()


def steps_of(load: Load, methods: list[tuple[str, str]], draws: int, steps: int) -> Iterator[Row]:
    """A row for each draw and method, in turns; a first draw, in which DDP arranges its buckets, is not told."""
    tokens = torch.randint(load.vocabulary, (load.batch, 65), generator=torch.Generator().manual_seed(dist.get_rank()))
    with ExitStack() as open_handles:
        models: dict[str, tuple[DistributedDataParallel, Handle | None]] = {}
        for label, expression in ((NOOP, None), (PLAIN, None), *methods):
            make = partial(GPT, vocabulary=load.vocabulary, width=load.width)
            model, handle = DistributedDataParallel(initialised(make, seed=0)), None
            if label == NOOP:
                model.register_comm_hook(None, noop_hook)
            elif expression is not None:
                method = parse(expression)
                handle = open_handles.enter_context(attach(model, method))
            models[label] = model, handle
        for draw in range(-1, draws):
            before = {label: handle.stats() for label, (_, handle) in models.items() if handle}
            seconds: dict[str, list[float]] = {label: [] for label in models}
            for _ in range(steps):
                for label, (model, _handle) in models.items():  # step by step, for all to meet the same disturbances
                    dist.barrier()
                    seconds[label].append(_timed(partial(_step, model, tokens)))
            for label, (model, handle) in models.items() if draw >= 0 else ():
                size = 4 * sum(p.numel() for p in model.parameters())
                row: Row = {"label": label, "draw": draw, "step_seconds": median(seconds[label])}
                row |= {"gradient_bytes": size, "payload_bytes": 0 if label == NOOP else size}
                row |= {"encode_seconds": 0.0, "decode_seconds": 0.0}
                if handle:
                    after = handle.stats()
                    for name in ("encode_seconds", "decode_seconds", "payload_up_bytes"):
                        spent = (getattr(after, name) - getattr(before[label], name)) / steps
                        row[name.replace("up_", "")] = spent
                yield row


def _step(model: DistributedDataParallel, tokens: torch.Tensor) -> None:
    model.zero_grad()
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]


def _timed(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, daemon=True).start()
    try:
        main(json.loads(sys.argv[1]))
    except Exception as error:
        say(error)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # not waiting for what gloo's threads leave behind
