"""What a byte budget buys: the error of one choice by tensor against that of one choice for all, at the same bytes.

    python benchmarks/budget.py digits digits18

Plain SGD with momentum trains each task; at every step both methods, without memories, estimate the mean of the
workers' gradients. The error is |mean - estimate|^2 / |mean|^2, its mean over the steps. Bytes are what a worker hands
in; the tables of measured errors that go round every ten steps are not among them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thriftgrad import QSGD, AllGather, Budgeted, Key, Ledger, PowerSGD, TensorSpec, simulate
from thriftgrad.tasks import load
from thriftgrad.tasks.task import Task

WORKERS, STEPS, SEEDS, EVERY = 4, 20, 3, 10
RANKS = {f"rank {rank}": PowerSGD(rank=rank, memory="none", min_compression_rate=0) for rank in (1, 2, 4, 8)}
BITS = {f"{bits} bits": AllGather(QSGD(bits=bits)) for bits in range(2, 9)}


def gradients(task: Task, seed: int) -> list[dict[str, list[Tensor]]]:
    """At each step of the training every worker's gradient of each parameter."""
    model = task.build(seed)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=task.learning_rate, momentum=0.9)
    batches = [task.batches(seed, rank, WORKERS) for rank in range(WORKERS)]
    steps = []
    for _ in range(STEPS):
        each = [torch.autograd.grad(task.loss(model, next(mine)), list(parameters.values())) for mine in batches]
        steps.append(dict(zip(parameters, map(list, zip(*each, strict=True)), strict=True)))
        for parameter, mine in zip(parameters.values(), steps[-1].values(), strict=True):
            parameter.grad = torch.stack(mine).mean(0)
        optimizer.step()
    return steps


def measured(method: Any, steps: Sequence[dict[str, list[Tensor]]]) -> tuple[int, float]:
    """Bytes that a worker hands in for the gradients of a step, and the mean relative error."""
    specs = [TensorSpec.of(mine[0], name) for name, mine in steps[0].items()]
    states, ledger, errors = [method.init(specs) for _ in range(WORKERS)], Ledger(), []
    for t, each in enumerate(steps):
        means = [torch.stack(mine).mean(0) for mine in each.values()]
        workers = [[mine[rank] for mine in each.values()] for rank in range(WORKERS)]
        results = simulate([method.aggregate(x, s, Key(t)) for x, s in zip(workers, states, strict=True)], ledger)
        states = [state for _, state in results]
        error = sum((m - e).square().sum() for m, e in zip(means, results[0][0], strict=True))
        errors.append(float(error / sum(m.square().sum() for m in means)))
    tables = 8 * len(specs) * len(method.candidates) * -(-STEPS // EVERY) if isinstance(method, Budgeted) else 0
    return int((ledger.payload_up_bytes - tables) / STEPS), sum(errors) / STEPS


def main() -> None:
    """Print the table."""
    print("| task, tensors | candidates | bytes: one for all | by tensor | error: one for all | by tensor | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or ["digits"]:
        task = load(name)
        runs = [gradients(task, seed) for seed in range(SEEDS)]
        for kind, one in ((RANKS, "rank 2"), (BITS, "4 bits")):
            rows = []
            for steps in runs:
                nbytes, error = measured(kind[one], steps)
                rows.append((nbytes, error, *measured(Budgeted(nbytes, tuple(kind.values()), EVERY), steps)))
            a, b, c, d = (sum(column) / SEEDS for column in zip(*rows, strict=True))
            ratios = ", ".join(f"{mine / uniform:.2f}" for _, uniform, _, mine in rows)
            head = f"| {name}, {len(runs[0][0])} | {', '.join(kind)}; {one} for all"
            print(f"{head} | {a:,.0f} | {c:,.0f} | {b:.3f} | {d:.3f} | {ratios} |")


if __name__ == "__main__":
    main()
