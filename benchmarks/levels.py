"""What one fit of adaptive levels costs, against a training step of the same size: python benchmarks/levels.py.

A fit is what a step of the schedule costs more than other steps: the norms, the counts and the solution, on one
gradient of about ten million coordinates, in buckets of 8192, as one vector. The training step is the forward and
backward pass of a transformer of that many parameters on 8 sequences of 64 bytes. One thread; medians of five, the two
measured in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from thriftgrad import Key, TensorSpec
from thriftgrad.compress import ALQ, ALQ_N, AMQ, Lloyd
from thriftgrad.compress.adaptive import AdaptiveQuantizer, _fit
from thriftgrad.tasks.language import next_token_loss
from thriftgrad.tasks.models import GPT

ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """How long the work takes."""
    start = perf_counter()
    work()
    return perf_counter() - start


def fit(quantizer: AdaptiveQuantizer, x: torch.Tensor) -> list[float]:
    """Seconds for norms, counts and solution."""
    _fit.cache_clear()
    state, key = quantizer.init(TensorSpec.of(x)), Key(0)
    start = perf_counter()
    peaks = quantizer.peaks(x, state, key)
    at_counts = perf_counter()
    counts = quantizer.counts(x, state, key, peaks)
    at_solution = perf_counter()
    quantizer.adapt(state, peaks, counts)
    return [at_counts - start, at_solution - at_counts, perf_counter() - at_solution]


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(vocabulary=256, context=64, width=384, depth=6, heads=6)
    text = torch.randint(256, (8, 65))
    parameters = list(model.parameters())

    def step() -> torch.Tensor:
        loss = next_token_loss(model, (text[:, :-1], text[:, 1:]))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])

    x = step()
    quantizers: list[AdaptiveQuantizer] = [
        ALQ(bits=3, bucket=8192),
        ALQ_N(bits=3, bucket=8192),
        AMQ(bits=3, bucket=8192),
        ALQ(bits=8, bucket=8192),
        Lloyd(bits=3, bucket=8192),
    ]
    steps: list[float] = []
    fits: dict[AdaptiveQuantizer, list[list[float]]] = {quantizer: [] for quantizer in quantizers}
    for _ in range(ROUNDS):
        steps.append(seconds(step))
        for quantizer in quantizers:
            fits[quantizer].append(fit(quantizer, x))
    training = median(steps)
    print(f"{x.numel():,} coordinates; a training step takes {1e3 * training:.0f} ms\n")
    print("| levels | norms | counts | solution | a fit, in training steps |")
    print("|---|---:|---:|---:|---:|")
    for quantizer, rows in fits.items():
        parts = [median(column) for column in zip(*rows, strict=True)]
        shown = " | ".join(f"{1e3 * part:.0f} ms" for part in parts)
        print(f"| `{quantizer!r}` | {shown} | {median(map(sum, rows)) / training:.2f} |")


if __name__ == "__main__":
    main()
