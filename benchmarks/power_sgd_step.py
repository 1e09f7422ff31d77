"""The local work of one PowerSGD step, as multiples of a memory copy of the gradient in the same run.

    python benchmarks/power_sgd_step.py [--rounds R] [--threads 1 2] [--ranks 1 2 4] [--bucket-mb MB]

A process group of one, so that nothing waits for a network, and gradients that change with every call. All candidates
take turns within each round; figures are medians of the rounds' ratios, so that other work on the machine meets all of
them. "in place": with the estimates copied over the gradients, as a DDP hook must leave them, PyTorch's too.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from power_sgd_hook import hook_state
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import powerSGD_hook

from thriftgrad import Key, PowerSGD, TensorSpec, kernels, run
from thriftgrad.kernels.cpu.threads import over_slices
from thriftgrad.tasks.models import GPT

GRADIENTS = 3
WARM_UP_STEPS = 4
Shapes = list[tuple[int, ...]]
Step = Callable[[int], None]


def resnet50() -> Shapes:
    """ResNet-50: 25.6 M parameters in 161 tensors."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            sides = [(width, inputs, 1), (width, width, 3), (4 * width, width, 1)]
            sides += [(4 * width, inputs, 1)] if block == 0 else []
            shapes += [shape for out, into, side in sides for shape in ((out, into, side, side), (out,), (out,))]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def gpt() -> Shapes:
    """The language model of the lab: 10.9 M parameters in 77 tensors."""
    return [tuple(p.shape) for p in GPT(context=128, width=384, depth=6).parameters()]


MODELS: dict[str, Callable[[], Shapes]] = {"ResNet-50": resnet50, "GPT": gpt}


class Bucket:
    """Gradients in one buffer, as PyTorch's hook is handed them."""

    def __init__(self, shapes: Shapes, index: int, is_last: bool) -> None:
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.names = [f"{index}.{i}" for i in range(len(shapes))]
        self.buffers = [torch.randn(sum(sizes)) for _ in range(GRADIENTS)]
        self._views = [
            [part.view(shape) for part, shape in zip(x.split(sizes), shapes, strict=True)] for x in self.buffers
        ]
        self._index, self._is_last, self.at = index, is_last, 0

    def buffer(self) -> Tensor:
        return self.buffers[self.at]

    def gradients(self) -> list[Tensor]:
        return self._views[self.at]

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._is_last


def buckets_of(shapes: Shapes, most_bytes: float) -> list[Bucket]:
    """From the last tensor to the first, as backward finds them."""
    groups: list[Shapes] = [[]]
    for shape in reversed(shapes):
        if groups[-1] and 4 * sum(torch.Size(each).numel() for each in [*groups[-1], shape]) > most_bytes:
            groups.append([])
        groups[-1].append(shape)
    return [Bucket(group, i, i + 1 == len(groups)) for i, group in enumerate(groups)]


def ours(buckets: Sequence[Bucket], rank: int, backend: Any, in_place: bool) -> Step:
    """One step of every bucket."""
    method = PowerSGD(rank=rank)
    specs = [[TensorSpec.of(*each) for each in zip(b.gradients(), b.names, strict=True)] for b in buckets]
    states = [method.init(each) for each in specs]

    def step(i: int) -> None:
        kernels.use(backend)
        for at, bucket in enumerate(buckets):
            means, states[at] = run(method.aggregate(bucket.gradients(), states[at], Key(i)))
            if in_place:
                for gradient, mean in zip(bucket.gradients(), means, strict=True):
                    gradient.copy_(mean)

    return step


def hook(buckets: Sequence[Bucket], rank: int, batched: bool) -> Step:
    """PyTorch's hook, one bucket after the other."""
    state = hook_state(rank, batched)

    def step(i: int) -> None:
        for bucket in buckets:
            powerSGD_hook(state, bucket).wait()  # type: ignore[arg-type]

    return step


def memory_copy(buckets: Sequence[Bucket]) -> Step:
    """Of all gradients, into memory that is there already, a slice for each thread."""
    copies = [torch.zeros_like(bucket.buffer()) for bucket in buckets]

    def step(i: int) -> None:
        for bucket, copy in zip(buckets, copies, strict=True):
            to, start = copy.data_ptr(), bucket.buffer().data_ptr()

            def part(low: int, high: int, to: int = to, start: int = start) -> None:
                ctypes.memmove(to + 4 * low, start + 4 * low, 4 * (high - low))

            over_slices(part, copy.numel())

    return step


def ratios(buckets: Sequence[Bucket], steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median over rounds of each candidate's time as a multiple of the first one's, which is given in ms."""
    unit, *others = steps
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(-WARM_UP_STEPS, rounds):
        for name, step in steps.items():
            for bucket in buckets:
                bucket.at = (bucket.at + 1) % GRADIENTS
            start = perf_counter()
            step(i + WARM_UP_STEPS)
            if i >= 0:
                seconds[name].append(perf_counter() - start)
    found = {name: median(a / b for a, b in zip(seconds[name], seconds[unit], strict=True)) for name in others}
    return {unit: 1e3 * median(seconds[unit])} | found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--bucket-mb", type=float, default=1000.0, help="of DDP; more than the model is one bucket")
    options = parser.parse_args()
    titled = False
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        for threads in options.threads:
            torch.set_num_threads(threads)
            for name in options.models:
                for rank in options.ranks:
                    buckets = buckets_of(MODELS[name](), options.bucket_mb * 1e6)
                    steps = {
                        "memcpy, ms": memory_copy(buckets),
                        "ours": ours(buckets, rank, "cpu", in_place=False),
                        "ours, in place": ours(buckets, rank, "cpu", in_place=True),
                        "reference, in place": ours(buckets, rank, "reference", in_place=True),
                        "hook": hook(buckets, rank, batched=False),
                        "hook, batched": hook(buckets, rank, batched=True),
                    }
                    found = ratios(buckets, steps, options.rounds)
                    found["hook / ours, in place"] = found["hook"] / found["ours, in place"]
                    if not titled:
                        titles = ["threads", "model", "rank", *found]
                        print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
                        titled = True
                    row = [str(threads), name, str(rank), *(f"{each:.2f}" for each in found.values())]
                    print(f"| {' | '.join(row)} |", flush=True)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
